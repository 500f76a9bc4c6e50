"""Drawing pictures from a model: each sample by its index, in batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from models.diffusion import Diffusion
from models.samplers import ancestral, ddim
from utils.config import Config
from utils.randomness import SampleNoise


def num_batches(count: int, batch_size: int) -> int:
    """How many batches so many samples make."""
    return -(-count // batch_size)


@torch.inference_mode()
def sample_batches(
    model: Diffusion,
    config: Config,
    indices: Sequence[int],
    *,
    sampling_steps: int,
    seed: int,
    device: torch.device,
    tick: Callable[[], object],
) -> Iterator[Tensor]:
    """The samples of the given indices, batch after batch, [B, C, H, W] in [-1, 1].

    A sample depends on its index, the seed and the number of steps, not on its batch. In a model with classes,
    sample i is of class i modulo the number of classes. `tick()` is called at each evaluation of the network.
    """
    settings, num_classes = config.sampling, config.network.num_classes
    shape = (config.data.num_channels, config.data.image_size, config.data.image_size)

    def counted(*inputs: Tensor | None) -> Tensor:
        tick()
        return model.network(*inputs)

    counting = replace(model, network=counted)
    for start in range(0, len(indices), settings.batch_size):
        batch = indices[start : start + settings.batch_size]
        noise = SampleNoise(seed, batch, shape, device)
        label = torch.tensor([i % num_classes for i in batch], device=device) if num_classes else None
        options = {"label": label, "clip": settings.clip}
        if settings.sampler == "ddim":
            x = ddim(counting, noise(), sampling_steps, **options)
        else:
            x = ancestral(counting, noise(), sampling_steps, noise, variance=settings.variance_fraction, **options)
        yield x.clamp(-1, 1)


def draw_samples(
    model: Diffusion,
    config: Config,
    indices: Sequence[int],
    *,
    sampling_steps: int,
    seed: int,
    device: torch.device,
) -> Tensor:
    """All of `sample_batches` as one [N, C, H, W] on the CPU, with a bar."""
    total = num_batches(len(indices), config.sampling.batch_size) * sampling_steps
    with tqdm(total=total, desc=f"sampling {sampling_steps} steps", leave=False) as bar:
        options = {"sampling_steps": sampling_steps, "seed": seed, "device": device, "tick": bar.update}
        return torch.cat([x.cpu() for x in sample_batches(model, config, indices, **options)])
