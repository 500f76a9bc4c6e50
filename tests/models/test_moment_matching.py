"""Moment matching on Gaussian data, where every mean is known: x ~ N(MEAN, SPREAD^2), each pixel for itself."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from models.diffusion import per_image
from models.moment_matching import Step, auxiliary_loss, difference, sampled_step, student_loss
from models.noise_schedule import CosineSchedule, LinearSchedule, NoiseSchedule

MEAN, SPREAD, COUNT = 0.3, 0.5, 400_000
SCHEDULE = CosineSchedule(-20.0, 20.0)


@dataclass
class Linear:
    """A model whose x is offset(phi) + slope(phi) z."""

    offset: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    schedule: NoiseSchedule = SCHEDULE
    smallest_time: float = 1e-3

    def x(self, step: Step) -> Tensor:
        phi = SCHEDULE.angle(step.s)
        return per_image(self.offset(phi), step.z) + per_image(self.slope(phi), step.z) * step.z

    def v(self, z: Tensor, t: Tensor, label: None = None) -> Tensor:
        phi = SCHEDULE.angle(t)
        return (per_image(phi.cos(), z) * z - self.x(Step(z, z, t))) / per_image(phi.sin(), z)


def slope_of_mean(phi: Tensor, spread: float = SPREAD) -> Tensor:
    """E[x | z] = MEAN + slope (z - cos(phi) MEAN)."""
    return spread**2 * phi.cos() / (spread**2 * phi.cos() ** 2 + phi.sin() ** 2)


def denoiser(spread: float = SPREAD) -> Linear:
    """The ideal teacher of data with this spread."""
    return Linear(
        lambda phi: MEAN * (1 - slope_of_mean(phi, spread) * phi.cos()), lambda phi: slope_of_mean(phi, spread)
    )


def draw(student: Linear, position: float, num_steps: int):
    x, eps, noise = MEAN + SPREAD * torch.randn(COUNT, 1, 1, 1).double(), *torch.randn(2, COUNT, 1, 1, 1).double()
    return sampled_step(student, x, eps, noise, torch.full((COUNT,), position, dtype=torch.float64), num_steps)


@pytest.mark.parametrize(("num_steps", "position"), [(1, 0.4), (2, 0.3), (2, 0.8), (8, 0.55)])
def test_the_auxiliary_learns_the_mean_of_both_sides(num_steps, position):
    """Its loss, as a quadratic in its x at each z_s, is least at (E[x~ | z_s] + x_teacher) / 2, by regression."""
    step, teacher = draw(denoiser(0.8), position, num_steps), denoiser()
    z, x = step.z.flatten(), step.x.flatten()
    slope = ((z - z.mean()) * (x - x.mean())).mean() / z.var()  # the mean given z is linear: all is Gaussian
    offset, phi = x.mean() - slope * z.mean(), SCHEDULE.angle(step.s[:1])
    half = [(own + theirs(phi)) / 2 for own, theirs in ((offset, teacher.offset), (slope, teacher.slope))]
    for parameter in range(2):
        values = [value.clone() for value in half]
        values[parameter].requires_grad_()
        auxiliary = Linear(*(lambda phi, value=value: value.expand(phi.shape) for value in values))
        loss = auxiliary_loss(auxiliary, teacher, step).mean()
        (gradient,) = torch.autograd.grad(loss, values[parameter])
        assert abs(gradient.item()) < 0.02 / phi.sin().item() ** 2


@pytest.mark.parametrize(("position", "s", "t"), [(1e-6, 0.01, 0.5), (0.4, 0.4, 0.5), (0.5, 0.5, 0.5), (0.6, 0.6, 1)])
def test_a_step_starts_at_a_time_of_the_student_and_ends_no_lower_than_a_network_knows(position, s, t):
    asked = []
    student = Linear(torch.zeros_like, torch.ones_like, smallest_time=0.01)  # the first of 100 timesteps
    student.v = lambda z, times, label: asked.append(times) or z
    torch.testing.assert_close(draw(student, position, 2).s.unique(), torch.tensor([s], dtype=torch.float64))
    assert torch.cat(asked).unique() == t


@pytest.mark.parametrize("schedule", [LinearSchedule(-10.0, 10.0), CosineSchedule(-20.0, 20.0)])
def test_the_angles_are_uniform_in_a_step_whatever_the_schedule(schedule):
    u = torch.linspace(0.5, 1, 12, dtype=torch.float64)[1:]
    student = Linear(torch.zeros_like, torch.ones_like, schedule)
    images = torch.zeros(3, len(u), 1, 1, 1).double()
    angles = schedule.angle(sampled_step(student, *images, u, 2).s)
    begin, end = schedule.angle(torch.tensor([0.5, 1.0], dtype=torch.float64))
    torch.testing.assert_close(angles, begin + (end - begin) * (2 * u - 1))


@pytest.mark.parametrize(("spread", "direction"), [(0.4, -1), (SPREAD, 0), (0.6, 1)])
def test_a_one_step_student_settles_where_its_samples_have_the_spread_of_the_data(spread, direction):
    """x~ = MEAN + spread z_1: too narrow, its loss falls as it gets wider; at the fixed point it does not change."""
    width = torch.tensor(spread, dtype=torch.float64, requires_grad=True)
    student = Linear(lambda phi: torch.full_like(phi, MEAN), lambda phi: width.expand(phi.shape))
    found = []
    for position in (0.2, 0.5, 0.8):
        step = draw(student, position, 1)
        own, teacher = denoiser(spread), denoiser()
        auxiliary = Linear(
            lambda phi, own=own, teacher=teacher: (own.offset(phi) + teacher.offset(phi)) / 2,
            lambda phi, own=own, teacher=teacher: (own.slope(phi) + teacher.slope(phi)) / 2,
        )
        mismatch = difference(auxiliary, teacher, step)
        torch.testing.assert_close(mismatch, (own.x(step) - teacher.x(step)) / 2)
        loss = student_loss(step, mismatch, SCHEDULE.angle(step.s)).mean()
        found.append(torch.autograd.grad(loss, width)[0].item())
    assert all(abs(value) < 1e-6 if direction == 0 else value * direction > 1e-3 for value in found), found
