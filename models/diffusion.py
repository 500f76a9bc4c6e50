"""The mathematics of diffusion and its distillation (the paper: Salimans & Ho 2022), as rotations.

With the angle phi = atan(sigma / alpha) of the noise schedule, noising rotates the image towards the noise:

    z = cos(phi) x + sin(phi) eps          the noised image
    v = cos(phi) eps - sin(phi) x          its velocity, dz/dphi (paper, appendix D)

and the inverse rotation gives x = cos(phi) z - sin(phi) v and eps = sin(phi) z + cos(phi) v: no division, stable at
every time. One DDIM step from the angle phi to psi rotates z by their difference.

Images and everything shaped like them are [B, C, H, W]; times and angles are [B] in float64, on the CPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.noise_schedule import NoiseSchedule

Prediction = Literal["v", "eps", "x"]
UNCONDITIONAL = -1  # in place of a class label

# The paper's weightings of the loss (section 4), as weights on the squared error of v at the angle phi. The error of x
# is sin(phi) times that of v, and the error of eps is cos(phi) times that of v. So `constant` is the squared error of
# x, `snr` that of eps, `snr_trunc` the larger of the two (weight max(SNR, 1) on x), and `v_mse` that of v itself
# (weight SNR + 1 on x).
WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "v_mse": torch.ones_like,
    "snr": lambda phi: phi.cos() ** 2,
    "snr_trunc": lambda phi: torch.maximum(phi.sin() ** 2, phi.cos() ** 2),
    "constant": lambda phi: phi.sin() ** 2,
}


def cast_like(value: Tensor, image: Tensor) -> Tensor:
    """A float64 value in the dtype and on the device of `image`."""
    # Cast before the move, since not every device has float64; the move to a GPU does not block.
    return value.to(image.dtype).to(image.device, non_blocking=image.is_cuda)


def per_image(value: Tensor, image: Tensor) -> Tensor:
    """A value for each image, [B], as [B, 1, 1, 1], to multiply `image` [B, C, H, W] with."""
    return cast_like(value, image)[:, None, None, None]


def rotate(z: Tensor, v: Tensor, angle: Tensor) -> Tensor:
    """cos(angle) z - sin(angle) v: one DDIM step of size `angle`. If that is the whole noise angle of z, this is x."""
    return per_image(angle.cos(), z) * z - per_image(angle.sin(), z) * v


def add_noise(x: Tensor, eps: Tensor, phi: Tensor) -> Tensor:
    """z = cos(phi) x + sin(phi) eps: a sample of q(z | x) (paper, equation 1)."""
    return per_image(phi.cos(), x) * x + per_image(phi.sin(), x) * eps


def clip_x(v: Tensor, z: Tensor, phi: Tensor, limit: float) -> Tensor:
    """v, recomputed with x = cos(phi) z - sin(phi) v clipped to [-limit, limit]; v itself if the limit is 0."""
    if not limit:
        return v
    x = rotate(z, v, phi)
    return v + (x - x.clamp(-limit, limit)) / per_image(phi.sin(), z)


def velocity(x: Tensor, eps: Tensor, phi: Tensor) -> Tensor:
    """v = cos(phi) eps - sin(phi) x."""
    return per_image(phi.cos(), x) * eps - per_image(phi.sin(), x) * x


def stratified(batch_size: int) -> Tensor:
    """One uniform random number in each of the B intervals [k/B, (k + 1)/B), as [B] in float64.

    They cover [0, 1) evenly in every batch, so the loss has less variance than with independent times.
    """
    numbers = (torch.arange(batch_size, dtype=torch.float64) + torch.rand(batch_size, dtype=torch.float64)) / batch_size
    return numbers.clamp(max=1 - 2**-53)  # the last could round to 1


def drop_label(label: Tensor | None, dropped: Tensor) -> Tensor | None:
    """The labels [B], `UNCONDITIONAL` where `dropped` [B] is true: these examples train the unconditional model."""
    return None if label is None else label.masked_fill(dropped.to(label.device), UNCONDITIONAL)


@dataclass(frozen=True)
class Diffusion:
    """A network, its noise schedule, and what its output means."""

    network: Callable[..., Tensor]  # see `Network` in models/network.py
    schedule: NoiseSchedule
    prediction: Prediction  # of the network
    takes_guidance: bool = False  # whether the guidance scale is an input of the network; see models/guidance.py
    timesteps: int | None = None  # T if the network takes timesteps, None if it takes logsnr

    @property
    def smallest_time(self) -> float:
        """The smallest t > 0 that it is to be trained at: the first timestep, if the network takes timesteps."""
        return 1e-3 if self.timesteps is None else 1 / self.timesteps

    def v(self, z: Tensor, t: Tensor, label: Tensor | None = None, guidance: Tensor | None = None) -> Tensor:
        """The network's output at z [B, C, H, W] and the times t [B] in (0, 1], converted to v."""
        time = self.schedule.logsnr(t) if self.timesteps is None else self.timesteps * t - 1
        scale = [] if guidance is None else [cast_like(guidance, z)]
        output = self.network(z, cast_like(time, z), label, *scale).to(z.dtype)
        return self.to_v(output, z, self.schedule.angle(t))

    def to_v(self, output: Tensor, z: Tensor, phi: Tensor) -> Tensor:
        """Converts an output of the network at z [B, C, H, W] and the angles phi [B] to v."""
        if self.prediction == "v":
            return output
        cos, sin = per_image(phi.cos(), z), per_image(phi.sin(), z)
        if self.prediction == "x":
            return (cos * z - output) / sin
        return (output - sin * z) / cos


def weighted_mse(v: Tensor, v_target: Tensor, phi: Tensor, weighting: str) -> Tensor:
    """The mean squared error of v for each image, [B], times one of the `WEIGHTINGS`."""
    return (per_image(WEIGHTINGS[weighting](phi), v) * (v - v_target).square()).mean(dim=(1, 2, 3))


def training_loss(
    model: Diffusion, x: Tensor, eps: Tensor, t: Tensor, weighting: str, label: Tensor | None = None
) -> Tensor:
    """Algorithm 1 of the paper: the loss of each image x in [-1, 1], noised with eps to the times t in (0, 1]; [B]."""
    phi = model.schedule.angle(t)
    z = add_noise(x, eps, phi)
    return weighted_mse(model.v(z, t, label), velocity(x, eps, phi), phi, weighting)


def conversion_loss(
    student: Diffusion,
    teacher: Diffusion,
    x: Tensor,
    eps: Tensor,
    t: Tensor,
    weighting: str,
    label: Tensor | None = None,
    clip: float = 0.0,
) -> Tensor:
    """The loss [B] of a student that matches the (possibly guided) teacher's v in one forward pass.

    Algorithm 1 of Meng et al. 2022 (https://arxiv.org/abs/2210.03142). The images x in [-1, 1] are noised by eps to the
    times t in (0, 1]; `clip` is the teacher's, as in its sampler.
    """
    phi = student.schedule.angle(t)
    z = add_noise(x, eps, phi)
    with torch.no_grad():
        v_target = clip_x(teacher.v(z, t, label), z, phi, clip)
    return weighted_mse(student.v(z, t, label), v_target, phi, weighting)


def step_angles(schedule: NoiseSchedule, i: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """The angles at which step i of `num_steps` (N) begins and ends: those of t = i/N and t = (i - 1)/N.

    i in {1, ..., N} is float64; samplers count it down. The last step, i = 1, ends at the angle 0, not at the
    schedule's smallest angle (4.5e-5 by default): a rotation by the whole remaining angle returns x itself.
    """
    end = schedule.angle((i - 1) / num_steps)
    return schedule.angle(i / num_steps), torch.where(i == 1, torch.zeros_like(end), end)


def distillation_target(
    teacher: Diffusion, z: Tensor, i: Tensor, num_steps: int, label: Tensor | None = None
) -> Tensor:
    """The v that a student of `num_steps` (N) steps must predict at z, at time t = i/N, i in {1, ..., N} [B].

    Algorithm 2 of the paper: the teacher takes two DDIM steps, each of 0.5/N in time, from z to z''; the student must
    land there in one. A step of angle d gives z'' = cos(d) z - sin(d) v, so v* = (cos(d) z - z'') / sin(d). With the
    teacher's steps, d = d1 + d2, inserted, most of z cancels:

        v* = (cos(d2) sin(d1) v1 + sin(d2) v2 - sin(d1) sin(d2) z) / sin(d)

    In float32, the difference cos(d) z - z'' would lose everything where d is tiny.
    """
    i = i.double()
    begin, middle = step_angles(teacher.schedule, 2 * i, 2 * num_steps)
    middle, end = step_angles(teacher.schedule, 2 * i - 1, 2 * num_steps)
    d1, d2 = begin - middle, middle - end
    v1 = teacher.v(z, i / num_steps, label)
    v2 = teacher.v(rotate(z, v1, d1), (2 * i - 1) / (2 * num_steps), label)
    weights = d2.cos() * d1.sin(), d2.sin(), d1.sin() * d2.sin()
    of_v1, of_v2, of_z = (per_image(weight / (d1 + d2).sin(), z) for weight in weights)
    return of_v1 * v1 + of_v2 * v2 - of_z * z


def distillation_loss(
    student: Diffusion,
    teacher: Diffusion,
    x: Tensor,
    eps: Tensor,
    i: Tensor,
    num_steps: int,
    weighting: str,
    label: Tensor | None = None,
) -> Tensor:
    """Algorithm 2 of the paper: the loss [B] of a student of N = `num_steps` steps, against two steps of its teacher.

    The images x in [-1, 1] are noised with eps to the times t = i/N, i in {1, ..., N} [B].
    """
    t = i.double() / num_steps
    phi = student.schedule.angle(t)
    z = add_noise(x, eps, phi)
    with torch.no_grad():
        v_target = distillation_target(teacher, z, i, num_steps, label)
    return weighted_mse(student.v(z, t, label), v_target, phi, weighting)
