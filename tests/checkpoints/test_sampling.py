import pytest
import torch

from models.diffusion import Diffusion
from utils.checkpoints.checkpoint import build_model
from utils.checkpoints.sampling import draw_samples
from utils.config.schema import Config, SamplerSettings

CPU = torch.device("cpu")


def lesson() -> tuple[Diffusion, Config]:
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
        model, config = lesson()
        options = {"sampling": SamplerSettings(steps=5, sampler=sampler), "batch_size": batch_size}
        return draw_samples(model, config, 20, seed=3, device=CPU, **options)

    together = draw(20)
    torch.testing.assert_close(draw(7), together, atol=1e-4, rtol=0)
    torch.testing.assert_close(draw(1), together, atol=1e-4, rtol=0)
    assert (together[17] - together[14]).abs().max() > 0.1  # of the same class, from other noise


def test_the_seed_changes_the_samples_and_pictures_lie_within_their_range():
    model, config = lesson()
    sampling = SamplerSettings(steps=3)
    one, other = (draw_samples(model, config, 3, sampling=sampling, seed=s, device=CPU) for s in (0, 1))
    assert (one - other).abs().max() > 0.1
    assert one.abs().max() <= 1


def test_an_unknown_sampler_is_an_error():
    model, config = lesson()
    sampling = SamplerSettings(steps=3).model_copy(update={"sampler": "dpm"})
    with pytest.raises(KeyError, match="dpm"):
        draw_samples(model, config, 3, sampling=sampling, seed=0, device=CPU)
