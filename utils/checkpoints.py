"""Checkpoints: the EMA weights of a model and its configuration, enough to sample and to teach with on any device."""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from models.diffusion import Diffusion
from models.noise_schedule import SCHEDULES
from models.unet import UNet
from utils.config import Config, Count, NonNegativeInt, PathText, Section, differences, explain
from utils.errors import InputError
from utils.files import read_torch_file, sha256, write_atomically
from utils.files.torch_file import require_like

FORMAT_VERSION = 2  # version 1 did not say what the model was trained on; it is read, too
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


class TrainedOn(Section):
    """The training images and classes that a model has seen; names of classes only where it is told the class."""

    data_hash: Annotated[str, Field(max_length=64)]
    class_names: list[PathText]


class Metadata(Section):
    """The contents of a `diffusion-<step>.pt` besides the weights."""

    config: Config
    step: NonNegativeInt
    sampling_steps: Count | None
    trained_on: TrainedOn | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A `diffusion-<step>.pt`.

    Attributes:
        sampling_steps: what it was distilled for, None for an undistilled model.
        trained_on: the images, None where the file does not say.
    """

    path: Path
    config: Config
    step: int
    sampling_steps: int | None
    trained_on: TrainedOn | None
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

    def require_same_classes(self, class_names: list[str]) -> None:
        """Refuses a model that has learned other classes, or in another order: it would draw one for the other.

        Raises:
            InputError: naming the first that differs.
        """
        known = self.trained_on.class_names if self.trained_on else []
        for number, (there, here) in enumerate(zip_longest(known, class_names, fillvalue="missing")):
            if known and class_names and there != here:
                raise InputError(
                    f"{self.path}: knows other classes than the data: class {number} is {there} in it and {here} here"
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
    path: Path,
    weights: dict[str, Tensor],
    *,
    config: Config,
    step: int,
    sampling_steps: int | None,
    trained_on: TrainedOn | None,
) -> None:
    """Writes `diffusion-<step>.pt`: plain tensors, numbers and strings."""
    content = {
        "format_version": FORMAT_VERSION,
        "config": config.model_dump(),
        "step": step,
        "sampling_steps": sampling_steps,
        "trained_on": trained_on and trained_on.model_dump(),
        "weights": {name: weight.cpu() for name, weight in weights.items()},
    }
    write_atomically(path, lambda file: torch.save(content, file))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a `diffusion-<step>.pt`.

    Raises:
        InputError: the file is missing, truncated, no checkpoint, of another format version, or its contents are off.
    """
    path = Path(path)
    keys = Metadata.model_fields.keys() | {"weights"}
    content = read_torch_file(path, {1: keys - {"trained_on"}, FORMAT_VERSION: keys}, "a checkpoint")
    try:
        metadata = Metadata.model_validate({key: content[key] for key in content.keys() & Metadata.model_fields.keys()})
    except ValidationError as error:
        raise InputError(f"{path}: its metadata are not valid: {': '.join(explain(error, Metadata))}") from error
    checkpoint = Checkpoint(
        path=path, weights=content["weights"], **{name: getattr(metadata, name) for name in Metadata.model_fields}
    )
    checkpoint.require_own_weights()
    return checkpoint
