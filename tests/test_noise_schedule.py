import math

import pytest
import torch
from golden_numbers import assert_golden, tensor

from models.noise_schedule import SCHEDULES, CosineSchedule, LinearSchedule, angle_of


@pytest.mark.parametrize("logsnr_range", ["-20,20", "-10,10"])
def test_cosine_schedule_is_the_authors(golden, logsnr_range):
    numbers = golden["schedule"][logsnr_range]
    logsnr = CosineSchedule(*map(float, logsnr_range.split(","))).logsnr(tensor(numbers["t"]))
    assert_golden(logsnr, numbers["logsnr"])


@pytest.mark.parametrize("name", SCHEDULES)
def test_ends_and_angle_agree_with_logsnr(name):
    schedule = SCHEDULES[name](-12.0, 15.0)
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    logsnr, angle = schedule.logsnr(t), schedule.angle(t)
    torch.testing.assert_close(logsnr[[0, -1]], torch.tensor([15.0, -12.0], dtype=torch.float64))
    torch.testing.assert_close(angle.cos() ** 2, torch.sigmoid(logsnr))
    torch.testing.assert_close(angle.sin() ** 2, torch.sigmoid(-logsnr))
    torch.testing.assert_close(angle, angle_of(logsnr))
    assert (logsnr.diff() < 0).all()


def test_linear_schedule_is_linear():
    logsnr = LinearSchedule(-20.0, 20.0).logsnr(torch.tensor([0.25, 0.5], dtype=torch.float64))
    assert logsnr.tolist() == [10.0, 0.0]


def test_continuous_time_has_no_table():
    """Half steps between the 1024ths, and far smaller ones, have angles of their own: the angle is linear in t."""
    t = torch.tensor([0.3, 0.3 + 1 / 4096, 0.3 + 1e-9], dtype=torch.float64)
    angle = CosineSchedule().angle(t)
    slope = (math.pi / 2 - 2 * math.atan(math.exp(-10))) / 1
    torch.testing.assert_close((angle - angle[0])[1:], slope * (t - t[0])[1:], rtol=1e-6, atol=0)
