"""Measures how fast the steps of a lesson are, as a share of what the machine can do.

    python bench.py --config_path configs/ddpm_32x32_v_continuous_small.yaml

Measures a training step, a distillation step, and a step of the sampler beside its bare evaluation of the network; and,
in turn with them, the same written as most would write it: in float32, eager, the layout contiguous, the optimizer
unfused. `of peak` is the share of the rate at which this machine, in this run and precision, multiplies large matrices.
"""

import utils  # noqa: F401 (first: from here on Ctrl-C ends quietly)

# isort: split
import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from tqdm import trange

from models.diffusion import Diffusion, distillation_loss, stratified, training_loss
from models.samplers import ddim
from utils import cli
from utils.checkpoints import build_model
from utils.compute import DISTILLATION_PASSES, FORWARD_PASSES, TRAINING_PASSES, Compute, forward_flop
from utils.config import load_config
from utils.errors import InputError
from utils.process.distributed import world_size
from utils.schema import Config, Optimization
from utils.training.trainer import Trainer

try:
    import resource
except ImportError:  # not on Windows
    resource = None

NUM_STEPS = 8  # of the sampler, and of the student; they take the same time at any number
LEARNING_RATE = 1e-5
# How each step is called, the section of the configuration that has its batch size, how often it sends an image through
# the network, and how many steps a call makes
STEPS = {
    "training step": ("training_step", "training", TRAINING_PASSES, 1),
    "distillation step": ("distillation_step", "distillation", DISTILLATION_PASSES, 1),
    "sampler step": ("sampler_steps", "sampling", FORWARD_PASSES, NUM_STEPS),
    "network evaluation": ("network_evaluations", "sampling", FORWARD_PASSES, NUM_STEPS),
}
MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = cli.Parser(description=__doc__)
    parser.add_config_path()
    parser.add_count("--batch_size", "images a step (default: the config's, of training, distillation and sampling)")
    parser.add_count("--rounds", "of all measurements in turn", 15)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_compute_arguments()
    return parser.parse_args()


class Batch:
    """A batch of images, noise and times, as the scripts draw them; the same one is used for all steps.

    But for the noise of the training steps, which each draws anew.
    """

    def __init__(self, config: Config, batch_size: int, device: torch.device):
        shape = (batch_size, config.data.num_channels, config.data.image_size, config.data.image_size)
        num_classes = config.network.num_classes
        self.x, self.eps = torch.rand(shape, device=device) * 2 - 1, torch.randn(shape, device=device)
        self.t = stratified(batch_size)
        self.i = 1 + (self.t * NUM_STEPS).long()
        self.label = torch.arange(batch_size, device=device) % num_classes if num_classes else None
        self.logsnr = torch.zeros(batch_size, device=device)


class PlainTrainer:
    """Adam, gradient clipping and EMA as most would write them: what `Trainer` is compared with."""

    def __init__(self, model: Diffusion, settings: Optimization):
        self.model, self.decay = model, settings.ema_decay
        self.network = model.network.train()
        self.adam = torch.optim.Adam(self.network.parameters(), lr=LEARNING_RATE)
        self.ema = [parameter.detach().clone() for parameter in self.network.parameters()]

    def noise(self, _: range, x: Tensor) -> Tensor:
        """Standard normal noise like x, which is other noise where the batch is divided."""
        return torch.randn_like(x)

    def take_step(self, losses_of: Callable[[range, Tensor], Tensor], times: Tensor) -> None:
        """One step down the gradient of the mean loss of a batch."""
        self.adam.zero_grad()
        losses_of(range(len(times)), times).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.adam.step()
        with torch.no_grad():
            for average, parameter in zip(self.ema, self.network.parameters(), strict=True):
                average.mul_(self.decay).add_(parameter, alpha=1 - self.decay)


@dataclass
class Contender:
    """The steps to be measured, in one implementation: this project's, or the plain one."""

    config: Config
    compute: Compute
    plain: bool
    sampling_batch_size: int

    @cached_property
    def sampled(self) -> Diffusion:
        """The model of `sampler_steps` and `network_evaluations`, which differ in the sampler alone."""
        return self.compute.for_inference(self.model(0.0), self.sampling_batch_size)

    def model(self, dropout: float) -> Diffusion:
        """A model with fresh weights."""
        model = build_model(self.config, self.compute.device, dropout)
        if self.plain:
            model.network.to(memory_format=torch.contiguous_format)
        return model

    def trainer(self, dropout: float, settings: Optimization, batch_size: int) -> Trainer | PlainTrainer:
        """A trainer of a new model, for batches of this size."""
        model = self.model(dropout)
        if self.plain:
            return PlainTrainer(model, settings)
        settings = settings.model_copy(update={"batch_size": batch_size, "accumulation_steps": 1})
        return Trainer(model, settings, self.compute, learning_rate=lambda _: LEARNING_RATE, seed=0)

    def training_step(self, b: Batch) -> Callable[[], object]:
        """The training step of train.py."""
        settings = self.config.training
        trainer = self.trainer(self.config.network.dropout, settings, len(b.x))

        def losses(examples: range, t: Tensor) -> Tensor:
            eps = trainer.noise(examples, b.x)
            return training_loss(trainer.model, b.x, eps, t, settings.loss_weighting, b.label)

        return partial(trainer.take_step, losses, b.t)

    def distillation_step(self, b: Batch) -> Callable[[], object]:
        """The distillation step of distill.py."""
        settings = self.config.distillation
        trainer = self.trainer(0.0, settings, len(b.x))
        teacher = self.compute.for_inference(self.model(0.0), len(b.x))

        def losses(examples: range, i: Tensor) -> Tensor:
            eps = trainer.noise(examples, b.x)
            return distillation_loss(trainer.model, teacher, b.x, eps, i, NUM_STEPS, settings.loss_weighting, b.label)

        return partial(trainer.take_step, losses, b.i)

    def sampler_steps(self, b: Batch) -> Callable[[], object]:
        """`NUM_STEPS` steps of the sampler of sample.py."""
        clip = self.config.sampling.clip
        return torch.inference_mode()(lambda: ddim(self.sampled, b.eps, NUM_STEPS, label=b.label, clip=clip))

    def network_evaluations(self, b: Batch) -> Callable[[], object]:
        """As many evaluations of the network as `sampler_steps` makes, and nothing else."""

        @torch.inference_mode()
        def run() -> None:
            for _ in range(NUM_STEPS):
                self.sampled.network(b.eps, b.logsnr, b.label)

        return run


def matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """A product of large matrices, and its floating-point operations."""
    size = MATRIX_SIZE.get(device.type, 2048)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b, 2.0 * size**3


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """The time of one call, until the device has done it."""
    start = time.perf_counter()
    call()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def peak_memory(device: torch.device) -> int:
    """The most memory used so far, in bytes: of the GPU, or of the whole process; 0 where that is unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(calls: dict[Any, Callable[[], object]], rounds: int, device: torch.device) -> dict[Any, float]:
    """The median time of each call, in seconds; all in turn, so that other load affects them alike.

    The order is another in each round, since what ran before leaves the caches full of its own.
    """
    times: dict[Any, list[float]] = {key: [] for key in calls}
    order, generator = list(calls), random.Random(0)  # noqa: S311 (no secret)
    for _ in trange(rounds, desc="rounds", leave=False):
        generator.shuffle(order)
        for key in order:
            times[key].append(seconds_of(calls[key], device))
    return {key: statistics.median(values) for key, values in times.items()}


def bench(config: Config, compute: Compute, batch_size: int | None, rounds: int) -> dict[str, Any]:
    """Runs all measurements; what `show` prints, as a dictionary."""
    device, flop = compute.device, forward_flop(config)
    sizes = {name: batch_size or getattr(config, section).batch_size for name, (_, section, _, _) in STEPS.items()}
    batches = {size: Batch(config, size, device) for size in sizes.values()}
    calls: dict[Any, Callable[[], object]] = {}
    calls["matrices"], matrix_flop = matrix_product(device, compute.dtype)
    size = sizes["sampler step"]
    contenders = {"ours": Contender(config, compute, plain=False, sampling_batch_size=size)}
    plain = Compute(device, "fp32", compile=False)
    contenders["plain"] = Contender(config, plain, plain=True, sampling_batch_size=size)
    for who, contender in contenders.items():
        for name, (method, _, _, _) in STEPS.items():
            calls[who, name] = call = getattr(contender, method)(batches[sizes[name]])
            for _ in range(3):  # warm-up, and compilation
                call()
        if who == "ours":
            memory = peak_memory(device)
    seconds = measure(calls, rounds, device)
    peak = matrix_flop / seconds["matrices"]
    rows = {}
    for name, (_, _, passes, repetitions) in STEPS.items():
        took, plain_took = (seconds[who, name] / repetitions for who in contenders)
        rate = passes * sizes[name] * flop / took
        rows[name] = {
            "batch_size": sizes[name],
            "ms": 1e3 * took,
            "images_per_second": sizes[name] / took,
            "gflop_per_second": rate / 1e9,
            "of_peak": rate / peak,
            "plain_ms": 1e3 * plain_took,
            "ratio": plain_took / took,
        }
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": compute.precision,
        "compile": compute.compile,
        "parameters": sum(p.numel() for p in build_model(config, device).network.parameters()),
        "gflop_per_image": flop / 1e9,
        "matrix_product_gflop_per_second": peak / 1e9,
        "peak_memory_mib": memory / 2**20,
        "steps": rows,
    }


def show(found: dict[str, Any]) -> None:
    """Prints the measurements as a table."""
    print(
        f"{found['parameters']:,} parameters, {found['gflop_per_image']:.3f} GFLOP an image forward; "
        f"{found['device']}, {found['threads']} threads, torch {found['torch']}, {found['precision']}"
        f"{', compiled' if found['compile'] else ''}; large matrices: "
        f"{found['matrix_product_gflop_per_second']:,.0f} GFLOP/s; peak memory {found['peak_memory_mib']:,.0f} MiB"
    )
    heads = ("batch", "ms", "images/s", "GFLOP/s", "of peak", "plain ms", "ratio")
    print(f"{'':<20}" + "".join(f"{head:>10}" for head in heads))
    for name, row in found["steps"].items():
        cells = (
            f"{row['batch_size']}",
            f"{row['ms']:.1f}",
            f"{row['images_per_second']:,.0f}",
            f"{row['gflop_per_second']:,.0f}",
            f"{row['of_peak']:.0%}",
            f"{row['plain_ms']:.1f}",
            f"{row['ratio']:.2f}",
        )
        print(f"{name:<20}" + "".join(f"{cell:>10}" for cell in cells))


def main() -> None:
    """Checks everything first; then measures all steps in turn."""
    arguments = parse_arguments()
    if world_size() > 1:
        raise InputError("bench.py measures one process; start it without torchrun")
    config = load_config(arguments.config_path, cli.overrides(arguments))
    settings = config.training
    passes = TRAINING_PASSES * settings.num_training_steps * settings.batch_size
    compute = Compute.choose(config, cli.choose_device(arguments.device), passes=passes, training=True)
    torch.manual_seed(0)
    found = bench(config, compute, arguments.batch_size, arguments.rounds)
    print(json.dumps(found, indent=1)) if arguments.json else show(found)


if __name__ == "__main__":
    cli.run(main)
