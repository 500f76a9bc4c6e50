"""The `UNet2DModel` of diffusers (https://github.com/huggingface/diffusers) as an alternative to our U-Net."""

from contextlib import nullcontext
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from models.blocks import embed_guidance, embed_label, guidance_layers
from models.network import NetworkSettings, Size

DownBlock = Literal["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]
UpBlock = Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]
Resampling = Literal["conv", "resnet"]
NumTimesteps = Annotated[int, Field(ge=2, le=10_000)]


class UNet2DSettings(NetworkSettings):
    """The keys of a `UNet2DModel`, with diffusers' defaults; `num_class_embeds` is called `num_classes` here."""

    type: Literal["unet2d"]
    num_train_timesteps: NumTimesteps = 1000  # T; a timestep is at most T - 1, and not necessarily an integer
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
    act_fn: Literal["silu", "swish", "mish", "gelu", "relu"] = "silu"
    attention_head_dim: Size | None = 8
    norm_num_groups: Size = 32
    attn_norm_num_groups: Size | None = None
    norm_eps: PositiveFloat = 1e-5
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    add_attention: bool = True

    def check(self, image_size: int) -> None:
        """Raises ValueError if the network cannot halve such images often enough, or groups do not divide channels."""
        channels, levels = self.block_out_channels, len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types"):
            if len(getattr(self, name)) != levels:
                raise ValueError(f"network.{name}: should be {levels}, one for each of block_out_channels")
        if image_size % 2 ** (levels - 1):
            raise ValueError(f"data.image_size: {image_size} is not divisible by {2 ** (levels - 1)} ({levels} levels)")
        blocks = [*zip(self.down_block_types, channels, strict=True)]
        blocks += zip(self.up_block_types, channels[::-1], strict=True)
        attention = [c for block, c in blocks if block.startswith("Attn")]
        attention += [channels[-1]] if self.mid_block_type and self.add_attention else []
        head = self.attention_head_dim or 0
        if attention and head > min(attention):
            raise ValueError(f"network.attention_head_dim: {head} is more than {min(attention)} channels")
        for key, normed in (("norm_num_groups", channels), ("attn_norm_num_groups", channels[-1:])):
            groups = getattr(self, key) or 1
            for each in (each for each in normed if each % groups):
                raise ValueError(f"network.{key}: {groups} does not divide {each} channels")

    def build(self, *, image_size: int, num_channels: int, takes_guidance: bool = False) -> "UNet2D":
        """The network with random weights."""
        return UNet2D(self, image_size=image_size, num_channels=num_channels, takes_guidance=takes_guidance)


class UNet2D(nn.Module):
    """v(z, timestep[, label]), or eps or x, by a `UNet2DModel`. The attributes are those of `Network`.

    The class and the guidance scale are embedded here, and the sum of both takes the place of the class embedding of a
    `UNet2DModel`. As in our U-Net, the unconditional embedding is zero. The dropout of a `UNet2DModel` ignores
    `first_example`.
    """

    def __init__(self, settings: UNet2DSettings, *, image_size: int, num_channels: int, takes_guidance: bool = False):
        from diffusers import UNet2DModel  # optional, and takes seconds

        super().__init__()
        self.bfloat16, self.timesteps, self.first_example = False, settings.num_train_timesteps, 0
        self.num_classes = num_classes = settings.num_classes
        self.unet = UNet2DModel(
            sample_size=image_size,
            in_channels=num_channels,
            out_channels=num_channels,
            class_embed_type="identity" if num_classes else None,  # adds the given vector
            **settings.model_dump(exclude={"type", "num_classes", "num_train_timesteps"}),
        )
        self.features = settings.block_out_channels[0] // 2 * 2  # even, for sines and cosines
        embedding = self.unet.time_embedding.linear_2.out_features
        self.embed_label = nn.Embedding(num_classes, embedding) if num_classes else None
        self.embed_guidance = guidance_layers(self.features, embedding) if takes_guidance else None

    def forward(
        self, z: Tensor, timestep: Tensor, label: Tensor | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        """The prediction: see `Network`. The timestep is not necessarily an integer."""
        vector = None
        if self.embed_label is not None:
            vector = embed_label(self.embed_label, label)
        if self.embed_guidance is not None:
            vector = vector + embed_guidance(self.embed_guidance, guidance, self.features)
        with torch.autocast(z.device.type, torch.bfloat16) if self.bfloat16 else nullcontext():
            return self.unet(z, timestep, vector, return_dict=False)[0].float()

    def muon_parameters(self) -> list[nn.Parameter]:
        """The weights of convolutions and attention (to_q, to_k, ...), except the input and output layers."""
        layers = {name: layer for name, layer in self.unet.named_modules() if name not in ("conv_in", "conv_out")}
        attention = [layer for name, layer in layers.items() if isinstance(layer, nn.Linear) and ".to_" in name]
        convolutions = [layer for layer in layers.values() if isinstance(layer, nn.Conv2d)]
        return [layer.weight for layer in convolutions + attention]

    def for_inference(self) -> "UNet2D":
        """See `Network`."""
        return self.eval().requires_grad_(False)
