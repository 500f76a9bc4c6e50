"""Group normalization (Wu & He 2018) that a noise level may scale and shift, made for processors with bfloat16."""

from typing import Any

import torch
from torch import Tensor, nn


def modulate(h: Tensor, scale_shift: Tensor) -> Tensor:
    """h [B, C, H, W] scaled and shifted by the two halves of [B, 2 C]; not at all by zeros."""
    scale, shift = scale_shift[:, :, None, None].chunk(2, dim=1)
    return h * (1 + scale) + shift


class GroupNorm(nn.GroupNorm):
    """Statistics in float32, whatever the network computes in, and then, if it is given one, scale and shift."""

    def __init__(self, channels: int):
        """At most 32 groups of at least 4 channels each, where the number of channels lets itself be divided so."""
        groups = max((g for g in range(1, 33) if channels % g == 0 and channels // g >= 4), default=1)
        super().__init__(groups, channels)

    def forward(self, h: Tensor, scale_shift: Tensor | None = None) -> Tensor:
        """h [B, channels, H, W], and [B, 2 channels] or None, to the shape and type of h."""
        if h.device.type == "cpu" and h.dtype == torch.bfloat16:  # where PyTorch's own takes several times as long
            gain, bias = self.weight.expand(h.shape[:2]), self.bias.expand(h.shape[:2])
            if scale_shift is not None:
                scale, shift = scale_shift.float().chunk(2, dim=1)
                gain, bias = gain * (1 + scale), bias * (1 + scale) + shift
            return _NormalizeScaleShift.apply(h, gain, bias, self.num_groups, self.eps)
        normalized = super().forward(h.float()).to(h.dtype)
        return normalized if scale_shift is None else modulate(normalized, scale_shift)


class _NormalizeScaleShift(torch.autograd.Function):
    """y = (h - mean) / deviation * gain + bias, with the mean and deviation of each group of channels of an image.

    That is a h + b, with a and b of each image and channel, and so is its gradient one in h and dy: a few passes over
    the pixels in bfloat16, where the sums are float32, and all else is as small as [B, C]. The mean is taken off first,
    as near as bfloat16 comes to it: of squares that are mostly those of the mean, little would be left.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, gain: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        """h [B, C, H, W] in bfloat16, gain and bias [B, C] in float32, to the shape and type of h."""
        x = _pixels(h)
        mean = _mean_of_groups(x.sum(1, dtype=torch.float32) / x.shape[1], groups)
        shift = _row(mean)
        x, mean = x - shift, mean - shift[:, 0]  # what is left of it
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
        # What moves mean and deviation goes: dh = rstd (gain dy - m - (x - mean) rstd n), m and n the means over a
        # group of gain dy and of gain dy (x - mean) rstd.
        m, n = (_mean_of_groups(gain * sums / x.shape[1], ctx.groups) for sums in (dbias, dgain))
        slope = -(rstd**2) * n
        dx = torch.addcmul(_row(-rstd * m - mean * slope), x, _row(slope))
        return _image(dx.addcmul_(dy, _row(rstd * gain)), grad), dgain, dbias, None, None


def _pixels(h: Tensor) -> Tensor:
    """[B, C, H, W] as [B, H W, C], which is a view where the channels are last in memory."""
    return h.permute(0, 2, 3, 1).flatten(1, 2)


def _image(x: Tensor, like: Tensor) -> Tensor:
    """[B, H W, C] as [B, C, H, W]."""
    return x.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)


def _row(x: Tensor) -> Tensor:
    """[B, C] in float32 as [B, 1, C] in bfloat16."""
    return x.to(torch.bfloat16)[:, None]


def _mean_of_groups(x: Tensor, groups: int) -> Tensor:
    """[B, C] with the mean of its group in place of each."""
    mean = x.unflatten(1, (groups, -1)).mean(2, keepdim=True)
    return mean.expand(-1, -1, x.shape[1] // groups).flatten(1)
