"""Measures the speed of the steps of a lesson, relative to the machine's rate of matrix products.

    python bench.py --config_path configs/ddpm_32x32_v_continuous_small.yaml

Measures a training step, a distillation step, and a step of the sampler beside its network evaluation alone; and, in
turn with them, the same steps in plain PyTorch: float32, eager, contiguous, with an optimizer that is not fused.
`of peak` is the fraction of the rate at which this machine, in this run and precision, multiplies large matrices.
"""

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import trange

from models.diffusion import Diffusion, distillation_loss, stratified, training_loss
from models.samplers import ddim
from utils.checkpoints.build import build_model
from utils.checkpoints.compute import (
    DISTILLATION_PASSES,
    FORWARD_PASSES,
    TRAINING_PASSES,
    Compute,
    choose_device,
    forward_flop,
)
from utils.config.reading import load_config
from utils.config.schema import Config, Optimization
from utils.system import cli
from utils.system.distributed import world_size
from utils.system.errors import InputError
from utils.system.seeds import normal_noise, seed_of
from utils.training.trainer import Trainer

try:
    import resource
except ImportError:  # not on Windows
    resource = None

NUM_STEPS = 8  # of the sampler and of the student; a step takes the same time with any number
LEARNING_RATE = 1e-5
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


class PlainTrainer:
    """Adam, gradient clipping and EMA in plain PyTorch, to compare `Trainer` with."""

    step = 0

    def __init__(self, model: Diffusion, settings: Optimization):
        self.model, self.settings = model, settings
        self.network = model.network.train()
        self.adam = torch.optim.Adam(self.network.parameters(), lr=LEARNING_RATE)
        self.ema = [parameter.detach().clone() for parameter in self.network.parameters()]

    def micro_batches(self) -> Iterator[slice]:
        """The global batch as one slice."""
        self.adam.zero_grad()
        yield slice(0, self.settings.batch_size)

    def backward(self, losses: Tensor) -> None:
        """Computes the gradient of the mean loss."""
        losses.mean().backward()

    def update(self) -> None:
        """Clips the gradient, then updates weights and EMA."""
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.adam.step()
        with torch.no_grad():
            for average, parameter in zip(self.ema, self.network.parameters(), strict=True):
                average.mul_(self.settings.ema_decay).add_(parameter, alpha=1 - self.settings.ema_decay)


class Contender:
    """The steps to measure, in one implementation: this project's, or the plain one."""

    def __init__(self, config: Config, compute: Compute, sizes: dict[str, int], *, plain: bool):
        self.config, self.compute, self.sizes, self.plain = config, compute, sizes, plain
        # of `sampler_steps` and `network_evaluations`, which differ only in the sampler
        self.sampled = compute.for_inference(self.model(0.0), sizes["sampling"])

    def model(self, dropout: float) -> Diffusion:
        """A model with random weights."""
        model = build_model(self.config, self.compute.device, dropout)
        if self.plain:
            model.network.to(memory_format=torch.contiguous_format)
        return model

    def batch(self, section: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """x and eps [B, C, H, W], and the label [B] of a class-conditional network."""
        size, data, num_classes = self.sizes[section], self.config.data, self.config.network.num_classes
        shape, device = (size, data.num_channels, data.image_size, data.image_size), self.compute.device
        label = torch.arange(size, device=device) % num_classes if num_classes else None
        return torch.rand(shape, device=device) * 2 - 1, torch.randn(shape, device=device), label

    def trainer(self, section: str, dropout: float) -> Trainer | PlainTrainer:
        """A trainer of a new model, with the settings of a section of the configuration."""
        update = {"batch_size": self.sizes[section], "accumulation_steps": 1}
        settings, model = getattr(self.config, section).model_copy(update=update), self.model(dropout)
        if self.plain:
            return PlainTrainer(model, settings)
        seeds = lambda purpose, index: seed_of(purpose, 0, None, index=index)  # noqa: E731
        return Trainer(model, settings, self.compute, learning_rate=lambda _: LEARNING_RATE, seed_of=seeds)

    def noise(self, trainer: Trainer | PlainTrainer, x: Tensor) -> Tensor:
        """Fresh noise, in this project from a seed for each example."""
        if self.plain:
            return torch.randn_like(x)
        first = trainer.step * len(x)
        return normal_noise([seed_of("noise", 0, None, index=first + k) for k in range(len(x))], x)

    def training_step(self) -> Callable[[], object]:
        """The training step of train.py."""
        trainer, (x, _, label) = self.trainer("training", self.config.network.dropout), self.batch("training")
        t, weighting = stratified(len(x)), self.config.training.loss_weighting

        def step() -> None:
            for _ in trainer.micro_batches():
                trainer.backward(training_loss(trainer.model, x, self.noise(trainer, x), t, weighting, label))
            trainer.update()

        return step

    def distillation_step(self) -> Callable[[], object]:
        """The distillation step of distill.py."""
        student, (x, _, label) = self.trainer("distillation", 0.0), self.batch("distillation")
        teacher = self.compute.for_inference(self.model(0.0), len(x))
        i, weighting = 1 + (stratified(len(x)) * NUM_STEPS).long(), self.config.distillation.loss_weighting
        loss = partial(distillation_loss, i=i, num_steps=NUM_STEPS, weighting=weighting, label=label)

        def step() -> None:
            for _ in student.micro_batches():
                student.backward(loss(student.model, teacher, x, self.noise(student, x)))
            student.update()

        return step

    def sampler_steps(self) -> Callable[[], object]:
        """`NUM_STEPS` steps of the sampler of sample.py."""
        _, z, label = self.batch("sampling")
        return torch.inference_mode()(lambda: ddim(self.sampled, z, NUM_STEPS, label=label, clip=False))

    def network_evaluations(self) -> Callable[[], object]:
        """The network evaluations of `sampler_steps`, and nothing else."""
        _, z, label = self.batch("sampling")
        logsnr, network = torch.zeros(len(z), device=z.device), self.sampled.network
        return torch.inference_mode()(lambda: [network(z, logsnr, label) for _ in range(NUM_STEPS)])


# By name: the method of `Contender`, the section with the batch size, forward passes of an image, steps in a call
STEPS = {
    "training step": (Contender.training_step, "training", TRAINING_PASSES, 1),
    "distillation step": (Contender.distillation_step, "distillation", DISTILLATION_PASSES, 1),
    "sampler step": (Contender.sampler_steps, "sampling", FORWARD_PASSES, NUM_STEPS),
    "network evaluation": (Contender.network_evaluations, "sampling", FORWARD_PASSES, NUM_STEPS),
}


def matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """A product of large matrices, and its floating-point operations."""
    size = MATRIX_SIZE.get(device.type, 2048)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b, 2.0 * size**3


def peak_memory(device: torch.device) -> int:
    """The peak memory so far, in bytes: of the GPU, or of the whole process; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(calls: dict[Any, Callable[[], object]], rounds: int, device: torch.device) -> dict[Any, float]:
    """The median time of each call, in seconds.

    The calls run in turn, so that other load affects them equally, and in a different order in each round, since each
    call leaves its data in the caches for the next one.
    """
    times: dict[Any, list[float]] = {key: [] for key in calls}
    order, generator = list(calls), random.Random(0)  # noqa: S311 (no secret)
    for _ in trange(rounds, desc="rounds", leave=False):
        generator.shuffle(order)
        for key in order:
            start = time.perf_counter()
            calls[key]()
            if device.type != "cpu":
                torch.accelerator.synchronize()
            times[key].append(time.perf_counter() - start)
    return {key: statistics.median(values) for key, values in times.items()}


def bench(config: Config, compute: Compute, batch_size: int | None, rounds: int) -> dict[str, Any]:
    """All measurements, as a dictionary."""
    device, flop = compute.device, forward_flop(config)
    sizes = {section: batch_size or getattr(config, section).batch_size for _, section, _, _ in STEPS.values()}
    calls: dict[Any, Callable[[], object]] = {}
    calls["matrices"], matrix_flop = matrix_product(device, compute.dtype)
    for who, how in (("ours", compute), ("plain", Compute(device, "fp32", compile=False))):
        contender = Contender(config, how, sizes, plain=who == "plain")
        for name, (method, _, _, _) in STEPS.items():
            calls[who, name] = call = method(contender)
            for _ in range(3):  # warm-up, and compilation
                call()
        if who == "ours":
            memory = peak_memory(device)
    seconds = measure(calls, rounds, device)
    peak = matrix_flop / seconds["matrices"]
    rows = {}
    for name, (_, section, passes, repetitions) in STEPS.items():
        took, plain_took, size = *(seconds[who, name] / repetitions for who in ("ours", "plain")), sizes[section]
        rate = passes * size * flop / took
        rows[name] = {
            "batch_size": size,
            "ms": 1e3 * took,
            "images_per_second": size / took,
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
    formats = ("{:d}", "{:.1f}", "{:,.0f}", "{:,.0f}", "{:.0%}", "{:.1f}", "{:.2f}")
    print(f"{'':<20}" + "".join(f"{head:>10}" for head in heads))
    for name, row in found["steps"].items():
        cells = (form.format(value) for form, value in zip(formats, row.values(), strict=True))
        print(f"{name:<20}" + "".join(f"{cell:>10}" for cell in cells))


def main() -> None:
    """Checks everything first; then measures all steps in turn."""
    arguments = parse_arguments()
    if world_size() > 1:
        raise InputError("bench.py measures one process; start it without torchrun")
    config = load_config(arguments.config_path, cli.overrides(arguments))
    passes = TRAINING_PASSES * config.training.num_training_steps * config.training.batch_size
    compute = Compute.choose(config, choose_device(arguments.device), passes=passes, training=True)
    torch.manual_seed(0)
    found = bench(config, compute, arguments.batch_size, arguments.rounds)
    print(json.dumps(found, indent=1)) if arguments.json else show(found)


if __name__ == "__main__":
    cli.run(main)
