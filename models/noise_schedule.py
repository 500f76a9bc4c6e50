"""Noise schedules: continuous time t -> logsnr -> noise angle (Salimans & Ho 2022, "the paper", section 2, appendix B).

Time runs from t = 0 (data) to t = 1 (noise). At time t the noised image is

    z = alpha x + sigma eps,    alpha^2 = sigmoid(logsnr),  sigma^2 = sigmoid(-logsnr)

Since alpha^2 + sigma^2 = 1, the pair is a point on the unit circle: alpha = cos(angle), sigma = sin(angle)
with angle = atan(sigma / alpha) = atan(exp(-logsnr / 2)) in (0, pi/2). Noising, DDIM and distillation need only the
angle; networks and the ancestral sampler also take logsnr.

Every schedule is an invertible function of continuous time, defined at every t. Times must be float64: in float32 the
cosine of the angle near t = 1 has a relative error of 1e-3.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

LARGEST_LOGSNR = 60.0  # in absolute value; exp(60) = 1e26 is well within the range of float32


def angle_of(logsnr: Tensor) -> Tensor:
    """The angle atan(sigma / alpha) in (0, pi/2) of a log signal-to-noise ratio, any shape."""
    return torch.atan(torch.exp(-logsnr / 2))


class NoiseSchedule(ABC):
    """logsnr and angle as functions of the time t in [0, 1]; tensors of any shape."""

    @abstractmethod
    def logsnr(self, t: Tensor) -> Tensor:
        """The log signal-to-noise ratio at the times t; it decreases in t."""

    @abstractmethod
    def time(self, logsnr: Tensor) -> Tensor:
        """The time of a log signal-to-noise ratio."""

    def angle(self, t: Tensor) -> Tensor:
        """The angle at the times t."""
        return angle_of(self.logsnr(t))


@dataclass(frozen=True)
class CosineSchedule(NoiseSchedule):
    """logsnr(t) = -2 log tan(a t + b): the angle is linear in time (paper, appendix B; Nichol & Dhariwal 2021)."""

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0

    def angle(self, t: Tensor) -> Tensor:
        """The angle a t + b at the times t."""
        b = math.atan(math.exp(-self.logsnr_max / 2))
        a = math.atan(math.exp(-self.logsnr_min / 2)) - b
        return a * t + b

    def logsnr(self, t: Tensor) -> Tensor:  # noqa: D102 (as above)
        return -2 * torch.log(torch.tan(self.angle(t)))

    def time(self, logsnr: Tensor) -> Tensor:  # noqa: D102
        begin, end = self.angle(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        return (angle_of(logsnr) - begin) / (end - begin)


@dataclass(frozen=True)
class LinearSchedule(NoiseSchedule):
    """logsnr falls linearly in time, from logsnr_max to logsnr_min (Kingma et al. 2021, "Variational diffusion")."""

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0

    def logsnr(self, t: Tensor) -> Tensor:  # noqa: D102
        return self.logsnr_max + (self.logsnr_min - self.logsnr_max) * t

    def time(self, logsnr: Tensor) -> Tensor:  # noqa: D102
        return (logsnr - self.logsnr_max) / (self.logsnr_min - self.logsnr_max)


@dataclass(frozen=True)
class DiscreteSchedule(NoiseSchedule):
    """A process of T timesteps (Ho et al. 2020), made continuous: logsnr is interpolated linearly between timesteps.

    Timestep k in {0, ..., T - 1} corresponds to t = (k + 1) / T, where logsnr is that of the process. Between t = 0 and
    t = 1/T, the line through the first two timesteps is extrapolated.
    """

    betas: tuple[float, ...]  # the variance that each timestep adds, T >= 2 numbers; alpha^2 = cumprod(1 - betas)

    @cached_property
    def table(self) -> Tensor:
        """logsnr at the times 0, 1/T, ..., 1: [T + 1] in float64, all finite."""
        log_alpha_squared = torch.log1p(-torch.tensor(self.betas, dtype=torch.float64)).cumsum(0)
        logsnr = (log_alpha_squared - torch.log(-torch.expm1(log_alpha_squared))).clamp(-LARGEST_LOGSNR, LARGEST_LOGSNR)
        return torch.cat([2 * logsnr[:1] - logsnr[1:2], logsnr])

    def logsnr(self, t: Tensor) -> Tensor:  # noqa: D102
        position = t * len(self.betas)
        before = position.floor().clamp(max=len(self.betas) - 1)
        index = before.long()
        return torch.lerp(self.table[index], self.table[index + 1], position - before)

    def time(self, logsnr: Tensor) -> Tensor:  # noqa: D102
        table = self.table.to(logsnr)  # T t is the number of intervals above logsnr, the last counted fractionally
        intervals = (table[:-1] - logsnr[..., None]) / (table[:-1] - table[1:]).clamp(min=1e-12)
        return intervals.clamp(0, 1).sum(-1) / len(self.betas)


def betas_of(
    kind: Literal["linear", "scaled_linear", "squaredcos_cap_v2"], timesteps: int, first: float, last: float
) -> Tensor:
    """The betas of a well-known process by its name in diffusers, [timesteps] in float64.

    linear (Ho et al. 2020); scaled_linear: their square roots are linear (Rombach et al. 2022); squaredcos_cap_v2:
    alpha = cos((t + 0.008) / 1.008 pi/2), with betas capped at 0.999 (Nichol & Dhariwal 2021).
    """
    if kind == "squaredcos_cap_v2":
        t = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
        return _betas(torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2).clamp(max=0.999)
    root = 2 if kind == "scaled_linear" else 1
    return torch.linspace(first ** (1 / root), last ** (1 / root), timesteps, dtype=torch.float64) ** root


def rescale_zero_snr(betas: Tensor) -> Tensor:
    """The betas [T], rescaled so that alpha is 0 at the last timestep and unchanged at the first.

    Lin et al. 2023 (https://arxiv.org/abs/2305.08891), Algorithm 1.
    """
    alpha = (1 - betas).cumprod(0).sqrt()
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    return _betas(torch.cat([torch.ones_like(alpha[:1]), alpha**2]))


def betas_at(schedule: NoiseSchedule, timesteps: int) -> Tensor:
    """The betas of a discrete process that has the alpha of a schedule at each timestep, [timesteps] in float64."""
    alpha_squared = schedule.angle(torch.arange(timesteps + 1, dtype=torch.float64) / timesteps).cos() ** 2
    alpha_squared[0] = 1
    return _betas(alpha_squared)


def _betas(alpha_squared: Tensor) -> Tensor:
    """alpha^2 at the times 0, 1/T, ..., 1, [T + 1], to betas [T]."""
    return 1 - alpha_squared[1:] / alpha_squared[:-1]
