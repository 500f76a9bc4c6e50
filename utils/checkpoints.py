"""Checkpoints: the EMA weights of a model and its configuration, enough to sample and to teach with on any device."""

import difflib
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
from models.guidance import evaluations_per_step
from models.noise_schedule import SCHEDULES
from models.unet import UNet
from utils.config import differences, explain
from utils.errors import InputError, first_of
from utils.files import read_torch_file, sha256, write_atomically
from utils.files.torch_file import require_like
from utils.schema import LARGEST_SCALE, Config, Count, NonNegativeInt, ScaleRange, Section

FORMAT_VERSION = 2  # version 1 did not say what the model was trained on; it is read, too
UNDISTILLED_SAMPLING_STEPS = 1024


def build_model(
    config: Config, device: torch.device, dropout: float | None = None, *, takes_guidance: bool = False
) -> Diffusion:
    """A model with the architecture of a configuration and random weights; `dropout` replaces the configuration's."""
    settings = config.network.model_dump()
    if dropout is not None:
        settings["dropout"] = dropout
    # The weights are drawn on the CPU, so as to be the same for every device; on the meta device there are none.
    with device if device.type == "meta" else nullcontext():
        shape = {"image_size": config.data.image_size, "num_channels": config.data.num_channels}
        network = UNet(**shape, **settings, takes_guidance=takes_guidance)
    diffusion = config.diffusion
    schedule = SCHEDULES[diffusion.schedule](diffusion.logsnr_min, diffusion.logsnr_max)
    # Channels last is the layout that convolutions compute in.
    network = network.to(device, memory_format=torch.channels_last)
    return Diffusion(network, schedule, diffusion.prediction, takes_guidance)


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
    class_names: list[Annotated[str, Field(max_length=4096)]]


class Metadata(Section):
    """The contents of a `diffusion-<step>.pt` besides the weights."""

    config: Config
    step: NonNegativeInt
    sampling_steps: Count | None
    guidance: ScaleRange | None = None
    trained_on: TrainedOn | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A `diffusion-<step>.pt`.

    Attributes:
        sampling_steps: what it was distilled for, None for an undistilled model.
        guidance: the range of guidance scales that it was distilled for, None for a model that does not take any.
        trained_on: the images, None where the file does not say.
    """

    path: Path
    config: Config
    step: int
    sampling_steps: int | None
    guidance: list[float] | None
    trained_on: TrainedOn | None
    weights: dict[str, Tensor]

    @property
    def default_sampling_steps(self) -> int:
        """The number of steps to sample it with."""
        return self.sampling_steps or UNDISTILLED_SAMPLING_STEPS

    @property
    def default_guidance(self) -> float:
        """The guidance scale to sample it with: that of its configuration, or the nearest that it can be given."""
        return possible_guidance(self.config, self.sampling_steps, self.guidance, self.config.sampling.guidance)

    def evaluations_per_step(self, guidance: float) -> int:
        """How often its network is evaluated in a step of a sampler, at a guidance scale."""
        return evaluations_per_step(guidance, takes_guidance=self.guidance is not None)

    @property
    def class_names(self) -> list[str]:
        """The names of the classes that it knows, or their numbers where it does not say; none without classes."""
        return class_names_of(self.config, self.trained_on)

    def class_number(self, name: str) -> int:
        """The number of a class that is given by its name, or by its number.

        Raises:
            InputError: it knows no such class.
        """
        if name in self.class_names:
            return self.class_names.index(name)
        if name.isascii() and name.isdigit() and int(name) < len(self.class_names):
            return int(name)
        close = difflib.get_close_matches(name, self.class_names, n=1)
        known = first_of(self.class_names)
        hint = f"did you mean {close[0]}?" if close else f"it knows {known}" if known else "it was told none"
        raise InputError(f"class {name}: {self.path} knows no such class; {hint}")

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
        if not known or not class_names:  # it does not say
            return
        for number, (there, here) in enumerate(zip_longest(known, class_names, fillvalue="missing")):
            if there != here:
                raise InputError(
                    f"{self.path}: knows other classes than the data: class {number} is {there} in it and {here} here"
                )

    def has_seen_other_images(self, data_hash: str) -> bool:
        """Whether the file says that it was trained on other images than these."""
        return self.trained_on is not None and self.trained_on.data_hash != data_hash

    def require_own_weights(self) -> None:
        """Refuses weights of another architecture than the configuration's, before any memory is taken for it.

        Raises:
            InputError: naming the first that differs.
        """
        try:
            model = build_model(self.config, torch.device("meta"), takes_guidance=self.guidance is not None)
            require_like(self.weights, model.network.state_dict())
        except ValueError as error:
            raise InputError(f"{self.path}: its weights do not fit its own configuration: {error}") from error

    def model(self, device: torch.device, dropout: float = 0.0, *, takes_guidance: bool | None = None) -> Diffusion:
        """The model with the checkpoint's weights, as its own configuration describes it, but for the dropout.

        It is in evaluation mode; a `Trainer` puts what it trains into training mode. With `takes_guidance`, its network
        has the layers for that in any case, and they do nothing yet.
        """
        if takes_guidance is None:
            takes_guidance = self.guidance is not None
        model = build_model(self.config, device, dropout, takes_guidance=takes_guidance)
        fresh = {name: weight for name, weight in model.network.state_dict().items() if name not in self.weights}
        model.network.eval().load_state_dict(self.weights | fresh)
        return model

    def require_guidance(self, scale: float) -> None:
        """Refuses a guidance scale that the model cannot be sampled with.

        Raises:
            InputError: naming the scale and what would be right.
        """
        if not 0 <= scale <= LARGEST_SCALE:
            raise InputError(f"guidance {scale:g}: should be from 0 to {LARGEST_SCALE}")
        nearest = possible_guidance(self.config, self.sampling_steps, self.guidance, scale)
        if nearest == scale:
            return
        if self.guidance:
            why = f"was distilled for scales from {self.guidance[0]:g} to {self.guidance[1]:g}"
        elif self.sampling_steps:
            why = "was distilled without guidance (distillation.guidance), so only 1 is possible"
        else:
            why = "has not learned what no class is (training.class_dropout), so only 1 is possible"
        raise InputError(f"guidance {scale:g}: {self.path} {why}")


def class_names_of(config: Config, trained_on: TrainedOn | None) -> list[str]:
    """The names of the classes that a model is told, or their numbers where nothing says; none without classes."""
    names = trained_on.class_names if trained_on else []
    return names or [str(number) for number in range(config.network.num_classes)]


def possible_guidance(config: Config, sampling_steps: int | None, guidance: list[float] | None, scale: float) -> float:
    """The guidance scale nearest to `scale` that a model can be sampled with; its parts as in `Checkpoint`."""
    if guidance:
        low, high = guidance
        return min(max(scale, low), high)
    knows_none = config.network.num_classes > 0 and config.training.class_dropout > 0 and sampling_steps is None
    return scale if knows_none else 1.0


def save_checkpoint(
    path: Path,
    weights: dict[str, Tensor],
    *,
    config: Config,
    step: int,
    sampling_steps: int | None,
    guidance: list[float] | None = None,
    trained_on: TrainedOn | None = None,
) -> None:
    """Writes `diffusion-<step>.pt`: plain tensors, numbers and strings."""
    content = {
        "format_version": FORMAT_VERSION,
        "config": config.model_dump(),
        "step": step,
        "sampling_steps": sampling_steps,
        "guidance": guidance,
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
    content = read_torch_file(path, {1: keys - {"guidance", "trained_on"}, FORMAT_VERSION: keys}, "a checkpoint")
    if "trained_on" not in content:
        _was_always_told_the_class(content["config"])
    try:
        metadata = Metadata.model_validate({key: content[key] for key in content.keys() & Metadata.model_fields.keys()})
    except ValidationError as error:
        raise InputError(f"{path}: its metadata are not valid: {': '.join(explain(error, Metadata))}") from error
    checkpoint = Checkpoint(
        path=path, weights=content["weights"], **{name: getattr(metadata, name) for name in Metadata.model_fields}
    )
    checkpoint.require_own_weights()
    return checkpoint


def _was_always_told_the_class(config: object) -> None:
    """Puts into a configuration of the first format what was not yet to be chosen, and now has another default."""
    training = config.get("training") if isinstance(config, dict) else None
    if isinstance(training, dict):
        training["class_dropout"] = 0.0
