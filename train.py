"""Trains a diffusion model: Algorithm 1 of Salimans & Ho 2022 (https://arxiv.org/abs/2202.00512).

    python train.py --config_path configs/ddpm_32x32_v_continuous_small.yaml

An interrupted run continues with the same command; a finished one is taken further by more --num_training_steps.
"""

import utils  # noqa: F401 (first: from here on Ctrl-C ends quietly)

# isort: split
import argparse
from pathlib import Path

import torch
from torch import Tensor

from models.diffusion import stratified, training_loss
from models.guidance import without_class
from utils import cli
from utils.checkpoint_files import load_checkpoint
from utils.checkpoints import build_model
from utils.compute import TRAINING_PASSES, Compute
from utils.config import load_config
from utils.data.load import load_data
from utils.process.timing import Stopwatch
from utils.training.board import require_tensorboard
from utils.training.log import table
from utils.training.loop import TrainingLoop
from utils.training.run import Run, delete_run
from utils.training.trainer import Trainer, require_image_for_each_rank


def parse_arguments() -> argparse.Namespace:
    """Parses the command line; flags that override the configuration are None where they are left out."""
    parser = cli.Parser(description=__doc__)
    parser.add_run_arguments("training", output_dir="output/<name of the config>")
    parser.add_override("--num_training_steps", "training.num_training_steps", int, "steps of the optimizer")
    parser.add_argument(
        "--load_model_weights_from_checkpoint",
        metavar="CHECKPOINT",
        help="begin with the weights of this diffusion-<step>.pt (default: random weights)",
    )
    return parser.parse_args()


def main() -> None:
    """Checks everything before anything is written; then trains, step by step."""
    stopwatch = Stopwatch()
    arguments = parse_arguments()
    config = load_config(arguments.config_path, cli.overrides(arguments))
    settings, device = config.training, cli.choose_device(arguments.device)
    require_image_for_each_rank(settings)
    require_tensorboard(settings)
    initial = None
    if arguments.load_model_weights_from_checkpoint:
        initial = load_checkpoint(arguments.load_model_weights_from_checkpoint)
        initial.require_same_model(config, arguments.config_path)
        initial.require_beginning_of(config)
    folder = Path(arguments.output_dir or Path("output", Path(arguments.config_path).stem))
    run = Run.of_training(folder, config, initial, restart=arguments.restart)
    if run.finished:
        print(f"{folder}: finished, all {run.num_steps} steps; more --num_training_steps go on from here")
        return

    passes = TRAINING_PASSES * run.num_steps * settings.batch_size
    compute = Compute.choose(config, device, passes=passes, training=True, previous=run.previous_compute)
    data = load_data(config, device)
    run.use_data(data.description)
    torch.manual_seed(config.seed)
    model = initial.model(device, config.network.dropout) if initial else build_model(config, device)
    if arguments.restart:
        delete_run(folder)
        cli.restart_is_done()
    trainer = Trainer(model, settings, compute, learning_rate=settings.learning_rate_at, seed=config.seed)
    loop = TrainingLoop(run, trainer, config, stopwatch, "training")
    print(f"training on {compute}, from step {trainer.step}, {len(data)} images, writing to {folder}")

    def losses(examples: range, t: Tensor, dropped: Tensor) -> Tensor:
        x, label = data.batch(examples)
        eps, label = trainer.noise(examples, x), without_class(label, dropped)
        return training_loss(trainer.model, x, eps, t, settings.loss_weighting, label)

    for _ in loop:  # which has seeded what is drawn here with the number of the step
        t = stratified(settings.batch_size)
        dropped = torch.rand(settings.batch_size) < settings.class_dropout
        trainer.take_step(losses, t, dropped)

    print(f"{table([folder])}\nthe model is {run.final_checkpoint}, its samples lie beside it")


if __name__ == "__main__":
    cli.run(main)
