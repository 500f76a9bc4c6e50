"""Where and how networks compute: device, precision, compilation."""

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.diffusion import Diffusion
from utils.checkpoints.checkpoint import build_model
from utils.config.schema import Config
from utils.system import distributed
from utils.system.errors import InputError

# Compiling takes a minute or two. On a CPU it makes sampling up to a fifth faster, and training slower
# (docs/experiments.md). It pays only for more floating-point operations than this.
WORTH_COMPILING_PER_CPU_THREAD = 1e14
WORTH_COMPILING_ON_A_GPU = 1e16  # an estimate; not measured
WORTH_ROUNDING = 1.5  # the least ratio of matrix rates, bfloat16 to float32, for `auto`; many processors have 4, or 1/2

# Forward passes that one image costs in a step, by section of the configuration; a backward pass costs two. (Matching:
# three updates of the auxiliary network and one of the student, five passes each.)
PASSES = {"training": 3, "distillation": 5, "matching": 20, "sampling": 1}


def choose_device(name: str | None) -> torch.device:
    """The device of that name, by default the GPU if there is one; each process on a machine has its own GPU."""
    many = distributed.world_size() > 1
    try:
        default = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        device = default if name is None else torch.device(name)
        if many and device.type not in ("cpu", "cuda"):  # Apple's machines have only one GPU
            if name is not None:
                raise InputError(f"--device {device}: not for several processes; cpu and cuda are")
            device = torch.device("cpu")
        if many and device.type == "cuda":
            if device.index is not None:
                raise InputError(f"--device {device}: each process has its own GPU; use cuda, or leave the flag out")
            if distributed.local_rank() >= (count := torch.cuda.device_count()):
                problem = f"torchrun started more processes on this machine than it has GPUs, {count}"
                raise InputError(f"{problem}; --nproc_per_node should be that number, or --device cpu")
            device = torch.device("cuda", distributed.local_rank())
        if name is not None:  # a test on this very device; another would allocate memory on the first GPU
            torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {name}: not on this machine; `cpu` always is") from error
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # for synchronization, and for libraries that use the current GPU
    return device


@dataclass(frozen=True)
class Compute:
    """How the networks of a run compute; a resumed run keeps precision and compilation, on any number of ranks."""

    device: torch.device
    precision: Literal["fp32", "bf16"]
    compile: bool

    @classmethod
    def choose(
        cls, config: Config, device: torch.device, *, passes: float, training: bool, previous: Mapping | None = None
    ) -> "Compute":
        """Precision and compilation as configured; for `auto`, the best on the device.

        `passes` are the forward passes of one image in the whole run (see `PASSES`), which trains or samples;
        `previous` is `as_dict()` of an earlier process of the same run.
        """
        if device.type == "cuda":  # fp32 means float32, not the shorter TF32, PyTorch's default for convolutions
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = False
        if previous is not None:
            return cls(device, previous["precision"], previous["compile"])
        precision, compiled = config.precision, config.compile
        if precision == "auto":
            # Only our network keeps the layers in float32 whose rounding would remain visible in samples.
            precision = "bf16" if config.network.type == "unet" and gains_by_bfloat16(device) else "fp32"
        if compiled == "auto":
            flop = passes * forward_flop(config) / distributed.world_size()
            on_cpu = not training and flop > WORTH_COMPILING_PER_CPU_THREAD * torch.get_num_threads()
            compiled = {"cpu": on_cpu, "cuda": flop > WORTH_COMPILING_ON_A_GPU}.get(device.type, False)
        return cls(device, precision, compiled)

    @property
    def compiles(self) -> bool:
        """Whether to compile: it was chosen, and there is a compiler; the first call takes seconds."""
        return self.compile and compiler_works(self.device)

    def as_dict(self) -> dict[str, Any]:
        """What is saved with a run, and kept when it is resumed; the device may change."""
        return {"precision": self.precision, "compile": self.compile}

    def __str__(self) -> str:
        text = f"{self.device} in {self.precision}{', compiled' if self.compiles else ''}"
        return text if distributed.world_size() == 1 else f"{text}, processes: {distributed.world_size()}"

    def for_training(self, model: Diffusion) -> Diffusion:
        """Sets the precision of a model for training, in place, and compiles it."""
        model.network.bfloat16 = self.precision == "bf16"
        if self.compiles:
            model.network.compile(dynamic=False)
        return model

    def for_inference(self, model: Diffusion, batch_size: int) -> Diffusion:
        """The model for sampling or teaching with batches of `batch_size`, in place: without gradients, compiled."""
        network = model.network
        network.bfloat16 = self.precision == "bf16"
        network.for_inference()
        if not self.compiles:
            return model
        compiled = torch.compile(network, dynamic=False)

        def run(z: Tensor, *conditions: Tensor | None) -> Tensor:
            # Every other size would be compiled too; the last, smaller batch is not worth it.
            return (compiled if len(z) == batch_size else network)(z, *conditions)

        return replace(model, network=run)


@cache
@distributed.on_rank_zero
def gains_by_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products in bfloat16, and they are fast; on a CPU that is measured."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()  # without such instructions a product may take a thousand times as long
    if device.type != "cpu" or not any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16")):
        return False
    seconds = dict.fromkeys([torch.float32, torch.bfloat16], math.inf)
    for dtype in 7 * list(seconds):  # in turn, so that other load affects both equally; the fastest counts
        matrix = torch.ones(512, 512, dtype=dtype)
        start = time.perf_counter()
        matrix @ matrix
        seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return seconds[torch.float32] > WORTH_ROUNDING * seconds[torch.bfloat16]


@cache
def compiler_works(device: torch.device) -> bool:
    """Whether torch.compile works here; prints a warning if not."""
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except Exception as error:  # whatever the reason, the run works without
        message = f"{sys.argv[0]}: warning: the network is not compiled: {str(error).strip().splitlines()[0]:.200}"
        if distributed.is_rank_zero():
            print(message, file=sys.stderr)
        return False
    return True


def forward_flop(config: Config) -> int:
    """The floating-point operations of one image's forward pass; a multiplication and an addition count as two."""
    device = torch.device("meta")
    network = build_model(config, device).network
    z = torch.empty(1, config.data.num_channels, config.data.image_size, config.data.image_size, device=device)
    label = torch.zeros(1, dtype=torch.long, device=device) if config.network.num_classes else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(z, torch.zeros(1, device=device), label)
    return counter.get_total_flops()
