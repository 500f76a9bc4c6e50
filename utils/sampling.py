"""Drawing pictures from a model: each sample by its index, in batches, with a bar."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from models.diffusion import Diffusion
from models.samplers import ancestral, ddim
from utils.config import Config
from utils.randomness import SampleNoise


@torch.inference_mode()
def draw_samples(
    model: Diffusion,
    config: Config,
    indices: Sequence[int],
    *,
    sampling_steps: int,
    seed: int,
    device: torch.device,
) -> Tensor:
    """The samples of the given indices, [N, C, H, W] on the CPU; in [-1, 1] where the configuration clips.

    A sample depends on its index, the seed and the number of steps, not on its batch. In a model with classes,
    sample i is of class i modulo the number of classes.
    """
    settings, num_classes = config.sampling, config.network.num_classes
    shape = (config.data.num_channels, config.data.image_size, config.data.image_size)
    batches = [indices[i : i + settings.batch_size] for i in range(0, len(indices), settings.batch_size)]
    pictures = []
    with tqdm(total=len(batches) * sampling_steps, desc=f"sampling {sampling_steps} steps", leave=False) as bar:

        def counted(*inputs: Tensor | None) -> Tensor:
            bar.update()
            return model.network(*inputs)

        counting = replace(model, network=counted)
        for batch in batches:
            noise = SampleNoise(seed, batch, shape, device)
            label = torch.tensor([i % num_classes for i in batch], device=device) if num_classes else None
            options = {"label": label, "clip": settings.clip}
            if settings.sampler == "ddim":
                x = ddim(counting, noise(), sampling_steps, **options)
            else:
                variance = settings.variance_fraction
                x = ancestral(counting, noise(), sampling_steps, noise, variance=variance, **options)
            pictures.append(x.cpu())
    return torch.cat(pictures)
