import pytest
import torch

from models.diffusion import Diffusion
from utils.checkpoints import build_model
from utils.config import Config
from utils.pictures import grid, side_by_side
from utils.randomness import SampleNoise, seed_of
from utils.sampling import draw_samples

CPU = torch.device("cpu")


def lesson(**sampling) -> tuple[Diffusion, Config]:
    """A model with random weights, all of them: its samples depend on all that they may depend on."""
    config = Config.model_validate(
        {
            "data": {"name": "MNIST", "image_size": 8, "num_channels": 3},
            "network": {
                "features": 8,
                "multipliers": [1, 2],
                "num_residual_blocks": 1,
                "attention_resolutions": [],
                "num_classes": 3,
            },
            "sampling": sampling,
        }
    )
    torch.manual_seed(0)
    model = build_model(config, CPU)
    for parameter in model.network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.network.eval()
    return model, config


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_sample_17_is_sample_17_at_any_batch_size(sampler):
    def draw(batch_size):
        model, config = lesson(sampler=sampler, batch_size=batch_size)
        return draw_samples(model, config, 20, sampling_steps=5, seed=3, device=CPU)

    together = draw(20)
    torch.testing.assert_close(draw(7), together, atol=1e-4, rtol=0)
    torch.testing.assert_close(draw(1), together, atol=1e-4, rtol=0)
    assert (together[17] - together[14]).abs().max() > 0.1  # of the same class, from other noise


def test_the_seed_changes_the_samples_and_pictures_lie_within_their_range():
    model, config = lesson()
    one, other = (draw_samples(model, config, 3, sampling_steps=3, seed=s, device=CPU) for s in (0, 1))
    assert (one - other).abs().max() > 0.1
    assert one.abs().max() <= 1


def test_seeds_never_collide_within_a_run():
    assert len({seed_of("sample", 0, index=i) for i in range(10_000)}) == 10_000
    assert seed_of("sample", 0) != seed_of("sample", 1) != seed_of("step", 1)
    assert all(0 <= seed_of("x", index=i) < 2**32 for i in range(0, 2**32, 2**28))


def test_noise_is_standard_normal_and_fresh_each_time():
    noise = SampleNoise(0, range(500), (1, 8, 8), CPU)
    first, second = noise(), noise()
    assert first.mean().item() == pytest.approx(0, abs=0.02) and first.std().item() == pytest.approx(1, abs=0.02)
    assert abs((first * second).mean().item()) < 0.02


def test_a_grid_holds_the_images_in_order():
    images = torch.linspace(-1, 1, 6)[:, None, None, None].expand(-1, 1, 4, 4)
    picture = grid(images)
    assert picture.shape == (3, 2 * 6 + 2, 3 * 6 + 2)
    torch.testing.assert_close(picture[0, [3, 9]][:, [3, 9, 15]], torch.linspace(0, 1, 6).reshape(2, 3))


def test_a_grid_has_a_column_for_each_class_where_they_fit():
    images = torch.zeros(12, 1, 4, 4)
    assert grid(images, num_classes=6).shape == (3, 2 * 6 + 2, 6 * 6 + 2)
    assert grid(images, num_classes=100).shape == grid(images).shape == (3, 3 * 6 + 2, 4 * 6 + 2)
    assert side_by_side([("a", images), ("b", images)], num_classes=6).shape[2] == 2 * 2 * (6 * 6 + 2)
    assert side_by_side(4 * [("a", images)], num_classes=6).shape[2] == 4 * 2 * (4 * 6 + 2)


def test_panels_stand_side_by_side_under_their_labels():
    images = torch.zeros(4, 3, 16, 16)
    picture = side_by_side([("one", images), ("a label far too long for so narrow a panel", images)])
    width = 2 * (2 * 18 + 2)
    assert picture.shape[0] == 3 and picture.shape[2] == 2 * width
    labels = picture[:, : picture.shape[1] - width]
    assert (labels[:, :, :width] < 0.5).any() and (labels[:, :, width:] < 0.5).any()
    assert (picture[:, -width // 2, width // 4] == 0.5).all()
