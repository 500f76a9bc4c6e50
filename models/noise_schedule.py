"""Noise schedules: continuous time t -> logsnr -> the angle of the noise (paper, section 2 and appendix B).

Time runs from t = 0 (data) to t = 1 (noise). At time t an image x is seen as

    z = alpha x + sigma eps,    alpha^2 = sigmoid(logsnr),  sigma^2 = sigmoid(-logsnr)

Since alpha^2 + sigma^2 = 1, the pair is a point on the unit circle: alpha = cos(angle), sigma = sin(angle)
with angle = atan(sigma / alpha) = atan(exp(-logsnr / 2)) in (0, pi/2). All that follows needs only the angle.

Every schedule is a function of continuous time, exact at every t. Give it float64: in float32 the cosine
of the angle near t = 1 is off by 1e-3.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def angle_of(logsnr: Tensor) -> Tensor:
    """The angle atan(sigma / alpha) in (0, pi/2) of a log signal-to-noise ratio, any shape."""
    return torch.atan(torch.exp(-logsnr / 2))


@dataclass(frozen=True)
class CosineSchedule:
    """logsnr(t) = -2 log tan(a t + b): the angle is linear in time (paper, appendix B; Nichol & Dhariwal 2021)."""

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0

    def angle(self, t: Tensor) -> Tensor:
        """The angle a t + b at the times t in [0, 1], any shape."""
        b = math.atan(math.exp(-self.logsnr_max / 2))
        a = math.atan(math.exp(-self.logsnr_min / 2)) - b
        return a * t + b

    def logsnr(self, t: Tensor) -> Tensor:
        """The log signal-to-noise ratio at the times t in [0, 1], any shape: from logsnr_max to logsnr_min."""
        return -2 * torch.log(torch.tan(self.angle(t)))


@dataclass(frozen=True)
class LinearSchedule:
    """logsnr falls linearly in time, from logsnr_max to logsnr_min (Kingma et al. 2021, "Variational diffusion")."""

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0

    def angle(self, t: Tensor) -> Tensor:
        """The angle at the times t in [0, 1], any shape."""
        return angle_of(self.logsnr(t))

    def logsnr(self, t: Tensor) -> Tensor:
        """The log signal-to-noise ratio at the times t in [0, 1], any shape: from logsnr_max to logsnr_min."""
        return self.logsnr_max + (self.logsnr_min - self.logsnr_max) * t


NoiseSchedule = CosineSchedule | LinearSchedule
SCHEDULES: dict[str, type[NoiseSchedule]] = {"cosine": CosineSchedule, "linear": LinearSchedule}
