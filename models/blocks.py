"""The blocks that the U-Net is made of: residual blocks, attention, norm, embeddings, dropout."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.diffusion import UNCONDITIONAL

GUIDANCE_FACTOR = 100.0  # s is multiplied by it before the sinusoids, so that s from 1 to 4 spans many periods


def zero_init(layer: nn.Module) -> nn.Module:
    """Sets the parameters of a branch's last layer to 0, so that the block starts as its skip connection alone."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Dropout(nn.Module):
    """Dropout whose mask depends on an image's index in the global batch, not on the rank that computes it.

    So a global batch can be sharded, or computed in micro-batches, with the same result. Element e of image b is kept
    where a_e b + c_e mod 2^32, for random a and c, exceeds a threshold: elements are independent, and images pairwise
    independent (Dietzfelbinger 1996, Universal hashing and k-wise independent random variables).
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, h: Tensor, index: Tensor) -> Tensor:
        """h [B, C, H, W] and each image's index [B], int32, to [B, C, H, W]; the identity in evaluation mode."""
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
    """Classes [B] as vectors [B, E]; the unconditional embedding is zero."""
    return torch.where((label != UNCONDITIONAL)[:, None], layer(label.clamp(min=0)), 0)


def guidance_layers(features: int, embedding: int) -> nn.Sequential:
    """The layers of `embed_guidance`; they start with an output of zero."""
    last = zero_init(nn.Linear(embedding, embedding))
    return nn.Sequential(nn.Linear(features, embedding), nn.SiLU(), last)


def embed_guidance(layers: nn.Sequential, scale: Tensor, features: int) -> Tensor:
    """Guidance scales [B] as vectors [B, E]."""
    return layers(sinusoids(scale * GUIDANCE_FACTOR, features))


def layer_norm(h: Tensor) -> Tensor:
    """Layer normalization (Ba et al. 2016) of each pixel's channels, without weights: [B, C, H, W] to the same."""
    ones = torch.ones(h.shape[1], device=h.device)  # in float32: so mean and deviation are, in the backward pass, too
    x = F.layer_norm(h.permute(0, 2, 3, 1), ones.shape, ones)
    return x.permute(0, 3, 1, 2).to(h.dtype)


def modulate(h: Tensor, scale_shift: Tensor) -> Tensor:
    """h [B, C, H, W], scaled and shifted by [B, 2 C], in the dtype of h."""
    scale, shift = scale_shift.to(h.dtype)[:, :, None, None].chunk(2, dim=1)
    return torch.addcmul(shift, h, 1 + scale)


class ResidualBlock(nn.Module):
    """Two convolutions, between which the channels are scaled and shifted, and a skip connection.

    There is one norm, before them. Two group norms took a tenth more time (docs/experiments.md).

    With `resample`, both branches halve or double the feature map (BigGAN's blocks, Brock et al. 2019).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dropout: float,
        resample: Literal["down", "up"] | None = None,
    ):
        super().__init__()
        resamplers = {"down": nn.AvgPool2d(2), "up": nn.Upsample(scale_factor=2), None: nn.Identity()}
        self.resample, self.out_channels = resamplers[resample], out_channels
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)  # `modulate` shifts
        self.dropout = Dropout(dropout)
        self.conv_out = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, h: Tensor, scale_shift: Tensor, index: Tensor) -> Tensor:
        """h [B, in_channels, H, W], [B, 2 out_channels] and indices [B] to [B, out_channels, H', W']."""
        r = self.conv_in(self.resample(F.silu(layer_norm(h))))
        h = self.resample(h)
        r = self.dropout(F.silu(modulate(r, scale_shift)), index)
        return self.skip(h) + self.conv_out(r)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for [B, heads, pixels, d]."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:  # PyTorch's own takes 1.5 times as long
        return ((q / math.sqrt(q.shape[-1])) @ k.mT).softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Self-attention between the pixels of an image."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.to_out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        """[B, channels, H, W] to the same shape."""
        qkv = rearrange(self.to_qkv(layer_norm(h)), "b c y x -> b (y x) c").chunk(3, dim=2)
        q, k, v = (rearrange(part, "b p (n d) -> b n p d", n=self.num_heads) for part in qkv)
        attended = attend(q, k, v)
        return h + self.to_out(rearrange(attended, "b n (y x) d -> b (n d) y x", y=h.shape[2]))
