"""Checkpoints: the EMA weights of a model and its configuration, enough to sample and to teach with on any device."""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from models.diffusion import Diffusion
from models.noise_schedule import SCHEDULES
from models.unet import UNet
from utils.config import Config, Count, NonNegativeInt, Section, differences, explain
from utils.errors import InputError
from utils.files import read_torch_file, sha256, write_atomically
from utils.files.torch_file import require_like

FORMAT_VERSION = 1
UNDISTILLED_SAMPLING_STEPS = 1024


def build_model(config: Config, device: torch.device, dropout: float | None = None) -> Diffusion:
    """A model with the architecture of a configuration and random weights; `dropout` replaces the configuration's."""
    settings = config.network.model_dump()
    if dropout is not None:
        settings["dropout"] = dropout
    # The weights are drawn on the CPU, so as to be the same for every device; on the meta device there are none.
    with device if device.type == "meta" else nullcontext():
        network = UNet(image_size=config.data.image_size, num_channels=config.data.num_channels, **settings)
    diffusion = config.diffusion
    schedule = SCHEDULES[diffusion.schedule](diffusion.logsnr_min, diffusion.logsnr_max)
    # Channels last is the layout that convolutions compute in.
    network = network.to(device, memory_format=torch.channels_last)
    return Diffusion(network, schedule, diffusion.prediction)


def _what_weights_mean(config: Config) -> dict[str, Any]:
    """The part of a configuration that must be the same for weights to be exchanged."""
    return {
        "data": config.data.model_dump(include={"image_size", "num_channels"}),
        "network": config.network.model_dump(exclude={"dropout"}),
        "diffusion": config.diffusion.model_dump(),
    }


class Metadata(Section):
    """The contents of a `diffusion-<step>.pt` besides the weights."""

    config: Config
    step: NonNegativeInt
    sampling_steps: Count | None


@dataclass(frozen=True)
class Checkpoint:
    """A `diffusion-<step>.pt`. `sampling_steps` is what it was distilled for, None for an undistilled model."""

    path: Path
    config: Config
    step: int
    sampling_steps: int | None
    weights: dict[str, Tensor]

    @property
    def default_sampling_steps(self) -> int:
        """The number of steps to sample it with."""
        return self.sampling_steps or UNDISTILLED_SAMPLING_STEPS

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file, which identifies a teacher wherever its file lies; to be asked by all ranks."""
        return sha256(self.path)

    def require_same_model(self, config: Config, config_name: str) -> None:
        """Refuses a checkpoint whose weights would mean something else under the configuration.

        Raises:
            InputError: naming the first key that differs.
        """
        different = differences(_what_weights_mean(self.config), _what_weights_mean(config))
        if different:
            raise InputError(f"{self.path}: another model than {config_name} describes: {different[0]}")

    def require_teacher_of(self, sampling_steps: int) -> None:
        """Refuses a distilled model as the teacher of a student that does not take half its steps.

        Raises:
            InputError: naming both numbers of steps.
        """
        if self.sampling_steps not in (None, 2 * sampling_steps):
            raise InputError(
                f"--initial_sampling_steps {sampling_steps}: {self.path} was distilled for {self.sampling_steps} "
                "steps, so its first student takes half of them"
            )

    def require_own_weights(self) -> None:
        """Refuses weights of another architecture than the configuration's, before any memory is taken for it.

        Raises:
            InputError: naming the first that differs.
        """
        try:
            require_like(self.weights, build_model(self.config, torch.device("meta")).network.state_dict())
        except ValueError as error:
            raise InputError(f"{self.path}: its weights do not fit its own configuration: {error}") from error

    def model(self, device: torch.device, dropout: float = 0.0) -> Diffusion:
        """The model with the checkpoint's weights, as its own configuration describes it, but for the dropout.

        It is in evaluation mode; a `Trainer` puts what it trains into training mode.
        """
        model = build_model(self.config, device, dropout)
        model.network.eval().load_state_dict(self.weights)
        return model


def save_checkpoint(
    path: Path, weights: dict[str, Tensor], *, config: Config, step: int, sampling_steps: int | None
) -> None:
    """Writes `diffusion-<step>.pt`: plain tensors, numbers and strings."""
    content = {
        "format_version": FORMAT_VERSION,
        "config": config.model_dump(),
        "step": step,
        "sampling_steps": sampling_steps,
        "weights": {name: weight.cpu() for name, weight in weights.items()},
    }
    write_atomically(path, lambda file: torch.save(content, file))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a `diffusion-<step>.pt`.

    Raises:
        InputError: the file is missing, truncated, no checkpoint, of another format version, or its contents are off.
    """
    path = Path(path)
    content = read_torch_file(path, Metadata.model_fields.keys() | {"weights"}, "a checkpoint", FORMAT_VERSION)
    try:
        metadata = Metadata.model_validate({key: content[key] for key in Metadata.model_fields})
    except ValidationError as error:
        raise InputError(f"{path}: its metadata are not valid: {': '.join(explain(error, Metadata))}") from error
    checkpoint = Checkpoint(path, metadata.config, metadata.step, metadata.sampling_steps, content["weights"])
    checkpoint.require_own_weights()
    return checkpoint
