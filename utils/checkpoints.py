"""Checkpoints: the EMA weights of a model and its configuration, enough to sample and to teach with on any device."""

import difflib
import unicodedata
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from models.diffusion import Diffusion, Prediction
from models.guidance import evaluations_per_step
from models.unet import UNet
from models.unet2d import UNet2D
from utils.config import differences
from utils.errors import InputError, first_of
from utils.files import sha256
from utils.files.torch_file import require_like
from utils.schema import LARGEST_SCALE, Config, ScaleRange
from utils.sections import Count, NonNegativeInt, Section

UNDISTILLED_SAMPLING_STEPS = 1024


def build_model(
    config: Config,
    device: torch.device,
    dropout: float | None = None,
    *,
    prediction: Prediction | None = None,
    takes_guidance: bool = False,
) -> Diffusion:
    """A model with the architecture of a configuration and random weights.

    `dropout` and `prediction` replace the configuration's.

    Raises:
        InputError: its network is one of diffusers, which is not installed, or does not build such a network.
    """
    settings = config.network.model_dump(exclude={"type", "num_train_timesteps"})
    settings |= {"image_size": config.data.image_size, "num_channels": config.data.num_channels}
    if dropout is not None:
        settings["dropout"] = dropout
    diffusion, timesteps = config.diffusion, getattr(config.network, "num_train_timesteps", None)
    # The weights are drawn on the CPU, so as to be the same for every device; on the meta device there are none.
    with device if device.type == "meta" else nullcontext():
        try:
            network = {"unet": UNet, "unet2d": UNet2D}[config.network.type](**settings, takes_guidance=takes_guidance)
        except ImportError as error:
            raise InputError("network.type: unet2d is a network of diffusers: pip install diffusers") from error
        except ValueError as error:
            raise InputError(f"network: {error}") from error
    # Channels last is the layout that convolutions compute in.
    network = network.to(device, memory_format=torch.channels_last)
    prediction = prediction or diffusion.prediction
    return Diffusion(network, diffusion.noise_schedule(), prediction, takes_guidance, timesteps)


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
    prediction: Prediction | None = None
    guidance: ScaleRange | None = None
    trained_on: TrainedOn | None = None

    @model_validator(mode="after")
    def has_classes_to_guide_to(self) -> "Metadata":
        """Refuses guidance without classes."""
        if self.guidance and not self.config.network.num_classes:
            raise ValueError("guidance: there are no classes to guide to (config.network.num_classes)")
        return self


@dataclass(frozen=True)
class Checkpoint:
    """A `diffusion-<step>.pt`.

    Attributes:
        sampling_steps: what it was distilled for, None for an undistilled model.
        prediction: what it has learned to predict instead of what the configuration says; None if it has not.
        guidance: the range of guidance scales that it was distilled for, None for a model that does not take any.
        trained_on: the images, None where the file does not say.
    """

    path: Path
    config: Config
    step: int
    sampling_steps: int | None
    prediction: Prediction | None
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
        return possible_guidance(self.config, self.undistilled, self.guidance, self.config.sampling.guidance)

    @property
    def predicts(self) -> Prediction:
        """What its network predicts."""
        return self.prediction or self.config.diffusion.prediction

    @property
    def undistilled(self) -> bool:
        """Whether it has been trained on images alone, and not by a teacher."""
        return (self.sampling_steps, self.prediction, self.guidance) == (None, None, None)

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
        name = unicodedata.normalize("NFC", name)
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

    def require_beginning_of(self, config: Config) -> None:
        """Refuses to be trained on images alone where it has learned from its teacher to be something else.

        Raises:
            InputError: it takes the guidance scale, or predicts something else.
        """
        predicts = config.diffusion.prediction
        if self.guidance or self.predicts != predicts:
            what = "takes the guidance scale" if self.guidance else f"predicts {self.predicts}, and not {predicts}"
            raise InputError(f"{self.path}: a student that {what}; train.py can begin with its teacher")

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
            takes_guidance = self.guidance is not None
            model = build_model(self.config, torch.device("meta"), takes_guidance=takes_guidance)
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
        options = {"prediction": self.prediction, "takes_guidance": takes_guidance}
        model = build_model(self.config, device, dropout, **options)
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
        nearest = possible_guidance(self.config, self.undistilled, self.guidance, scale)
        if nearest == scale:
            return
        if self.guidance:
            why = f"was distilled for scales from {self.guidance[0]:g} to {self.guidance[1]:g}"
        elif self.config.network.num_classes == 0:
            why = "is told no classes (network.num_classes), so there is nothing to guide it to, and only 1 is possible"
        elif not self.undistilled:
            why = "was distilled without guidance (distillation.guidance), so only 1 is possible"
        else:
            why = "has not learned what no class is (training.class_dropout), so only 1 is possible"
        raise InputError(f"guidance {scale:g}: {self.path} {why}")


def class_names_of(config: Config, trained_on: TrainedOn | None) -> list[str]:
    """The names of the classes that a model is told, or their numbers where nothing says; none without classes."""
    names = trained_on.class_names if trained_on else []
    return names or [str(number) for number in range(config.network.num_classes)]


def possible_guidance(config: Config, undistilled: bool, guidance: list[float] | None, scale: float) -> float:
    """The guidance scale nearest to `scale` that a model can be sampled with; its parts as in `Checkpoint`."""
    if guidance:
        low, high = guidance
        return min(max(scale, low), high)
    knows_none = config.network.num_classes > 0 and config.training.class_dropout > 0 and undistilled
    return scale if knows_none else 1.0
