import pytest
import torch

from utils.system.seeds import SampleNoise, normal_noise, seed_of


def test_seeds_never_collide_within_a_run():
    assert len({seed_of("sample", 0, index=i) for i in range(10_000)}) == 10_000
    assert seed_of("sample", 0) != seed_of("sample", 1) != seed_of("step", 1)
    assert all(0 <= seed_of("x", index=i) < 2**32 for i in range(0, 2**32, 2**28))


def test_noise_is_standard_normal_and_fresh_each_time():
    noise = SampleNoise(0, range(500), (1, 8, 8), torch.device("cpu"))
    first, second = noise(), noise()
    assert first.mean().item() == pytest.approx(0, abs=0.02) and first.std().item() == pytest.approx(1, abs=0.02)
    assert abs((first * second).mean().item()) < 0.02


def test_noise_of_an_image_is_the_same_whatever_it_is_drawn_with():
    eps = normal_noise(range(500), torch.zeros(500, 3, 8, 8))
    assert eps.mean().item() == pytest.approx(0, abs=0.02) and eps.std().item() == pytest.approx(1, abs=0.02)
    assert eps.flatten(1).corrcoef().fill_diagonal_(0).abs().max() < 0.4
    assert torch.equal(normal_noise(range(100, 120), torch.zeros(20, 3, 8, 8)), eps[100:120])
