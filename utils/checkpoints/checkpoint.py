"""Builds models, and reads and writes checkpoints: EMA weights and everything needed to sample or teach with them."""

import unicodedata
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, ValidationError, model_validator
from safetensors.torch import save
from torch import Tensor

from models.diffusion import Diffusion, Prediction
from utils.checkpoints.tensor_files import read_safetensors, read_torch_file, require_like
from utils.config.reading import differences, explain
from utils.config.schema import LARGEST_SCALE, Config, NonNegativeInt, SamplerSettings, ScaleRange, Section
from utils.system.errors import InputError, first_of
from utils.system.files import exists, find_files, sha256, write_atomically

FORMAT_VERSION = 6
SAFETENSORS, METADATA_KEY = ".safetensors", "progressive_distillation"  # the file suffix; the key of `Metadata` in them


def build_model(
    config: Config, device: torch.device, dropout: float | None = None, *, takes_guidance: bool = False
) -> Diffusion:
    """A model with the architecture of a configuration and random weights; arguments override the configuration."""
    data, diffusion, settings = config.data, config.diffusion, config.network
    if dropout is not None:
        settings = settings.model_copy(update={"dropout": dropout})
    shape = {"image_size": data.image_size, "num_channels": data.num_channels}
    # The weights are drawn on the CPU, so they are the same on every device; the meta device has none.
    with device if device.type == "meta" else nullcontext():
        try:
            network = settings.build(**shape, takes_guidance=takes_guidance)
        except ImportError as error:
            raise InputError(f"network.type: {settings.type} needs a package: pip install {error.name}") from error
        except ValueError as error:
            raise InputError(f"network: {error}") from error
    # Convolutions compute in the memory format channels last.
    network = network.to(device, memory_format=torch.channels_last)
    return Diffusion(network, diffusion.noise_schedule(), diffusion.prediction, takes_guidance, network.timesteps)


class TrainedOn(Section):
    """The training images and classes of a model; class names only if it is class-conditional."""

    data_hash: Annotated[str, Field(max_length=64)]
    class_names: list[Annotated[str, Field(max_length=4096)]]


class Metadata(Section):
    """The contents of a checkpoint besides its path and weights.

    A teacher was trained on images; a converted model has learned from its teacher to predict something else, or to
    take the guidance scale; a student was distilled for `sampling.steps` steps, and so was a matched student, by moment
    matching.
    """

    config: Config
    step: NonNegativeInt
    kind: Literal["teacher", "converted", "student", "matched"]
    sampling: SamplerSettings  # how it is sampled by default
    prediction: Prediction  # of its network
    guidance: ScaleRange | None = None  # the range of guidance scales that its network takes as an input
    trained_on: TrainedOn | None = None

    @model_validator(mode="after")
    def _fits_the_classes(self) -> "Metadata":
        num_classes, names = self.config.network.num_classes, self.known_class_names
        if self.guidance and not num_classes:
            raise ValueError("guidance: needs classes (config.network.num_classes)")
        if names and num_classes and len(names) != num_classes:
            raise ValueError(f"trained_on.class_names: {len(names)}, but config.network.num_classes is {num_classes}")
        return self

    @property
    def is_student(self) -> bool:
        """Whether it was distilled for a number of sampling steps."""
        return self.kind in ("student", "matched")

    @property
    def known_class_names(self) -> list[str]:
        """The names of its classes; empty without classes, or if the names are unknown."""
        return self.trained_on.class_names if self.trained_on else []

    @property
    def class_names(self) -> list[str]:
        """The names of its classes, or their numbers if the names are unknown; empty without classes."""
        return self.known_class_names or [str(number) for number in range(self.config.network.num_classes)]

    @property
    def default_guidance(self) -> float:
        """The guidance scale that it is sampled with by default: the configuration's, or the nearest possible one."""
        return self.nearest_guidance(self.config.sampling.guidance)

    def nearest_guidance(self, scale: float) -> float:
        """The guidance scale nearest to `scale` that it can be sampled with."""
        if self.guidance:
            low, high = self.guidance
            return min(max(scale, low), high)
        has_unconditional = self.config.network.num_classes > 0 and self.config.training.class_dropout > 0
        return scale if has_unconditional and self.kind == "teacher" else 1.0


class Checkpoint(Metadata):
    """A checkpoint that was read from a file."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    path: Path
    weights: dict[str, Tensor]

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file, which identifies a teacher. All ranks must access it together."""
        return sha256(self.path)

    def model(self, device: torch.device, dropout: float = 0.0, *, takes_guidance: bool | None = None) -> Diffusion:
        """The model with the checkpoint's weights, as its own configuration describes it, except for the dropout.

        It is in evaluation mode; a `Trainer` switches to training mode. With `takes_guidance`, its network has the
        layers for the guidance scale in any case; new ones have no effect yet.
        """
        if takes_guidance is None:
            takes_guidance = self.guidance is not None
        model = build_model(self.config, device, dropout, takes_guidance=takes_guidance)
        fresh = {name: weight for name, weight in model.network.state_dict().items() if name not in self.weights}
        model.network.eval().load_state_dict(self.weights | fresh)
        return replace(model, prediction=self.prediction)

    def class_number(self, name: str) -> int:
        """The number of a class, given by its name or its number. Raises InputError if there is no such class."""
        name = unicodedata.normalize("NFC", name)
        if name in self.class_names:
            return self.class_names.index(name)
        if name.isascii() and name.isdigit() and int(name) < len(self.class_names):
            return int(name)
        known = f"its classes are {first_of(self.class_names)}" if self.class_names else "it is unconditional"
        raise InputError(f"class {name}: {self.path} has no such class; {known}")

    def require_same_model(self, config: Config, config_name: str) -> None:
        """Raises InputError if its weights would mean something else under the configuration."""
        for difference in differences(_meaning_of_weights(self.config), _meaning_of_weights(config)):
            raise InputError(f"{self.path}: not the model that {config_name} describes: {difference}")

    def require_trainable_on_images(self, config: Config) -> None:
        """Raises InputError if it has learned from a teacher what training on images cannot teach."""
        predicts = config.diffusion.prediction
        if self.guidance or self.prediction != predicts:
            what = "takes the guidance scale" if self.guidance else f"predicts {self.prediction}, not {predicts}"
            raise InputError(f"{self.path}: a student that {what}; train.py can start from its teacher")

    def require_teacher_of(self, sampling_steps: int) -> None:
        """Raises InputError if it was distilled, but not for twice the steps of its first student."""
        if self.kind == "matched":
            raise InputError(f"{self.path}: was matched for the ancestral sampler; a student of distill.py can teach")
        if self.kind == "student" and self.sampling.steps != 2 * sampling_steps:
            what = f"half of the {self.sampling.steps} steps that {self.path} was distilled for"
            raise InputError(f"--initial_sampling_steps {sampling_steps}: should be {what}")

    def require_same_classes(self, class_names: list[str]) -> None:
        """Raises InputError if the data have other class names than those it was trained with, or another order."""
        known = self.known_class_names
        if not known or not class_names:  # unknown
            return
        for number, (own, other) in enumerate(zip_longest(known, class_names, fillvalue="missing")):
            if own != other:
                raise InputError(f"{self.path}: its class {number} is {own}, and that of the data is {other}")

    def differs_in_images(self, data_hash: str) -> bool:
        """Whether it is known to have been trained on images that differ from these."""
        return self.trained_on is not None and self.trained_on.data_hash != data_hash

    def require_guidance(self, scale: float, key: str = "guidance") -> None:
        """Raises InputError, which names the key, if the model cannot be sampled with a guidance scale."""
        if not 0 <= scale <= LARGEST_SCALE:
            raise InputError(f"{key} {scale:g}: should be from 0 to {LARGEST_SCALE}")
        if self.guidance:
            why = "was distilled for scales from {:g} to {:g}".format(*self.guidance)
        elif self.config.network.num_classes == 0:
            why = "is unconditional (network.num_classes), so only 1 is possible"
        elif self.kind != "teacher":
            why = "was distilled without guidance (distillation.guidance), so only 1 is possible"
        else:
            why = "has no unconditional prediction (training.class_dropout was 0), so only 1 is possible"
        if self.nearest_guidance(scale) != scale:
            raise InputError(f"{key} {scale:g}: {self.path} {why}")


def _meaning_of_weights(config: Config) -> dict[str, Any]:
    """The part of a configuration that must be the same for weights to be exchanged."""
    return {
        "data": config.data.model_dump(include={"image_size", "num_channels"}),
        "network": config.network.model_dump(exclude={"dropout"}),
        "diffusion": config.diffusion.model_dump(),
    }


def save_checkpoint(path: Path, metadata: Metadata, weights: dict[str, Tensor]) -> None:
    """Writes `diffusion-<step>.pt`: plain tensors, numbers and strings."""
    content = {"format_version": FORMAT_VERSION} | metadata.model_dump()
    content["weights"] = {name: weight.cpu() for name, weight in weights.items()}
    write_atomically(path, lambda file: torch.save(content, file))


def save_safetensors(path: Path, checkpoint: Checkpoint, *, half: bool = False) -> None:
    """Writes a checkpoint as a safetensors file, with its metadata as JSON; with `half`, weights in half precision."""
    metadata = Metadata(**{name: getattr(checkpoint, name) for name in Metadata.model_fields})
    weights = {name: weight.contiguous() for name, weight in checkpoint.weights.items()}
    if half:
        weights = {name: weight.half() if weight.is_floating_point() else weight for name, weight in weights.items()}
    content = save(weights, {METADATA_KEY: metadata.model_dump_json(), "format": "pt"})
    write_atomically(path, lambda file: file.write(content))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a `diffusion-<step>.pt`, or a safetensors file. Raises InputError if it is damaged or inconsistent."""
    path = Path(path)
    if not exists(path) and (
        others := find_files(path.parent, "diffusion-*.pt") + find_files(path.parent, f"*{SAFETENSORS}")
    ):
        raise InputError(f"{path}: cannot be read: No such file; there are {first_of([each.name for each in others])}")
    try:
        if path.suffix == SAFETENSORS:
            weights, text = read_safetensors(path)
            if METADATA_KEY not in text:
                raise InputError(f"{path}: not a checkpoint of this project: its metadata have no {METADATA_KEY}")
            metadata = Metadata.model_validate_json(text[METADATA_KEY])
        else:
            keys = Metadata.model_fields.keys() | {"weights"}
            content = read_torch_file(path, FORMAT_VERSION, keys, "a checkpoint")
            weights = content.pop("weights")
            metadata = Metadata.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: its metadata are not valid: {': '.join(explain(error, Metadata))}") from error
    try:  # on the meta device, before any memory is allocated
        model = build_model(metadata.config, torch.device("meta"), takes_guidance=metadata.guidance is not None)
        require_like(weights, model.network.state_dict())
    except ValueError as error:
        raise InputError(f"{path}: its weights do not fit its own configuration: {error}") from error
    return Checkpoint(path=path, weights=weights, **dict(metadata))


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the last step in a run's folder, None if there is none."""
    steps = {path.stem.removeprefix("diffusion-"): path for path in find_files(folder, "diffusion-*.pt")}
    return max(((int(step), path) for step, path in steps.items() if step.isdecimal()), default=(0, None))[1]
