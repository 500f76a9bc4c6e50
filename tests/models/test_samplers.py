import pytest
import torch
from golden_numbers import DTYPES, assert_golden, stand_in, tensor

from models.diffusion import Diffusion
from models.noise_schedule import CosineSchedule, LinearSchedule
from models.samplers import SAMPLERS, ancestral, ddim, posterior

MEAN, DEVIATION = 0.3, 0.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("entry", range(30))
def test_ddim_is_the_authors(golden, entry, dtype):
    numbers = golden["ddim"][entry]
    model = stand_in(golden, "student", numbers["prediction"])
    x = ddim(model, tensor(numbers["z1"], dtype), numbers["steps"], clip=numbers["clip"])
    assert_golden(x, numbers["x0"], cancellation=numbers["steps"] > 8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("entry", range(3))
def test_posterior_is_the_authors(golden, entry, dtype):
    numbers = golden["posterior"][entry]
    fraction = {"small": 0.0, "large": 1.0, "medium:0.3": 0.3}[numbers["variance"]]
    logsnr_s, logsnr_t = (CosineSchedule().logsnr(tensor(numbers[name])) for name in "st")
    mean, log_variance = posterior(
        tensor(numbers["z_t"], dtype), tensor(numbers["x"], dtype), logsnr_s, logsnr_t, fraction
    )
    assert_golden(mean, numbers["mean"])
    assert_golden(log_variance[:, None, None, None].expand_as(mean), numbers["logvar"])


def gaussian(schedule, prediction="v") -> Diffusion:
    """The network that knows the answer for pixels of a Gaussian: E[v | z] in closed form."""

    def network(z, logsnr, label=None):
        alpha, sigma = (torch.sigmoid(sign * logsnr).sqrt()[:, None, None, None] for sign in (1, -1))
        surprise = (z - alpha * MEAN) / (alpha**2 * DEVIATION**2 + sigma**2)
        x, eps = MEAN + alpha * DEVIATION**2 * surprise, sigma * surprise
        return {"v": alpha * eps - sigma * x, "eps": eps, "x": x}[prediction]

    return Diffusion(network, schedule, prediction)


@pytest.mark.parametrize("schedule", [CosineSchedule(), LinearSchedule()])
@pytest.mark.parametrize("prediction", ["v", "eps", "x"])
def test_ddim_finds_the_gaussian(schedule, prediction):
    """The exact flow takes z to MEAN + DEVIATION z; the error of N steps is of the order 1/N."""
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None, None, None]
    model = gaussian(schedule, prediction)
    errors = [(ddim(model, z, n, clip=False) - (MEAN + DEVIATION * z)).abs().max() for n in (256, 512, 1024)]
    assert errors[2] < 0.01
    assert 1.8 < errors[0] / errors[1] < 2.2 and 1.8 < errors[1] / errors[2] < 2.2


@pytest.mark.parametrize("variance", [0.0, 0.3, 1.0])
def test_ancestral_finds_the_gaussian(variance):
    noise = lambda: torch.randn(20_000, 1, 1, 1, dtype=torch.float64)  # noqa: E731
    x = ancestral(gaussian(CosineSchedule()), noise(), 256, noise=noise, clip=False, variance=variance)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.02)  # 0.0035 is one standard error
    assert x.std().item() == pytest.approx(DEVIATION, abs=0.015)


def test_ancestral_draws_fresh_noise_at_each_step_but_the_last(golden):
    drawn = []

    def noise():
        drawn.append(torch.randn(2, 1, 3, 3))
        return drawn[-1]

    ancestral(stand_in(golden, "student", "v"), torch.randn(2, 1, 3, 3), 5, noise=noise)
    assert len(drawn) == 4


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_clipping_holds_every_x_within_the_range(sampler):
    """A network that sees x = 3 everywhere: clipped, the sample is 1 and not 3."""
    model = Diffusion(lambda z, logsnr, label: torch.full_like(z, 3.0), CosineSchedule(), "x")
    z = torch.randn(2, 1, 2, 2, dtype=torch.float64)

    def sample(clip):
        if sampler == "ddim":
            return ddim(model, z, 4, clip=clip)
        return ancestral(model, z, 4, noise=lambda: torch.randn_like(z), clip=clip)

    torch.testing.assert_close(sample(True), torch.ones_like(z))
    torch.testing.assert_close(sample(1.5), torch.full_like(z, 1.5))
    torch.testing.assert_close(sample(False), torch.full_like(z, 3.0))


def test_the_label_reaches_the_network():
    model = Diffusion(lambda z, logsnr, label: label.to(z)[:, None, None, None].expand_as(z), CosineSchedule(), "x")
    z, label = torch.randn(3, 1, 2, 2), torch.tensor([0, 1, -1])
    for x in (ddim(model, z, 3, label=label), ancestral(model, z, 3, noise=lambda: torch.randn_like(z), label=label)):
        torch.testing.assert_close(x[:, 0, 0, 0], label.float(), atol=1e-5, rtol=0)


def test_every_sampler_of_the_table_returns_what_its_function_does():
    """And a stochastic one draws noise, which changes its samples; another one has no use for it."""
    model, z = gaussian(CosineSchedule()), torch.randn(8, 1, 1, 1, dtype=torch.float64)
    for name, sampler in SAMPLERS.items():
        options = {"noise": lambda: torch.randn_like(z), "variance": 0.0} if sampler.stochastic else {}
        one, other = (sampler.sample(model, z, 4, label=None, clip=False, **options) for _ in range(2))
        assert torch.equal(one, other) != sampler.stochastic, name
