"""The U-Net, conditioned on the noise level and the class (Ho et al. 2020; Nichol & Dhariwal 2021).

Each level on the way down halves the resolution and keeps its feature maps; each level on the way up doubles it and
concatenates the kept ones (skip connections). The noise level scales and shifts the activations of every block, and of
the last norm. Unlike theirs, a block has one norm instead of two, without weights, and the middle one block instead of
two. That is faster, and as good (docs/experiments.md).

A skip connection past all layers adds z, times a factor that depends on the noise level, to the output. It helps since
v = cot(phi) z - x / sin(phi): wherever x is easy to predict, as in the background of a digit, v is a multiple of z plus
a constant. Without the skip, the noise in z must pass through every norm and activation, and the errors made there
remain visible in the samples. (Karras et al. 2022, section 5, have such a skip; Peebles & Xie 2023 condition their last
norm, too.)
"""

import math
from contextlib import nullcontext
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from models.blocks import (
    Attention,
    ResidualBlock,
    embed_guidance,
    embed_label,
    guidance_layers,
    layer_norm,
    modulate,
    sinusoids,
    zero_init,
)
from models.network import NetworkSettings, Size
from models.noise_schedule import angle_of


class UNetSettings(NetworkSettings):
    """The keys of our U-Net, which configs/ddpm_32x32_v_continuous.yaml explains."""

    type: Literal["unet"] = "unet"
    features: Annotated[Size, Field(multiple_of=2)] = 128
    multipliers: Annotated[list[Annotated[int, Field(gt=0, le=64)]], Field(min_length=1, max_length=12)] = [1, 2, 2, 2]
    num_residual_blocks: Annotated[int, Field(gt=0, le=64)] = 2
    attention_resolutions: Annotated[list[Size], Field(max_length=12)] = [16]
    num_heads: Size = 1
    resample_blocks: bool = False
    patch_size: Size = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    time_scale: PositiveFloat = 1000.0

    def check(self, image_size: int) -> None:
        """Raises ValueError if the network cannot halve such images often enough, or heads do not divide channels."""
        downsampling = self.patch_size * 2 ** (len(self.multipliers) - 1)
        if image_size % downsampling:
            raise ValueError(
                f"data.image_size: {image_size} is not divisible by {downsampling}, "
                f"as patch_size {self.patch_size} and {len(self.multipliers)} levels need"
            )
        channels = {
            image_size // self.patch_size // 2**level: m * self.features for level, m in enumerate(self.multipliers)
        }
        for size in [*self.attention_resolutions, min(channels)]:  # the middle always has attention
            if size not in channels:
                known = ", ".join(map(str, channels))
                raise ValueError(f"network.attention_resolutions: {size}; the feature maps have the sizes {known}")
            if channels[size] % self.num_heads:
                raise ValueError(f"network.num_heads: {self.num_heads} does not divide {channels[size]} channels")

    def build(self, *, image_size: int, num_channels: int, takes_guidance: bool = False) -> "UNet":
        """The network with random weights."""
        return UNet(self, image_size=image_size, num_channels=num_channels, takes_guidance=takes_guidance)


class AttentionBlock(nn.Module):
    """A residual block, followed by attention if `attend` is set."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float, num_heads: int, attend: bool):
        super().__init__()
        self.block = ResidualBlock(in_channels, out_channels, dropout)
        self.attention = Attention(out_channels, num_heads) if attend else nn.Identity()

    def forward(self, h: Tensor, scale_shift: Tensor, index: Tensor) -> Tensor:
        """h [B, in_channels, H, W], [B, 2 out_channels] and indices [B] to [B, out_channels, H, W]."""
        return self.attention(self.block(h, scale_shift, index))


class UNet(nn.Module):
    """v(z, logsnr[, label]), or eps or x: whatever it is trained to predict. The attributes are those of `Network`.

    If `bfloat16` is set, the layers up to the last norm compute in bfloat16. These stay float32: the embedding of the
    noise level, and the layers from the last norm on, where rounding would remain visible in the sample. Weights stay
    float32 in training; `for_inference` casts those of the bfloat16 layers.

    The sinusoids of the noise angle have long periods: with a `time_scale` of 1 the network is hardly conditioned on
    the time, yet the loss hardly shows it. (The authors' scale: 1000.)
    """

    def __init__(self, settings: UNetSettings, *, image_size: int, num_channels: int, takes_guidance: bool = False):
        super().__init__()
        self.bfloat16, self.timesteps = False, None
        self.first_example: int | Tensor = 0
        features, multipliers, patch_size = settings.features, settings.multipliers, settings.patch_size
        self.features, self.patch_size, self.time_scale = features, patch_size, settings.time_scale
        self.num_classes, num_residual_blocks = settings.num_classes, settings.num_residual_blocks
        self.downsampling = patch_size * 2 ** (len(multipliers) - 1)
        embedding, dropout, num_heads = 4 * features, settings.dropout, settings.num_heads
        self.embed_time = nn.Sequential(nn.Linear(features, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.embed_label = nn.Embedding(self.num_classes, embedding) if self.num_classes else None
        self.embed_guidance = guidance_layers(features, embedding) if takes_guidance else None

        def block(in_channels: int, out_channels: int, size: int) -> AttentionBlock:
            attend = size in settings.attention_resolutions
            return AttentionBlock(in_channels, out_channels, dropout, num_heads, attend)

        size, channels = image_size // patch_size, features
        self.conv_in = nn.Conv2d(num_channels * patch_size**2, channels, 3, padding=1)
        kept = [channels]
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            if level > 0:
                self.down.append(
                    ResidualBlock(channels, channels, dropout, "down")
                    if settings.resample_blocks
                    else nn.Conv2d(channels, channels, 3, stride=2, padding=1)
                )
                size //= 2
                kept.append(channels)
            for _ in range(num_residual_blocks):
                self.down.append(block(channels, multiplier * features, size))
                channels = multiplier * features
                kept.append(channels)

        self.middle = AttentionBlock(channels, channels, dropout, num_heads, attend=True)

        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(num_residual_blocks + 1):
                self.up.append(block(channels + kept.pop(), multiplier * features, size))
                channels = multiplier * features
            if level > 0:
                self.up.append(
                    ResidualBlock(channels, channels, dropout, "up")
                    if settings.resample_blocks
                    else nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(channels, channels, 3, padding=1))
                )
                size *= 2

        # One layer for the scales and shifts of all blocks, in the order of the trunk: down, middle, up
        blocks = [layer for layer in self.modules() if isinstance(layer, ResidualBlock)]
        self.modulation_sizes = [2 * block.out_channels for block in blocks]
        self.modulation = nn.Linear(embedding, sum(self.modulation_sizes))
        self.scale_shift = zero_init(nn.Linear(embedding, 2 * channels))
        self.conv_out = zero_init(nn.Conv2d(channels, num_channels * patch_size**2, 3, padding=1))
        self.skip = zero_init(nn.Linear(embedding, num_channels))

    def embed(self, logsnr: Tensor, label: Tensor | None, guidance: Tensor | None = None) -> Tensor:
        """The noise level, the class and the guidance scale, each [B], as one vector [B, 4 features]."""
        position = angle_of(logsnr) / (math.pi / 2) * self.time_scale
        embedding = self.embed_time(sinusoids(position, self.features))
        if self.embed_label is not None:
            embedding = embedding + embed_label(self.embed_label, label)
        if self.embed_guidance is not None:
            embedding = embedding + embed_guidance(self.embed_guidance, guidance, self.features)
        return F.silu(embedding)

    def forward(self, z: Tensor, logsnr: Tensor, label: Tensor | None = None, guidance: Tensor | None = None) -> Tensor:
        """The prediction: see `Network`. Raises ValueError for a size of z that does not fit, or missing inputs."""
        if z.shape[2] % self.downsampling or z.shape[3] % self.downsampling:
            raise ValueError(f"an image of {z.shape[2]} x {z.shape[3]} is not divisible by {self.downsampling}")
        if (label is None) != (self.num_classes == 0):
            raise ValueError(f"the network has {self.num_classes} classes, but label is {label}")
        if (guidance is None) != (self.embed_guidance is None):
            raise ValueError(f"the network {'takes no' if guidance is not None else 'needs a'} guidance scale")
        embedding = self.embed(logsnr, label, guidance)
        index = self.first_example + torch.arange(z.shape[0], dtype=torch.int32, device=z.device)
        with torch.autocast(z.device.type, torch.bfloat16) if self.bfloat16 else nullcontext():
            h = self.trunk(z, embedding, index)
        h = self.conv_out(F.silu(modulate(layer_norm(h.float()), self.scale_shift(embedding))))
        output = rearrange(h, "b (c p q) y x -> b c (y p) (x q)", p=self.patch_size, q=self.patch_size)
        return output + self.skip(embedding)[:, :, None, None] * z

    def trunk(self, z: Tensor, embedding: Tensor, index: Tensor) -> Tensor:
        """Down, through the middle and up: from z [B, C, H, W] to [B, channels, H / patch, W / patch]."""
        scale_shifts = iter(self.modulation(embedding).split(self.modulation_sizes, dim=1))

        def through(layer: nn.Module, h: Tensor) -> Tensor:
            is_block = isinstance(layer, AttentionBlock | ResidualBlock)
            return layer(h, next(scale_shifts), index) if is_block else layer(h)

        h = self.conv_in(rearrange(z, "b c (y p) (x q) -> b (c p q) y x", p=self.patch_size, q=self.patch_size))
        kept = [h]
        for layer in self.down:
            h = through(layer, h)
            kept.append(h)
        h = through(self.middle, h)
        for layer in self.up:
            h = through(layer, torch.cat([h, kept.pop()], dim=1) if isinstance(layer, AttentionBlock) else h)
        return h

    def muon_parameters(self) -> list[nn.Parameter]:
        """The weights of convolutions and attention, except the input and output layers.

        Adam works as well as Muon for the linear layers that embed the noise level and the class.
        """
        layers = [layer for name, layer in self.named_modules() if name not in ("conv_in", "conv_out")]
        return [layer.weight for layer in layers if isinstance(layer, nn.Conv2d)]

    def for_inference(self) -> "UNet":
        """See `Network`. Layers that run in bfloat16 get bfloat16 weights, which saves a cast at every call."""
        self.eval().requires_grad_(False)
        if self.bfloat16:
            for part in (self.conv_in, self.down, self.middle, self.up, self.modulation):
                for layer in part.modules():
                    if isinstance(layer, nn.Conv2d | nn.Linear):
                        layer.to(torch.bfloat16)
        return self
