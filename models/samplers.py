"""Samplers: from noise at t = 1 to images at t = 0 in N equal steps of time. `SAMPLERS` lists them.

All take a model, the noise z [B, C, H, W] and the number of steps, and return images [B, C, H, W]; the last step
returns the model's x. With `clip`, x is clipped to [-clip, clip] in every step (and DDIM recomputes v to match). That
is common for teachers. A student's x is whatever makes its step land on its teacher's z''; clipping would move the end
of the step, so students are not clipped. (The paper: Salimans & Ho 2022.)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.diffusion import Diffusion, clip_x, per_image, rotate, step_angles


def countdown(num_steps: int) -> Tensor:
    """N, N - 1, ..., 1 as [N, 1] in float64: each row the number of a step, the same for all images."""
    return torch.arange(num_steps, 0, -1, dtype=torch.float64)[:, None]


def ddim(model: Diffusion, z: Tensor, num_steps: int, *, label: Tensor | None = None, clip: float = 0.0) -> Tensor:
    """The deterministic sampler (paper, equation 8; Song et al. 2021): each step rotates z back by the angle it spans.

    Without clipping that is z' = cos(d) z - sin(d) v. If x is clipped, v is recomputed so that
    x = cos(phi) z - sin(phi) v still holds.
    """
    i = countdown(num_steps)
    begin, end = step_angles(model.schedule, i, num_steps)
    for t, phi, d in zip(i / num_steps, begin, begin - end, strict=True):
        v = clip_x(model.v(z, t.expand(len(z)), label), z, phi, clip)
        z = rotate(z, v, d)
    return z.clamp(-clip, clip) if clip else z


def posterior(z: Tensor, x: Tensor, logsnr_s: Tensor, logsnr_t: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """Mean [B, C, H, W] and log variance [B] of q(z_s | z_t, x) for s < t (paper, equation 4).

    The log variance is interpolated from that of q itself, log((1 - r) sigma_s^2), at `variance` 0 ("small"), to
    log((1 - r) sigma_t^2) at 1 ("large"), where r = exp(logsnr_t - logsnr_s).
    """
    r = torch.exp(logsnr_t - logsnr_s)
    one_minus_r = -torch.expm1(logsnr_t - logsnr_s)
    alpha_s, alpha_t = torch.sigmoid(logsnr_s).sqrt(), torch.sigmoid(logsnr_t).sqrt()
    mean = per_image(r * alpha_s / alpha_t, z) * z + per_image(one_minus_r * alpha_s, z) * x
    log_sigma2 = torch.lerp(F.logsigmoid(-logsnr_s), F.logsigmoid(-logsnr_t), variance)
    return mean, torch.log(one_minus_r) + log_sigma2


def ancestral(
    model: Diffusion,
    z: Tensor,
    num_steps: int,
    *,
    label: Tensor | None = None,
    clip: float = 0.0,
    noise: Callable[[], Tensor],
    variance: float = 0.0,
) -> Tensor:
    """The stochastic sampler of DDPM: each step samples q(z_s | z_t, x) with the model's x (paper, equation 5).

    `noise()` returns fresh standard normal noise like z, once for each step but the last; `variance` as in `posterior`.
    """
    i = countdown(num_steps)
    for t, s in zip(i / num_steps, (i - 1) / num_steps, strict=True):
        phi = model.schedule.angle(t)
        x = rotate(z, clip_x(model.v(z, t.expand(len(z)), label), z, phi, clip), phi)
        if s == 0:
            return x
        mean, log_variance = posterior(z, x, model.schedule.logsnr(s), model.schedule.logsnr(t), variance)
        z = mean + per_image(torch.exp(log_variance / 2), z) * noise()


@dataclass(frozen=True)
class Sampler:
    """A sampler and its properties."""

    sample: Callable[..., Tensor]  # (model, z, num_steps, label=, clip=); if stochastic, also noise= and variance=
    stochastic: bool  # whether it draws fresh noise in each step
    evaluations_per_step: int = 1  # of the (possibly guided) model


SAMPLERS = {
    "ddim": Sampler(ddim, stochastic=False),
    "ancestral": Sampler(ancestral, stochastic=True),
}
