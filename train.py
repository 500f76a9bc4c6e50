"""Trains a diffusion model: Algorithm 1 of Salimans & Ho 2022 (https://arxiv.org/abs/2202.00512).

    python train.py --config_path configs/ddpm_32x32_v_continuous_small.yaml

The same command resumes an interrupted run; more --num_training_steps continue a finished one.
"""

import argparse
from pathlib import Path

import torch

from models.diffusion import drop_label, stratified, training_loss
from utils.checkpoints.checkpoint import load_checkpoint
from utils.config.reading import load_config
from utils.system import cli
from utils.training.run import Run
from utils.training.session import Session
from utils.training.stage import teacher_stage


def parse_arguments() -> argparse.Namespace:
    """Parses the command line; flags that override the configuration are None if they are not given."""
    parser = cli.Parser(description=__doc__)
    parser.add_run_arguments("training", output_dir="output/<name of the config>")
    parser.add_override("--num_training_steps", "training.num_training_steps", "steps of the optimizer")
    parser.add_argument(
        "--load_model_weights_from_checkpoint",
        metavar="CHECKPOINT",
        help="start from the weights of this diffusion-<step>.pt (default: random weights)",
    )
    return parser.parse_args()


def train(run: Run) -> None:
    """Algorithm 1: the network learns to predict the v of a noised image."""
    settings = run.stage.settings
    trainer = run.add_trainer("model", run.stage.initial_model(run.device))
    for _ in run.steps():  # between steps: logs, saves, and stops if interrupted
        t = stratified(settings.batch_size)  # of the global batch
        dropped = torch.rand(settings.batch_size) < settings.class_dropout
        for part in trainer.micro_batches():  # this rank's shard of the global batch, in slices
            x, label, eps = run.batch(part)
            label = drop_label(label, dropped[part])
            trainer.backward(training_loss(trainer.model, x, eps, t[part], settings.loss_weighting, label))
        trainer.update()  # clips the gradients, updates weights and EMA


def main() -> None:
    """Opens the run, which checks everything before anything is written; then trains."""
    arguments = parse_arguments()
    config = load_config(arguments.config_path, cli.overrides(arguments))
    folder = Path(arguments.output_dir or Path("output", Path(arguments.config_path).stem))
    initial = None
    if arguments.load_model_weights_from_checkpoint:
        initial = load_checkpoint(arguments.load_model_weights_from_checkpoint)
        initial.require_same_model(config, arguments.config_path)
        initial.require_trainable_on_images(config)
    stage = teacher_stage(config, folder, initial)
    with Session(arguments, folder, [stage]) as session:
        run = session.open(stage)
        if run:
            train(run)
            print(f"the model is saved as {stage.final_checkpoint}, with its samples beside it")
        else:
            print(f"more --num_training_steps than {stage.num_training_steps} continue it, --restart starts again")


if __name__ == "__main__":
    cli.run(main)
