"""Moment matching: students about as good as their teacher in few steps (Salimans, Mensink, Heek & Hoogeboom 2024).

The paper, "Multistep Distillation of Diffusion Models via Moment Matching" (https://arxiv.org/abs/2406.04103), samples
a student of N steps by the ancestral sampler: at z_t it predicts x~ = cos(phi_t) z_t - sin(phi_t) v, and the next z_s
is drawn from q(z_s | z_t, x~). Many predictions can lead to the same z_s, and so can many images. The mean of these
images is the teacher's prediction, and the mean of the student's predictions should be the same:

    E[x~ | z_s] = x_teacher(z_s)

An auxiliary network learns the average of the two sides, so x_auxiliary - x_teacher is half of their difference, and
the student moves its x~ against it. Both learn at the same time, from batches of their own (Algorithm 2).

Images are [B, C, H, W]; times and angles [B] in float64, on the CPU, as in models/diffusion.py. Squares and products of
images are means over pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from models.diffusion import Diffusion, add_noise, per_image, rotate
from models.samplers import posterior


class Step(NamedTuple):
    """A student's step from z_t to z_s, or only a part of it: (i - 1)/N <= s <= t = i/N."""

    x: Tensor  # the student's prediction x~ at z_t
    z: Tensor  # z_s, drawn from q(z_s | z_t, x~), without gradient
    s: Tensor  # the time of z_s, [B]


def sampled_step(
    student: Diffusion,
    x: Tensor,
    eps: Tensor,
    noise: Tensor,
    u: Tensor,
    num_steps: int,
    label: Tensor | None = None,
) -> Step:
    """The student's step from the images x [B, C, H, W], noised with eps, for random u [B] in (0, 1).

    It is the step of number i = ceil(u N), from t = i/N to a time s that u determines, too: for uniform u, the angle of
    s is uniform in the step. `noise` is that of z_s.
    """
    schedule, i = student.schedule, torch.ceil(u.clamp(min=student.smallest_time) * num_steps)
    t = i / num_steps
    phi, end = schedule.angle(t), schedule.angle((i - 1) / num_steps)
    phi_s = phi - (i - u * num_steps) * (phi - end)
    s = schedule.time(-2 * phi_s.tan().log()).clamp(min=student.smallest_time)  # at 0, x does not determine v
    z_t = add_noise(x, eps, phi)
    predicted = rotate(z_t, student.v(z_t, t, label), phi)
    mean, log_variance = posterior(z_t, predicted.detach(), schedule.logsnr(s), schedule.logsnr(t), 0.0)
    return Step(predicted, mean + per_image(torch.exp(log_variance / 2), mean) * noise, s)


def auxiliary_loss(auxiliary: Diffusion, teacher: Diffusion, step: Step, label: Tensor | None = None) -> Tensor:
    """w(s) (|x~ - x_auxiliary(z_s)|^2 + |x_teacher(z_s) - x_auxiliary(z_s)|^2) for each image, [B].

    With w = 1 / sin^2(phi_s) these are errors of v, as in the teacher's own training.
    """
    phi = auxiliary.schedule.angle(step.s)
    v = auxiliary.v(step.z, step.s, label)
    with torch.no_grad():
        v_student = (per_image(phi.cos(), step.z) * step.z - step.x) / per_image(phi.sin(), step.z)
        v_teacher = teacher.v(step.z, step.s, label)
    return ((v_student - v).square() + (v_teacher - v).square()).mean(dim=(1, 2, 3))


@torch.no_grad()
def difference(auxiliary: Diffusion, teacher: Diffusion, step: Step, label: Tensor | None = None) -> Tensor:
    """x_auxiliary(z_s) - x_teacher(z_s), half of what does not match, [B, C, H, W] without gradient.

    As x = cos(phi) z - sin(phi) v, it is -sin(phi_s) (v_auxiliary - v_teacher).
    """
    phi = auxiliary.schedule.angle(step.s)
    v_auxiliary, v_teacher = (model.v(step.z, step.s, label) for model in (auxiliary, teacher))
    return per_image(-phi.sin(), step.z) * (v_auxiliary - v_teacher)


def student_loss(step: Step, difference: Tensor, phi: Tensor) -> Tensor:
    """w(s) x~ . (x_auxiliary(z_s) - x_teacher(z_s)) for each image, [B]; `phi` is the angle of s.

    w = 1 / sin(phi_s), as docs/method.md derives. With 1 / sin^2 the times near 0 dominate; with 1, the student's
    samples vary too little (docs/experiments.md).
    """
    return (step.x * difference / per_image(phi.sin(), step.x)).mean(dim=(1, 2, 3))
