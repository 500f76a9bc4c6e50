import math

import pytest
import torch
from golden_numbers import assert_golden, tensor

from models.noise_schedule import CosineSchedule, DiscreteSchedule, LinearSchedule, angle_of, betas_at, betas_of


@pytest.mark.parametrize("logsnr_range", ["-20,20", "-10,10"])
def test_cosine_schedule_is_the_authors(golden, logsnr_range):
    numbers = golden["schedule"][logsnr_range]
    logsnr = CosineSchedule(*map(float, logsnr_range.split(","))).logsnr(tensor(numbers["t"]))
    assert_golden(logsnr, numbers["logsnr"])


@pytest.mark.parametrize("kind", [CosineSchedule, LinearSchedule])
def test_ends_and_angle_agree_with_logsnr(kind):
    schedule = kind(-12.0, 15.0)
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    logsnr, angle = schedule.logsnr(t), schedule.angle(t)
    torch.testing.assert_close(logsnr[[0, -1]], torch.tensor([15.0, -12.0], dtype=torch.float64))
    torch.testing.assert_close(angle.cos() ** 2, torch.sigmoid(logsnr))
    torch.testing.assert_close(angle.sin() ** 2, torch.sigmoid(-logsnr))
    torch.testing.assert_close(angle, angle_of(logsnr))
    assert (logsnr.diff() < 0).all()
    torch.testing.assert_close(schedule.time(logsnr), t)


def test_linear_schedule_is_linear():
    logsnr = LinearSchedule(-20.0, 20.0).logsnr(torch.tensor([0.25, 0.5], dtype=torch.float64))
    assert logsnr.tolist() == [10.0, 0.0]


def test_continuous_time_has_no_table():
    """Half steps between the 1024ths, and far smaller ones, have angles of their own: the angle is linear in t."""
    t = torch.tensor([0.3, 0.3 + 1 / 4096, 0.3 + 1e-9], dtype=torch.float64)
    angle = CosineSchedule().angle(t)
    slope = (math.pi / 2 - 2 * math.atan(math.exp(-10))) / 1
    torch.testing.assert_close((angle - angle[0])[1:], slope * (t - t[0])[1:], rtol=1e-6, atol=0)


def test_a_discrete_schedule_by_hand():
    """Two timesteps: alpha^2 is 1/2 at t = 1/2 and 1/2 x 1/5 at t = 1; logsnr 0 and log(1/9), linear between them."""
    schedule = DiscreteSchedule((0.5, 0.8))
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    last = math.log(1 / 9)
    expected = torch.tensor([-last, -last / 2, 0, last / 2, last], dtype=torch.float64)
    torch.testing.assert_close(schedule.logsnr(t), expected)
    torch.testing.assert_close(schedule.angle(t), angle_of(expected))
    torch.testing.assert_close(schedule.time(expected), t)


def test_half_steps_of_a_discrete_schedule_are_no_timesteps():
    schedule = DiscreteSchedule(tuple(betas_of("linear", 1000, 1e-4, 0.02).tolist()))
    t = torch.tensor([0.5, 0.5 + 1 / 4000, 0.5 + 1 / 2000, 0.501], dtype=torch.float64)
    assert (schedule.logsnr(t).diff() < 0).all()


def test_no_signal_at_the_end_is_the_angle_of_noise():
    schedule = DiscreteSchedule((0.5, 1.0))
    angle = schedule.angle(torch.ones(1, dtype=torch.float64))
    assert angle.item() == pytest.approx(math.pi / 2, abs=1e-12) and angle.isfinite().all()


def test_a_process_that_follows_the_cosine_schedule_is_it_at_its_timesteps():
    t = torch.arange(1, 101, dtype=torch.float64) / 100
    followed = DiscreteSchedule(tuple(betas_at(CosineSchedule(), 100).tolist()))
    torch.testing.assert_close(followed.logsnr(t), CosineSchedule().logsnr(t), rtol=1e-6, atol=1e-6)
