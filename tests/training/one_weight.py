"""Runs of a network of one weight, so that what is done to it can be followed by hand."""

from pathlib import Path

import torch
from torch import Tensor, nn
from utils.compute import Compute
from utils.process.timing import Stopwatch
from utils.schema import Config
from utils.training.loop import TrainingLoop

from models.diffusion import Diffusion
from models.noise_schedule import CosineSchedule
from utils.training.run import Run
from utils.training.trainer import Trainer

CONFIG = Config.model_validate(
    {
        "data": {"name": "MNIST", "image_size": 2, "num_channels": 1},
        "network": {"features": 2, "multipliers": [1], "attention_resolutions": []},
        "training": {"num_training_steps": 40, "ema_decay": 0.9, "log_every_n": 4, "save_and_sample_every_n": 10},
        "sampling": {"num_samples": 1, "sampling_steps": 1},
    }
)


class Scalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, z, logsnr, label=None):
        return self.weight * z


def make_trainer(network: nn.Module | None = None, **settings: object) -> Trainer:
    model = Diffusion(network or Scalar(), CosineSchedule(), "v")
    compute = Compute(torch.device("cpu"), "fp32", compile=False)
    training = CONFIG.training.model_copy(update=settings)
    return Trainer(model, training, compute, learning_rate=lambda step: 0.1, seed=0)


def make_loop(folder: Path, *, num_steps: int = 40, identity: dict | None = None) -> TrainingLoop:
    run = Run.open(folder, identity or {"a": 1}, num_steps)
    return TrainingLoop(run, make_trainer(), CONFIG, Stopwatch(), "test")


def step_down(trainer: Trainer, loss: Tensor) -> None:
    """A step down the gradient of a loss that is the same for all images."""
    trainer.take_step(lambda examples, _: loss.expand(len(examples)), torch.zeros(trainer.settings.batch_size))


def take_steps(loop: TrainingLoop, target: float = 1.0) -> None:
    for _ in loop:
        step_down(loop.trainer, (loop.trainer.network.weight - target).square())
