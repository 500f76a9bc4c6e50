"""The blocks that the U-Net is made of: residual blocks, attention, group norm, embeddings, dropout."""

import math
from typing import Any, Literal

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


class GroupNorm(nn.GroupNorm):
    """Group normalization (Wu & He 2018) with float32 statistics, then an optional scale and shift."""

    def __init__(self, channels: int):
        """At most 32 groups of at least 4 channels each, if divisibility allows."""
        groups = max((g for g in range(1, 33) if channels % g == 0 and channels // g >= 4), default=1)
        super().__init__(groups, channels)

    def forward(self, h: Tensor, scale_shift: Tensor | None = None) -> Tensor:
        """h [B, channels, H, W], and [B, 2 channels] or None, to the shape and dtype of h."""
        if h.device.type == "cpu" and h.dtype == torch.bfloat16:  # several times as fast as PyTorch's own
            gain, bias = self.weight.expand(h.shape[:2]), self.bias.expand(h.shape[:2])
            if scale_shift is not None:
                scale, shift = scale_shift.float().chunk(2, dim=1)
                gain, bias = gain * (1 + scale), bias * (1 + scale) + shift
            return _NormalizeScaleShift.apply(h, gain, bias, self.num_groups, self.eps)
        normalized = super().forward(h.float()).to(h.dtype)
        if scale_shift is None:
            return normalized
        scale, shift = scale_shift[:, :, None, None].chunk(2, dim=1)
        return normalized * (1 + scale) + shift


class _NormalizeScaleShift(torch.autograd.Function):
    """y = (h - mean) / deviation * gain + bias, with the mean and deviation of each group of channels of an image.

    That is y = a h + b, with one a and one b for each image and channel; likewise dh = p dy + q h + r. So forward and
    backward take only a few passes over the pixels in bfloat16, with float32 sums. The mean, rounded to bfloat16, is
    subtracted first; otherwise rounding the squares of values far from zero would swamp the variance.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, gain: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        """h [B, C, H, W] in bfloat16, gain and bias [B, C] in float32, to the shape and dtype of h."""
        x = _pixels(h)
        mean = _mean_of_groups(x.sum(1, dtype=torch.float32) / x.shape[1], groups)
        shift = _row(mean)
        x, mean = x - shift, mean - shift[:, 0]  # mean: what rounding left of it
        square = _mean_of_groups((x * x).sum(1, dtype=torch.float32) / x.shape[1], groups)
        rstd = ((square - mean * mean).clamp(min=0) + eps).rsqrt()
        ctx.save_for_backward(x, gain, mean, rstd)
        ctx.groups = groups
        a = rstd * gain
        return _image(torch.addcmul(_row(bias - mean * a), x, _row(a)), h)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of h, gain and bias."""
        x, gain, mean, rstd = ctx.saved_tensors
        dy = _pixels(grad)
        dbias = dy.sum(1, dtype=torch.float32)
        dgain = rstd * ((dy * x).sum(1, dtype=torch.float32) - mean * dbias)
        # dh = rstd (gain dy - m - (x - mean) rstd n), where m and n are the means over a group of gain dy and of
        # gain dy (x - mean) rstd: the parts of the gradient that would change the group's mean and deviation.
        m, n = (_mean_of_groups(gain * sums / x.shape[1], ctx.groups) for sums in (dbias, dgain))
        slope = -(rstd**2) * n
        dx = torch.addcmul(_row(-rstd * m - mean * slope), x, _row(slope))
        return _image(dx.addcmul_(dy, _row(rstd * gain)), grad), dgain, dbias, None, None


def _pixels(h: Tensor) -> Tensor:
    """[B, C, H, W] as [B, H W, C], a view if the memory format is channels last."""
    return h.permute(0, 2, 3, 1).flatten(1, 2)


def _image(x: Tensor, like: Tensor) -> Tensor:
    """[B, H W, C] as [B, C, H, W]."""
    return x.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)


def _row(x: Tensor) -> Tensor:
    """[B, C] in float32 as [B, 1, C] in bfloat16."""
    return x.to(torch.bfloat16)[:, None]


def _mean_of_groups(x: Tensor, groups: int) -> Tensor:
    """[B, C], each value replaced by the mean of its group."""
    mean = x.unflatten(1, (groups, -1)).mean(2, keepdim=True)
    return mean.expand(-1, -1, x.shape[1] // groups).flatten(1)


class ResidualBlock(nn.Module):
    """Two convolutions around a norm that the embedding scales and shifts, and a skip connection.

    With `resample`, both branches halve or double the feature map (BigGAN's blocks, Brock et al. 2019).
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
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:  # PyTorch's own takes 1.5 times as long
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
        q, k, v = rearrange(self.to_qkv(self.norm(h)), "b (i n d) y x -> i b n (y x) d", i=3, n=self.num_heads)
        attended = attend(q, k, v)
        return h + self.to_out(rearrange(attended, "b n (y x) d -> b (n d) y x", y=h.shape[2]))
