"""Trains a diffusion model: Algorithm 1 of Salimans & Ho 2022 (https://arxiv.org/abs/2202.00512).

    python train.py --config_path configs/ddpm_32x32_v_continuous_small.yaml

An interrupted run continues with the same command; a finished one is taken further by more --num_training_steps.
"""

import argparse
import math
from pathlib import Path

import torch

from models.diffusion import stratified, training_loss
from utils import cli
from utils.checkpoints import build_model, fingerprint, load_checkpoint
from utils.compute import TRAINING, Compute
from utils.config import Training, load_config
from utils.data import load_data
from utils.run import Run, delete_run
from utils.timing import Stopwatch, table
from utils.training import Trainer, require_enough_images


def parse_arguments() -> argparse.Namespace:
    """The flags; those of the configuration are None where they are left out."""
    parser = cli.Parser(description=__doc__)
    parser.add_run_arguments("training", output_dir="output/<name of the config>")
    parser.add_override("--num_training_steps", "training.num_training_steps", int, "steps of the optimizer")
    parser.add_argument(
        "--load_model_weights_from_checkpoint",
        metavar="CHECKPOINT",
        help="begin with the weights of this diffusion-<step>.pt (default: random weights)",
    )
    return parser.parse_args()


def learning_rate(settings: Training, step: int) -> float:
    """A linear warm-up, then constant or falling to 0 at the end of training."""
    warmup = min(1.0, (step + 1) / (settings.warmup_steps + 1))
    left = 1 - step / settings.num_training_steps
    decay = {"none": 1.0, "linear": left, "cosine": math.sin(left * math.pi / 2) ** 2}[settings.learning_rate_decay]
    return settings.learning_rate * warmup * decay


def main() -> None:
    """Everything is checked first; then the loop."""
    stopwatch = Stopwatch()
    arguments = parse_arguments()
    config = load_config(arguments.config_path, cli.overrides(arguments))
    settings = config.training
    require_enough_images(settings)
    device = cli.choose_device(arguments.device)
    folder = Path(arguments.output_dir or Path("output", Path(arguments.config_path).stem))
    initial = arguments.load_model_weights_from_checkpoint
    if initial:
        checkpoint = load_checkpoint(initial)
        checkpoint.require_same_model(config, arguments.config_path)

    unused = {"data": {"test_root"}, "distillation": True, "training": {"num_training_steps", "accumulation_steps"}}
    identity = config.model_dump(exclude=unused)
    identity["load_model_weights_from_checkpoint"] = fingerprint(initial) if initial else None
    run = Run.find(folder, identity, settings.num_training_steps, restart=arguments.restart, may_grow=True)
    if run.finished:
        print(f"{folder}: finished, all {run.num_steps} steps; more --num_training_steps go on from here")
        return

    passes = TRAINING * settings.num_training_steps * settings.batch_size
    compute = Compute.choose(config, device, passes=passes, training=True, begun=run.begun_compute)
    data = load_data(config, device)
    torch.manual_seed(config.seed)
    model = checkpoint.model(device, config.network.dropout) if initial else build_model(config, device)
    if arguments.restart:
        delete_run(folder)
    trainer = Trainer(
        model,
        config,
        settings,
        run,
        learning_rate=lambda step: learning_rate(settings, step),
        sampling_steps=None,
        compute=compute,
        stopwatch=stopwatch,
    )
    print(f"training on {compute}, from step {trainer.step}, {len(data)} images, writing to {folder}")

    for step in trainer.steps("training"):
        images, labels = data.batch(step, settings.batch_size)
        times = stratified(len(images))
        noise = torch.randn_like(images)
        for x, eps, t, label in trainer.shares(images, noise, times, labels):
            loss = training_loss(trainer.model, x, eps, t, settings.loss_weighting, label)
            trainer.backward(loss)
        trainer.update()

    print(table([folder]))
    print(f"the model is {run.final_checkpoint}, its samples lie beside it")


if __name__ == "__main__":
    cli.run(main)
