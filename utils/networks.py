"""The architectures that a configuration can name under `network`, by `type`."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveFloat, Tag

from utils.sections import Decay, Section, Size

NumClasses = Annotated[int, Field(ge=0, le=2**20)]
NumTimesteps = Annotated[int, Field(ge=2, le=10_000)]
DownBlock = Literal["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]
UpBlock = Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]
Resampling = Literal["conv", "resnet"]


class OurUNet(Section):
    """The architecture of our U-Net: see models/unet.py."""

    type: Literal["unet"] = "unet"
    features: Annotated[Size, Field(multiple_of=2)] = 128
    multipliers: Annotated[list[Annotated[int, Field(gt=0, le=64)]], Field(min_length=1, max_length=12)] = [1, 2, 2, 2]
    num_residual_blocks: Annotated[int, Field(gt=0, le=64)] = 2
    attention_resolutions: Annotated[list[Size], Field(max_length=12)] = [16]
    num_heads: Size = 1
    resample_blocks: bool = False
    patch_size: Size = 1
    dropout: Decay = 0.1
    time_scale: PositiveFloat = 1000.0
    num_classes: NumClasses = 0

    def require_fitting(self, image_size: int) -> None:
        """Refuses images that the network cannot halve as often as it does, and attention where there is none.

        Raises:
            ValueError: naming the key.
        """
        downsampling = self.patch_size * 2 ** (len(self.multipliers) - 1)
        if image_size % downsampling:
            raise ValueError(
                f"data.image_size: {image_size} cannot be divided by {downsampling}, "
                f"as patch_size {self.patch_size} and {len(self.multipliers)} levels need"
            )
        sizes = {image_size // self.patch_size // 2**level: m for level, m in enumerate(self.multipliers)}
        for resolution in self.attention_resolutions:
            if resolution not in sizes:
                known = ", ".join(map(str, sizes))
                raise ValueError(f"network.attention_resolutions: {resolution} is none of the network's sizes, {known}")
        for resolution in [*self.attention_resolutions, min(sizes)]:
            if (self.features * sizes[resolution]) % self.num_heads:
                raise ValueError(
                    f"network.num_heads: {self.num_heads} does not divide the "
                    f"{self.features * sizes[resolution]} channels at {resolution}x{resolution}"
                )


class DiffusersUNet(Section):
    """The architecture of a `UNet2DModel` of diffusers, by its own keys and defaults; see models/unet2d.py.

    The sizes and channels of its images are those of the data, its `num_class_embeds` is `num_classes`. What it is
    told of time is the timestep, of so many: `num_train_timesteps`.
    """

    type: Literal["unet2d"]
    num_classes: NumClasses = 0
    num_train_timesteps: NumTimesteps = 1000
    center_input_sample: bool = False
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: Size | None = None
    freq_shift: Annotated[int, Field(ge=0, le=1)] = 0
    flip_sin_to_cos: bool = True
    down_block_types: Annotated[list[DownBlock], Field(min_length=1, max_length=12)] = ["DownBlock2D"] + 3 * [
        "AttnDownBlock2D"
    ]
    mid_block_type: Literal["UNetMidBlock2D"] | None = "UNetMidBlock2D"
    up_block_types: Annotated[list[UpBlock], Field(min_length=1, max_length=12)] = 3 * ["AttnUpBlock2D"] + ["UpBlock2D"]
    block_out_channels: Annotated[list[Size], Field(min_length=1, max_length=12)] = [224, 448, 672, 896]
    layers_per_block: Annotated[int, Field(gt=0, le=64)] = 2
    mid_block_scale_factor: PositiveFloat = 1.0
    downsample_padding: Annotated[int, Field(ge=0, le=1)] = 1
    downsample_type: Resampling = "conv"
    upsample_type: Resampling = "conv"
    dropout: Decay = 0.0
    act_fn: Literal["silu", "swish", "mish", "gelu", "relu"] = "silu"
    attention_head_dim: Size | None = 8
    norm_num_groups: Size = 32
    attn_norm_num_groups: Size | None = None
    norm_eps: PositiveFloat = 1e-5
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    add_attention: bool = True

    def require_fitting(self, image_size: int) -> None:
        """Refuses images that the network cannot halve as often as it does, and channels that its norms cannot divide.

        Raises:
            ValueError: naming the key.
        """
        channels, levels = self.block_out_channels, len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types"):
            if len(getattr(self, name)) != levels:
                raise ValueError(f"network.{name}: should be {levels}, one for each of block_out_channels")
        if image_size % 2 ** (levels - 1):
            raise ValueError(
                f"data.image_size: {image_size} cannot be divided by {2 ** (levels - 1)}, as {levels} levels need"
            )
        attention = [c for block, c in zip(self.down_block_types, channels, strict=True) if block.startswith("Attn")]
        attention += [
            c for block, c in zip(self.up_block_types, channels[::-1], strict=True) if block.startswith("Attn")
        ]
        attention += [channels[-1]] if self.mid_block_type and self.add_attention else []
        if self.attention_head_dim and self.attention_head_dim > min(attention, default=self.attention_head_dim):
            raise ValueError(
                f"network.attention_head_dim: {self.attention_head_dim} is more than {min(attention)} channels"
            )
        if self.attn_norm_num_groups and channels[-1] % self.attn_norm_num_groups:
            raise ValueError(
                f"network.attn_norm_num_groups: {self.attn_norm_num_groups} does not divide {channels[-1]} channels"
            )
        wrong = next((c for c in channels if c % self.norm_num_groups), None)
        if wrong:
            raise ValueError(
                f"network.norm_num_groups: {self.norm_num_groups} does not divide {wrong} of block_out_channels"
            )


NETWORKS: dict[str, type[Section]] = {"unet": OurUNet, "unet2d": DiffusersUNet}


def _type_of_network(value: Any) -> Any:
    return value.get("type", "unet") if isinstance(value, dict) else getattr(value, "type", None)


Network = Annotated[
    Annotated[OurUNet, Tag("unet")] | Annotated[DiffusersUNet, Tag("unet2d")], Discriminator(_type_of_network)
]
