"""The interface of a network, and the base class of its settings.

To add a network, add one file to this folder, and one line to `NETWORKS` in utils/config/schema.py.
"""

from typing import Annotated, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

Size = Annotated[int, Field(gt=0, le=8192)]  # no real network is larger; a malicious checkpoint might be
NumClasses = Annotated[int, Field(ge=0, le=2**20)]


class Network(Protocol):
    """An `nn.Module` that predicts v, eps or x."""

    bfloat16: bool  # whether it computes in bfloat16 where that is safe; inputs, output and trained weights are float32
    timesteps: int | None  # T if it is conditioned on the timestep k = T t - 1 of a process, None if on logsnr
    first_example: int | Tensor  # the index in the global batch of the first image of the next call, for `Dropout`

    def __call__(self, z: Tensor, time: Tensor, label: Tensor | None, guidance: Tensor | None = None) -> Tensor:
        """The prediction, in the shape of z [B, C, H, W].

        `time` [B] is logsnr or a timestep; `label` [B] is a class or `UNCONDITIONAL`, None in a network without
        classes; `guidance` [B] is the guidance scale, None in a network that does not take it.
        """
        ...

    def muon_parameters(self) -> list[nn.Parameter]:
        """The weights that the optimizer Muon may train: matrices and convolutions inside the network."""
        ...

    def for_inference(self) -> Self:
        """The same network, in place, without dropout or gradients."""
        ...


class NetworkSettings(BaseModel):
    """The settings of a network, strictly typed. Each subclass has a key `type` that selects it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    num_classes: NumClasses = 0  # 0 for an unconditional network
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def check(self, image_size: int) -> None:
        """Raises ValueError, which names the key, if the network cannot take images of this size."""

    def build(self, *, image_size: int, num_channels: int, takes_guidance: bool = False) -> nn.Module:
        """The `Network` with random weights. Raises ImportError for a missing package, ValueError for bad settings."""
        raise NotImplementedError
