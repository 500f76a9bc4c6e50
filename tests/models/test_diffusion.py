from dataclasses import replace

import pytest
import torch
from golden_numbers import DTYPES, assert_golden, stand_in, tensor

from models.diffusion import (
    Diffusion,
    add_noise,
    distillation_loss,
    distillation_target,
    rotate,
    step_angles,
    stratified,
    training_loss,
    velocity,
    weighted_mse,
)
from models.noise_schedule import CosineSchedule, LinearSchedule

WEIGHTINGS = ["constant", "snr", "snr_trunc", "v_mse"]


def turned(z, v, phi):
    """x and eps of a z and its v."""
    c, s = (f(phi).to(z.dtype)[:, None, None, None] for f in (torch.cos, torch.sin))
    return c * z - s * v, s * z + c * v


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("entry", range(3))
def test_training_is_the_authors(golden, entry, dtype):
    numbers = golden["train"][entry]
    model = stand_in(golden, "student", numbers["prediction"])
    x, eps, t = tensor(numbers["x"], dtype), tensor(numbers["eps"], dtype), tensor(numbers["t"])
    phi = model.schedule.angle(t)
    z, v = add_noise(x, eps, phi), velocity(x, eps, phi)
    assert_golden(model.schedule.logsnr(t), numbers["logsnr"])
    assert_golden(z, numbers["z"])
    assert_golden(v, numbers["v_target"])
    x_again, eps_again = turned(z, v, phi)
    assert_golden(x_again, numbers["x_target"])
    assert_golden(eps_again, numbers["eps_target"])
    for weighting in WEIGHTINGS:
        assert_golden(training_loss(model, x, eps, t, weighting), numbers[weighting])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("entry", range(12))
def test_distillation_is_the_authors(golden, entry, dtype):
    numbers = golden["distill"][entry]
    student = stand_in(golden, "student", numbers["prediction"])
    teacher = stand_in(golden, "teacher", numbers["prediction"])
    x, eps = tensor(numbers["x"], dtype), tensor(numbers["eps"], dtype)
    i, num_steps = torch.tensor(numbers["i"]) + 1, numbers["student_steps"]
    cancellation = num_steps > 8
    phi = student.schedule.angle(tensor(numbers["t"]))
    z = add_noise(x, eps, phi)
    v_target = distillation_target(teacher, z, i, num_steps)
    x_target, eps_target = turned(z, v_target, phi)
    assert_golden(v_target, numbers["v_target"], cancellation=cancellation)
    assert_golden(x_target, numbers["x_target"], cancellation=cancellation)
    assert_golden(eps_target, numbers["eps_target"], cancellation=cancellation)
    for weighting in WEIGHTINGS:
        loss = distillation_loss(student, teacher, x, eps, i, num_steps, weighting)
        assert_golden(loss, numbers[weighting], cancellation=cancellation)


@pytest.mark.parametrize("schedule", [CosineSchedule(), LinearSchedule()])
def test_the_target_lands_where_the_teacher_does(golden, schedule):
    """By another way than the formula: the teacher's two steps by x and eps, the student's one by its target."""
    num_steps = 4
    teacher = Diffusion(stand_in(golden, "teacher", "v").network, schedule, "v")
    z = torch.randn(num_steps, 1, 3, 3, dtype=torch.float64)
    i = torch.arange(1, num_steps + 1)
    target = distillation_target(teacher, z, i, num_steps)
    z_teacher = z
    for t, s in ((i / 4, i / 4 - 0.125), (i / 4 - 0.125, i / 4 - 0.25)):
        t, s = t.double(), s.double()
        x, eps = turned(z_teacher, teacher.v(z_teacher, t), schedule.angle(t))
        z_teacher = add_noise(x, eps, torch.where(s == 0, 0, schedule.angle(s)))
    begin, end = step_angles(schedule, i.double(), num_steps)
    torch.testing.assert_close(rotate(z, target, begin - end), z_teacher)


@pytest.mark.parametrize("schedule", [CosineSchedule(), LinearSchedule()])
@pytest.mark.parametrize("num_steps", [1, 8, 512])
def test_the_target_in_float32_is_that_in_float64_even_where_steps_are_tiny(golden, schedule, num_steps):
    teacher = replace(stand_in(golden, "teacher", "v"), schedule=schedule)
    z, i = torch.randn(64, 1, 4, 4, dtype=torch.float64), torch.linspace(1, num_steps, 64).round().long()
    exact = distillation_target(teacher, z, i, num_steps)
    assert (distillation_target(teacher, z.float(), i, num_steps) - exact).abs().max() < 1e-5


def test_a_perfect_student_has_no_loss(golden):
    """A student whose v is its teacher's target: the loss is 0 under each weighting, and only then."""
    teacher = stand_in(golden, "teacher", "v")
    x, eps, i = torch.randn(4, 1, 3, 3).double(), torch.randn(4, 1, 3, 3).double(), torch.tensor([1, 2, 3, 4])

    def perfect(z, logsnr, label=None):
        return distillation_target(teacher, z, i, 4)

    student = Diffusion(perfect, teacher.schedule, "v")
    for weighting in WEIGHTINGS:
        assert distillation_loss(student, teacher, x, eps, i, 4, weighting).max() == 0
        assert distillation_loss(teacher, teacher, x, eps, i, 4, weighting).min() > 0


def test_no_gradient_reaches_the_teacher():
    weights = [torch.nn.Parameter(torch.tensor(value)) for value in (1.0, 0.5)]
    teacher, student = (Diffusion(lambda z, logsnr, label, w=w: w * z, CosineSchedule(), "v") for w in weights)
    x, i = torch.randn(2, 1, 3, 3), torch.tensor([1, 2])
    distillation_loss(student, teacher, x, torch.randn_like(x), i, 2, "v_mse").mean().backward()
    assert weights[0].grad is None and weights[1].grad is not None


@pytest.mark.parametrize("prediction", ["v", "eps", "x"])
def test_predictions_agree(prediction):
    """Three networks that know the same x and eps, each saying it its own way, have the same v."""
    schedule = CosineSchedule()
    x, eps = torch.rand(8, 3, 4, 4, dtype=torch.float64) * 2 - 1, torch.randn(8, 3, 4, 4, dtype=torch.float64)
    t = stratified(8)
    phi = schedule.angle(t)
    v = velocity(x, eps, phi)
    output = {"v": v, "eps": eps, "x": x}[prediction]
    model = Diffusion(lambda z, logsnr, label: output, schedule, prediction)
    torch.testing.assert_close(model.v(add_noise(x, eps, phi), t), v, rtol=1e-9, atol=1e-9)


def test_weightings_are_errors_of_x_eps_and_v():
    schedule = CosineSchedule()
    t = stratified(16)
    phi = schedule.angle(t)
    z, v, v_other = (torch.randn(16, 1, 3, 3, dtype=torch.float64) for _ in range(3))
    (x, eps), (x_other, eps_other) = turned(z, v, phi), turned(z, v_other, phi)
    of_x = (x - x_other).square().mean(dim=(1, 2, 3))
    of_eps = (eps - eps_other).square().mean(dim=(1, 2, 3))
    snr = schedule.logsnr(t).exp()
    for weighting, expected in {
        "constant": of_x,
        "snr": snr * of_x,
        "snr_trunc": torch.maximum(of_x, of_eps),
        "v_mse": (snr + 1) * of_x,
    }.items():
        torch.testing.assert_close(weighted_mse(v, v_other, phi, weighting), expected)


def test_stratified_times_fill_every_interval():
    numbers = stratified(1000)
    assert (numbers * 1000).long().tolist() == list(range(1000))
    assert numbers.dtype == torch.float64 and numbers.max() < 1


@pytest.mark.parametrize("num_steps", [1, 2, 8, 512])
def test_students_are_trained_at_every_step_and_at_t_1(num_steps):
    """The numbers that distill.py makes of stratified ones: i in {1, ..., N}, the first step of sampling included."""
    i = 1 + (stratified(4 * num_steps) * num_steps).long()
    assert sorted(set(i.tolist())) == list(range(1, num_steps + 1))


def test_steps_join_and_the_last_ends_at_no_noise():
    begin, end = step_angles(CosineSchedule(), torch.arange(1, 9, dtype=torch.float64), 8)
    assert end[0] == 0
    assert torch.equal(begin[:-1], end[1:])
    assert begin[-1] == CosineSchedule().angle(torch.ones((), dtype=torch.float64))
