"""Measures the speed of the steps of a lesson, relative to the machine's rate of matrix products.

    python bench.py --config_path configs/ddpm_32x32_v_continuous_small.yaml

Measures a training step, a distillation step, and a step of the sampler beside its network evaluation alone; in turn
with the same in plain PyTorch (float32, eager, contiguous weights, optimizer not fused). `of peak` is relative to the
rate of products of large matrices, in this run and precision.
"""

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import trange

from models.diffusion import Diffusion, distillation_loss, stratified, training_loss
from models.samplers import ddim
from utils.checkpoints.checkpoint import build_model
from utils.checkpoints.compute import PASSES, Compute, choose_device, forward_flop
from utils.config.reading import load_config
from utils.config.schema import Config, Optimization
from utils.system import cli
from utils.system.distributed import world_size
from utils.system.errors import InputError
from utils.system.seeds import normal_noise, seed_of
from utils.training.trainer import Trainer

NUM_STEPS = 8  # of the sampler and of the student; a step takes the same time with any number
LEARNING_RATE = 1e-5
# The section of the configuration with the batch size, and the number of steps in a measured call.
STEPS = {
    "training step": ("training", 1),
    "distillation step": ("distillation", 1),
    "sampler step": ("sampling", NUM_STEPS),
    "network evaluation": ("sampling", NUM_STEPS),
}
MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = cli.Parser(description=__doc__)
    parser.add_config_path()
    parser.add_count("--batch_size", "images per step (default: the config's, of training, distillation and sampling)")
    parser.add_count("--rounds", "how often everything is measured; the median counts", 15)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_compute_arguments()
    return parser.parse_args()


def plain_step(model: Diffusion, settings: Optimization, losses: Callable[[], Tensor]) -> Callable[[], object]:
    """A training step with Adam, gradient clipping and EMA in plain PyTorch."""
    weights = list(model.network.train().parameters())
    adam, ema = torch.optim.Adam(weights, lr=LEARNING_RATE), [weight.detach().clone() for weight in weights]

    def step() -> None:
        adam.zero_grad()
        losses().mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        adam.step()
        with torch.no_grad():
            for average, weight in zip(ema, weights, strict=True):
                average.mul_(settings.ema_decay).add_(weight, alpha=1 - settings.ema_decay)

    return step


class Contender:
    """The steps to measure, in one implementation: this project's, or the plain one."""

    def __init__(self, config: Config, compute: Compute, sizes: dict[str, int], *, plain: bool):
        self.config, self.compute, self.sizes, self.plain = config, compute, sizes, plain
        self.teacher = compute.for_inference(self.model(0.0), sizes["distillation"])
        self.sampled = compute.for_inference(self.model(0.0), sizes["sampling"])

    def model(self, dropout: float) -> Diffusion:
        """A model with random weights."""
        model = build_model(self.config, self.compute.device, dropout)
        if self.plain:
            model.network.to(memory_format=torch.contiguous_format)
        return model

    def batch(self, section: str) -> tuple[Tensor, Tensor | None]:
        """Images [B, C, H, W], and the labels [B] of a class-conditional network."""
        size, data, num_classes = self.sizes[section], self.config.data, self.config.network.num_classes
        label = torch.arange(size, device=self.compute.device) % num_classes if num_classes else None
        return torch.rand(size, data.num_channels, data.image_size, data.image_size).to(self.compute.device), label

    def step_of(self, section: str, dropout: float, loss: Callable[..., Tensor]) -> Callable[[], object]:
        """A training step of a new model with the losses `loss(model, x, eps, label=label)`, and fresh noise."""
        settings, model, (x, label) = getattr(self.config, section), self.model(dropout), self.batch(section)
        if self.plain:
            return plain_step(model, settings, lambda: loss(model, x, torch.randn_like(x), label=label))
        settings = settings.model_copy(update={"batch_size": len(x), "accumulation_steps": 1})
        rate, seed = (lambda _: LEARNING_RATE), (lambda purpose, index: seed_of(purpose, 0, None, index=index))
        trainer = Trainer(model, settings, self.compute, learning_rate=rate, seed_of=seed)

        def step() -> None:
            for _ in trainer.micro_batches():
                eps = normal_noise([seed("noise", trainer.step * len(x) + k) for k in range(len(x))], x)
                trainer.backward(loss(trainer.model, x, eps, label=label))
            trainer.update()

        return step

    def steps(self) -> dict[str, Callable[[], object]]:
        """A function for each of `STEPS`."""
        of_training = {"t": stratified(self.sizes["training"]), "weighting": self.config.training.loss_weighting}
        i = 1 + (stratified(self.sizes["distillation"]) * NUM_STEPS).long()
        options = {"i": i, "num_steps": NUM_STEPS, "weighting": self.config.distillation.loss_weighting}
        distillation = partial(distillation_loss, teacher=self.teacher, **options)
        (z, label), model = self.batch("sampling"), self.sampled
        inputs, without_gradients = (z, torch.zeros(len(z), device=z.device), label), torch.inference_mode()
        steps = [
            self.step_of("training", self.config.network.dropout, partial(training_loss, **of_training)),
            self.step_of("distillation", 0.0, lambda m, x, eps, label: distillation(m, x=x, eps=eps, label=label)),
            without_gradients(lambda: ddim(model, z, NUM_STEPS, label=label, clip=False)),
            without_gradients(lambda: [model.network(*inputs) for _ in range(NUM_STEPS)]),
        ]
        return dict(zip(STEPS, steps, strict=True))


def measure(calls: dict[Any, Callable[[], object]], rounds: int, device: torch.device) -> dict[Any, float]:
    """The median time of each call, in seconds; they run in turn, in a new order each round, for equal conditions."""
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
    device, flop, matrix_size = compute.device, forward_flop(config), MATRIX_SIZE.get(compute.device.type, 2048)
    sizes = {section: batch_size or getattr(config, section).batch_size for section, _ in STEPS.values()}
    dtype = torch.bfloat16 if compute.precision == "bf16" else torch.float32
    a, b = (torch.randn(matrix_size, matrix_size, device=device).to(dtype) for _ in range(2))
    calls: dict[Any, Callable[[], object]] = {"matrices": lambda: a @ b}
    for who, how in (("ours", compute), ("plain", Compute(device, "fp32", compile=False))):
        contender = Contender(config, how, sizes, plain=who == "plain")
        for name, call in contender.steps().items():
            calls[who, name] = call
            for _ in range(3):  # warm-up, and compilation
                call()
    seconds = measure(calls, rounds, device)
    peak, rows = 2.0 * matrix_size**3 / seconds["matrices"], {}
    for name, (section, repetitions) in STEPS.items():
        took, plain_took, size = *(seconds[who, name] / repetitions for who in ("ours", "plain")), sizes[section]
        rate = PASSES[section] * size * flop / took
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
        "steps": rows,
    }


def show(found: dict[str, Any]) -> None:
    """Prints the measurements as a table."""
    text = (
        "{parameters:,} parameters, {gflop_per_image:.3f} GFLOP per image forward; {device}, {threads} threads, torch "
        "{torch}, {precision}, compiled: {compile}; large matrices: {matrix_product_gflop_per_second:,.0f} GFLOP/s"
    )
    print(text.format(**found))
    print(("{:<20}" + 7 * "{:>10}").format("", "batch", "ms", "images/s", "GFLOP/s", "of peak", "plain ms", "ratio"))
    for name, row in found["steps"].items():
        print(f"{name:<20}" + "{:>10d}{:>10.1f}{:>10,.0f}{:>10,.0f}{:>10.0%}{:>10.1f}{:>10.2f}".format(*row.values()))


def main() -> None:
    """Checks everything first; then measures all steps in turn."""
    arguments = parse_arguments()
    if world_size() > 1:
        raise InputError("bench.py measures one process; start it without torchrun")
    config = load_config(arguments.config_path, cli.overrides(arguments))
    passes = PASSES["training"] * config.training.num_training_steps * config.training.batch_size
    compute = Compute.choose(config, choose_device(arguments.device), passes=passes, training=True)
    torch.manual_seed(0)
    found = bench(config, compute, arguments.batch_size, arguments.rounds)
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)


if __name__ == "__main__":
    cli.run(main)
