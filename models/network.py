"""What a network must offer, and the base of its settings. A further network is one file in this folder.

Its settings class names its keys in the YAML, and builds it; a line of `NETWORKS` in utils/config/schema.py lists it.
"""

from typing import Annotated, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

Size = Annotated[int, Field(gt=0, le=8192)]  # larger networks do not fit anywhere; a checkpoint could be malicious
NumClasses = Annotated[int, Field(ge=0, le=2**20)]


class Network(Protocol):
    """An `nn.Module` that predicts v, eps or x.

    Attributes:
        bfloat16: whether it computes in bfloat16 where that is safe; weights, inputs and output stay float32.
        timesteps: None if it is conditioned on logsnr; a network of a discrete process with T timesteps has T, and is
            conditioned on the timestep, k = T t - 1.
        first_example: the index in the global batch of the first image of the next call, for `Dropout`.
    """

    bfloat16: bool
    timesteps: int | None
    first_example: int | Tensor

    def __call__(self, z: Tensor, time: Tensor, label: Tensor | None = None, guidance: Tensor | None = None) -> Tensor:
        """The prediction, in the shape of z [B, C, H, W].

        `time` [B] is logsnr or a timestep; `label` [B] is a class or `UNCONDITIONAL`, None in a network without
        classes; `guidance` [B] is the guidance scale, None in a network that is not conditioned on it.
        """
        ...

    def muon_parameters(self) -> list[nn.Parameter]:
        """The weights that the optimizer Muon may train: matrices and convolutions inside the network."""
        ...

    def for_inference(self) -> Self:
        """The same network, in place, without dropout and gradients."""
        ...


class NetworkSettings(BaseModel):
    """The settings of a network: strict types, unknown keys are errors. Each has a `type` that names it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    num_classes: NumClasses = 0

    def check(self, image_size: int) -> None:
        """Raises ValueError, which names the key, if the network cannot take images of this size."""
        raise NotImplementedError

    def build(self, *, image_size: int, num_channels: int, takes_guidance: bool, dropout: float | None) -> nn.Module:
        """A `Network` with random weights; `dropout` replaces its own.

        Raises:
            ImportError: it needs a package that is not installed.
            ValueError: the settings do not fit together.
        """
        raise NotImplementedError

    def arguments(self, dropout: float | None) -> dict:
        """The settings as keyword arguments of the network's constructor."""
        settings = self.model_dump(exclude={"type"})
        return settings if dropout is None else settings | {"dropout": dropout}
