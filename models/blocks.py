"""The blocks that the network is made of: residual blocks, attention, and what is in them."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.diffusion import NO_CLASS
from models.norm import GroupNorm

GUIDANCE_SCALE = 100.0  # times the guidance scale enters the sinusoids: 1 to 4 are then some turns of the fastest


def zero_init(layer: nn.Module) -> nn.Module:
    """Sets the parameters of a branch's last layer to 0: the network begins as a chain of its skip connections."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Dropout(nn.Module):
    """Dropout whose mask depends on an image's index in the global batch, and not on the rank that computes it.

    So a global batch may be sharded, or computed in micro-batches, with the same result. Element e of image
    b is kept where a_e b + c_e mod 2^32, for random a and c, exceeds a threshold: elements are independent, and images
    pairwise (Dietzfelbinger 1996, Universal hashing and k-wise independent random variables).
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, h: Tensor, index: Tensor) -> Tensor:
        """h [B, C, H, W] and each image's index [B], int32, to [B, C, H, W]; nothing is dropped in evaluation mode."""
        if not self.training or self.probability == 0:
            return h
        _, channels, height, width = h.shape
        table = torch.randint(-(2**31), 2**31, (2, height, width, channels), dtype=torch.int32, device=h.device)
        a, c = table.permute(0, 3, 1, 2)  # channels last, as h
        keep = torch.addcmul(c, a, index[:, None, None, None]) >= round((self.probability - 0.5) * 2**32)
        return h * (keep / (1 - self.probability)).to(h.dtype)


def sinusoids(position: Tensor, features: int) -> Tensor:
    """Positions [B] as sines and cosines [B, features] of periods from 2 pi to 2 pi 10,000 (Vaswani et al. 2017)."""
    half = features // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=position.device) / max(half - 1, 1))
    angles = position[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def embed_label(layer: nn.Embedding, label: Tensor) -> Tensor:
    """Classes [B] as vectors [B, E]; no class is 0: what a network makes of the time alone is what it learns for it."""
    return torch.where((label != NO_CLASS)[:, None], layer(label.clamp(min=0)), 0)


def guidance_layers(features: int, embedding: int) -> nn.Sequential:
    """What `embed_guidance` needs; it begins as one that does not look at the scale."""
    last = zero_init(nn.Linear(embedding, embedding))
    return nn.Sequential(nn.Linear(features, embedding), nn.SiLU(), last)


def embed_guidance(layers: nn.Sequential, scale: Tensor, features: int) -> Tensor:
    """Guidance scales [B] as vectors [B, E]."""
    return layers(sinusoids(scale * GUIDANCE_SCALE, features))


class ResidualBlock(nn.Module):
    """Two convolutions around a norm that the embedding scales and shifts, and a skip connection.

    With `resample`, both ways halve or double the image first (BigGAN's blocks, Brock et al. 2019).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        dropout: float,
        resample: Literal["down", "up"] | None = None,
    ):
        super().__init__()
        resamplers = {"down": nn.AvgPool2d(2), "up": nn.Upsample(scale_factor=2), None: nn.Identity()}
        self.resample = resamplers[resample]
        self.norm_in = GroupNorm(in_channels)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.scale_shift = nn.Linear(embedding, 2 * out_channels)
        self.norm_out = GroupNorm(out_channels)
        self.dropout = Dropout(dropout)
        self.conv_out = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, h: Tensor, embedding: Tensor, index: Tensor) -> Tensor:
        """h [B, in_channels, H, W], embedding [B, E] and indices [B] to [B, out_channels, H', W']."""
        r = self.conv_in(self.resample(F.silu(self.norm_in(h))))
        h = self.resample(h)
        r = self.norm_out(r, self.scale_shift(embedding))
        return self.skip(h) + self.conv_out(self.dropout(F.silu(r), index))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for [B, heads, pixels, d]."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:  # where PyTorch's own takes half as long again
        return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Self-attention between the pixels of an image."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = GroupNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.to_out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        """[B, channels, H, W] to the same shape."""
        q, k, v = rearrange(
            self.to_qkv(self.norm(h)), "b (three n d) y x -> three b n (y x) d", three=3, n=self.num_heads
        )
        attended = attend(q, k, v)
        return h + self.to_out(rearrange(attended, "b n (y x) d -> b (n d) y x", y=h.shape[2]))
