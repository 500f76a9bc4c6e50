"""The schema of the configuration: its keys, their types and defaults, and what must fit together.

configs/ddpm_32x32_v_continuous.yaml explains every key; its values are the defaults here.
"""

import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import torch
from PIL import ImageColor
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PositiveFloat,
    Tag,
    model_validator,
)
from torchvision import datasets

from models.diffusion import WEIGHTINGS, Prediction
from models.network import NetworkSettings, Size
from models.noise_schedule import (
    LARGEST_LOGSNR,
    CosineSchedule,
    DiscreteSchedule,
    LinearSchedule,
    NoiseSchedule,
    betas_of,
    rescale_zero_snr,
)
from models.samplers import SAMPLERS
from models.unet import UNetSettings
from models.unet2d import NumTimesteps, UNet2DSettings

# The networks and the data sets of torchvision that a configuration can name. (A class with the arguments `root`,
# `train` and `download`, and the attributes `data`, `targets` and `classes`, needs a line here and nothing else.)
NETWORKS: dict[str, type[NetworkSettings]] = {
    "unet": UNetSettings,
    "unet2d": UNet2DSettings,
}
TORCHVISION = {
    "MNIST": datasets.MNIST,
    "FashionMNIST": datasets.FashionMNIST,
    "CIFAR10": datasets.CIFAR10,
}

LARGEST_SCALE = 100  # of guidance
MOST_STEPS, LARGEST_CLIP = 2**16, 1000  # of a sampler


def _colour(text: str) -> str:
    try:
        ImageColor.getrgb(text)
    except ValueError as error:
        raise ValueError(f"should be a colour, such as black or '#ff8000', not {text!r}") from error
    return text


def _scale_range(scales: object) -> object:
    is_pair = isinstance(scales, list) and len(scales) == 2 and all(type(scale) in (int, float) for scale in scales)
    if not is_pair or scales[0] >= scales[1]:
        raise ValueError(f"should be two numbers, the smaller first, such as [1, 4], not {scales!r:.60}")
    return scales


def _clip(limit: object) -> object:
    if type(limit) is bool or (type(limit) in (int, float) and 0 < limit <= LARGEST_CLIP):
        return limit
    raise ValueError(f"should be true, false or a number up to {LARGEST_CLIP}, not {limit!r:.60}")


def _network_type(value: Any) -> Any:
    return value.get("type", "unet") if isinstance(value, dict) else getattr(value, "type", None)


Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(gt=0, le=2**31)]  # the largest size of a tensor
PathText = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00]*$")]
Colour = Annotated[str, Field(max_length=100), AfterValidator(_colour)]
Logsnr = Annotated[float, Field(ge=-LARGEST_LOGSNR, le=LARGEST_LOGSNR)]
Steps = Annotated[int, Field(gt=0, le=MOST_STEPS)]
Scale = Annotated[float, Field(ge=0, le=LARGEST_SCALE)]  # of guidance
ScaleRange = Annotated[list[Scale], BeforeValidator(_scale_range)]
SamplerName = Literal[*SAMPLERS]
Variance = Literal["small", "large"] | Fraction
Network = Annotated[
    Union[tuple(Annotated[settings, Tag(name)] for name, settings in NETWORKS.items())],  # noqa: UP007 (from a table)
    Discriminator(_network_type),
]


class Section(BaseModel):
    """A part of the configuration: unknown keys and other types than the declared ones are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Data(Section):
    """The data set, and the size and channels of its images."""

    name: Literal[*TORCHVISION, "folder"]
    root: PathText = "data"
    test_root: PathText | None = None
    image_size: Size
    num_channels: Literal[1, 3]
    random_flip: bool = False
    background: Colour = "white"
    most_broken: Fraction = 0.01
    saturation_margin: Fraction = 0.0
    class_names: list[PathText] | None = None


class Betas(Section):
    """The variance that each timestep of a discrete process adds, under the keys of diffusers."""

    num_train_timesteps: NumTimesteps = 1000
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    beta_start: Fraction = 0.0001
    beta_end: Fraction = 0.02
    trained_betas: list[Fraction] | None = None
    rescale_betas_zero_snr: bool = False

    def schedule(self) -> DiscreteSchedule:
        """The noise schedule with these betas."""
        if self.trained_betas is None:
            betas = betas_of(self.beta_schedule, self.num_train_timesteps, self.beta_start, self.beta_end)
        else:
            betas = torch.tensor(self.trained_betas, dtype=torch.float64)
        if self.rescale_betas_zero_snr:
            betas = rescale_zero_snr(betas)
        return DiscreteSchedule(tuple(betas.tolist()))


class DiffusionSettings(Section):
    """What the network predicts, and the noise schedule."""

    prediction: Prediction = "v"
    schedule: Literal["cosine", "linear", "discrete"] = "cosine"
    logsnr_min: Logsnr = -20.0
    logsnr_max: Logsnr = 20.0
    betas: Betas | None = None

    def noise_schedule(self) -> NoiseSchedule:
        """The noise schedule."""
        if self.betas:
            return self.betas.schedule()
        schedules = {"cosine": CosineSchedule, "linear": LinearSchedule}
        return schedules[self.schedule](self.logsnr_min, self.logsnr_max)

    @model_validator(mode="after")
    def fits_together(self) -> "DiffusionSettings":
        """Checks what depends on more than one key."""
        if self.logsnr_min >= self.logsnr_max:
            raise ValueError("diffusion.logsnr_min: must be less than logsnr_max")
        if (self.schedule == "discrete") != (self.betas is not None):
            raise ValueError("diffusion.betas: required by schedule: discrete, and not allowed with another schedule")
        if self.betas and len(self.betas.trained_betas or ()) not in (0, self.betas.num_train_timesteps):
            raise ValueError("diffusion.betas.trained_betas: should be num_train_timesteps numbers")
        if self.betas and not (self.noise_schedule().table.diff() < 0).all():
            raise ValueError("diffusion.betas: each timestep should add noise, and only the last may leave no signal")
        if self.betas and self.prediction == "eps" and self.noise_schedule().betas[-1] == 1:
            raise ValueError("diffusion.prediction: eps does not determine x without signal (rescale_betas_zero_snr)")
        return self


class Optimization(Section):
    """The settings that all trainings share."""

    batch_size: Count = 128
    accumulation_steps: Count = 1
    optimizer: Literal["adam", "muon"] = "adam"
    adam_beta2: Decay = 0.999
    weight_decay: Decay = 0.0
    gradient_clipping: PositiveFloat = 1.0
    ema_decay: Decay = 0.999
    save_and_sample_every_n: Count = 1000
    checkpoint_every_minutes: PositiveFloat = 10.0
    log_every_n: Count = 50
    loggers: Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=10)] = []

    @property
    def section(self) -> str:
        """Its name in the configuration."""
        return type(self).__name__.lower()


class Training(Optimization):
    """The settings of train.py."""

    loss_weighting: Literal[*WEIGHTINGS] = "v_mse"
    num_training_steps: Count = 10_000
    class_dropout: Decay = 0.1
    learning_rate: PositiveFloat = 2e-4
    warmup_steps: NonNegativeInt = 0
    learning_rate_decay: Literal["none", "linear", "cosine"] = "none"

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step: a linear warm-up, then constant or annealed to 0 at the last step."""
        warmup = min(1.0, (step + 1) / (self.warmup_steps + 1))
        left = 1 - step / self.num_training_steps
        decay = {"none": 1.0, "linear": left, "cosine": math.sin(left * math.pi / 2) ** 2}[self.learning_rate_decay]
        return self.learning_rate * warmup * decay


def _by_student(value: object) -> object:
    mapping = value if isinstance(value, dict) else {"default": value}
    if "default" not in mapping:
        raise ValueError("needs a `default` for the other students")
    is_number = re.compile("[0-9]{1,9}").fullmatch  # JSON has only strings as keys
    return {int(key) if isinstance(key, str) and is_number(key) else key: number for key, number in mapping.items()}


# One value for every student, or one for each number of sampling steps and a default for the others.
Student = Literal["default"] | Count
CountByStudent = Annotated[dict[Student, Count], BeforeValidator(_by_student)]
RateByStudent = Annotated[dict[Student, PositiveFloat], BeforeValidator(_by_student)]


class Distillation(Optimization):
    """The settings of distill.py, for each student."""

    ema_decay: Decay = 0.998
    loss_weighting: Literal[*WEIGHTINGS] = "v_mse"
    prediction: Prediction | None = None
    guidance: ScaleRange | None = None
    num_conversion_steps: Count = 5000
    conversion_learning_rate: PositiveFloat = 2e-4
    num_training_steps_per_iteration: CountByStudent = {"default": 5000}
    learning_rate: RateByStudent = {"default": 2e-4}

    def of_student(self, sampling_steps: int) -> tuple[int, float]:
        """The number of training steps, and the first learning rate, of the student of `sampling_steps` steps."""
        values = self.num_training_steps_per_iteration, self.learning_rate
        return tuple(value.get(sampling_steps, value["default"]) for value in values)


class Matching(Optimization):
    """The settings of match.py, for each student; the defaults suit the small networks."""

    num_training_steps: CountByStudent = {"default": 400, 1: 600}
    learning_rate: RateByStudent = {"default": 4e-4, 4: 2e-4, 2: 2e-4, 1: 5e-4}
    auxiliary_learning_rate: RateByStudent = {"default": 1e-3, 1: 2e-3}
    auxiliary_updates: CountByStudent = {"default": 3}
    batch_size: Count = 32
    optimizer: Literal["adam", "muon"] = "muon"
    adam_beta2: Decay = 0.95
    ema_decay: Decay = 0.995
    save_and_sample_every_n: Count = 200

    def of_student(self, sampling_steps: int) -> dict[str, Any]:
        """The settings that depend on a student's number of sampling steps, by name."""
        by_student = {name: value for name, value in dict(self).items() if isinstance(value, dict)}
        return {name: value.get(sampling_steps, value["default"]) for name, value in by_student.items()}


class SamplerOptions(Section):
    """A sampler, and its options."""

    sampler: SamplerName = "ddim"
    variance: Variance = "small"
    clip: Annotated[bool | float, BeforeValidator(_clip)] = False  # or the largest absolute value of x; True is 1


class SamplerSettings(SamplerOptions):
    """How a model is sampled."""

    steps: Steps

    @property
    def variance_fraction(self) -> float:
        """The variance as a number: 0 is small, 1 is large."""
        return {"small": 0.0, "large": 1.0}.get(self.variance, self.variance)


class Sampling(SamplerOptions):
    """The samples of train.py and distill.py, and how a teacher is sampled."""

    guidance: Scale = 1.0
    sampling_steps: Steps = 128
    num_samples: Count = 64
    batch_size: Count = 64

    def of_teacher(self, steps: int) -> SamplerSettings:
        """How a model that is not distilled is sampled in `steps` steps."""
        return SamplerSettings(steps=steps, **self.model_dump(include=set(SamplerOptions.model_fields)))


class Config(Section):
    """The whole configuration."""

    seed: NonNegativeInt = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", True, False] = "auto"
    data: Data
    network: Network = UNetSettings()
    diffusion: DiffusionSettings = DiffusionSettings()
    training: Training = Training()
    distillation: Distillation = Distillation()
    matching: Matching = Matching()
    sampling: Sampling = Sampling()

    @property
    def teacher_sampling(self) -> SamplerSettings:
        """How a model that is not distilled is sampled by default: in 1024 steps, or all timesteps of its network."""
        return self.sampling.of_teacher(min(1024, getattr(self.network, "num_train_timesteps", 1024)))

    @model_validator(mode="after")
    def fits_together(self) -> "Config":
        """Checks what depends on more than one key."""
        self.network.check(self.data.image_size)
        if self.data.class_names and self.data.name != "folder":
            raise ValueError(f"data.class_names: only for name: folder; {self.data.name} has its own")
        if self.data.name == "folder" and self.data.test_root:
            paths = self.data.root, self.data.test_root
            root, test_root = (Path(os.path.realpath(os.path.expanduser(path))) for path in paths)
            if root in (test_root, *test_root.parents) or test_root in root.parents:
                raise ValueError("data.test_root: must not be inside data.root, nor around it: they may share no image")
        timesteps, betas = getattr(self.network, "num_train_timesteps", None), self.diffusion.betas
        if timesteps and betas and timesteps != betas.num_train_timesteps:
            raise ValueError(
                f"network.num_train_timesteps: {timesteps}, but diffusion.betas has {betas.num_train_timesteps}"
            )
        scale, scales = self.sampling.guidance, self.distillation.guidance
        if scales and not scales[0] <= scale <= scales[1]:
            raise ValueError(f"sampling.guidance: {scale:g} is not in the range of distillation.guidance, {scales}")
        for wrong, name in ((scales, "distillation.guidance"), (scale != 1, "sampling.guidance")):
            if wrong and not (self.network.num_classes and self.training.class_dropout):
                raise ValueError(f"{name}: needs classes (network.num_classes), and a training.class_dropout above 0")
        return self
