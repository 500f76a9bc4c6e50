"""Runs of a network of one weight, so that what is done to it can be followed by hand."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from models.diffusion import Diffusion
from models.noise_schedule import CosineSchedule
from utils.checkpoints.checkpoint import TrainedOn
from utils.checkpoints.compute import Compute
from utils.config.schema import Config
from utils.training.run import Run
from utils.training.stage import Stage, teacher_stage
from utils.training.state import read_state
from utils.training.trainer import Trainer

CONFIG = Config.model_validate(
    {
        "data": {"name": "MNIST", "image_size": 2, "num_channels": 1},
        "network": {"features": 2, "multipliers": [1], "attention_resolutions": []},
        "training": {"ema_decay": 0.9, "log_every_n": 4, "save_and_sample_every_n": 10},
        "sampling": {"num_samples": 1, "sampling_steps": 1},
    }
)
CPU = Compute(torch.device("cpu"), "fp32", compile=False)


class Scalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, z, logsnr, label=None):
        return self.weight * z


def model_of(network: nn.Module) -> Diffusion:
    return Diffusion(network, CosineSchedule(), "v")


def make_trainer(network: nn.Module | None = None, **settings: object) -> Trainer:
    training = CONFIG.training.model_copy(update=settings)
    options = {"learning_rate": lambda step: 0.1, "seed_of": lambda purpose, index: index}
    return Trainer(model_of(network or Scalar()), training, CPU, **options)


def make_stage(folder: Path, num_steps: int = 40, **settings: object) -> Stage:
    training = CONFIG.training.model_copy(update={"num_training_steps": num_steps} | settings)
    stage = teacher_stage(CONFIG.model_copy(update={"training": training}), folder, None)
    return replace(stage, learning_rate=lambda step: 0.1)


def make_run(folder: Path, num_steps: int = 40, names: tuple[str, ...] = ("model",), **settings: object) -> Run:
    """A run with a trainer of one weight under each name."""
    stage = make_stage(folder, num_steps, **settings)
    data = SimpleNamespace(description=TrainedOn(data_hash="hash", class_names=[]))
    run = Run(stage, read_state(stage), data, CPU)
    folder.mkdir(exist_ok=True)
    for name in names:
        run.add_trainer(name, model_of(Scalar()))
    return run


def step_down(trainer: Trainer, loss: Tensor) -> None:
    """A step down the gradient of a loss that is the same for all images."""
    for part in trainer.micro_batches():
        trainer.backward(loss.expand(part.stop - part.start))
    trainer.update()


def take_steps(run: Run, target: float = 1.0) -> None:
    for _ in run.steps():
        for trainer in run.trainers.values():
            step_down(trainer, (trainer.network.weight - target).square())
