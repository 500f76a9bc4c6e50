"""Drawing samples from a model: each by its index, in batches that are divided among the ranks."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from models.diffusion import Diffusion
from models.guidance import evaluations_per_step, guided
from models.samplers import ancestral, ddim
from utils.process.distributed import distributed_map, tasks_per_rank
from utils.process.randomness import SampleNoise
from utils.schema import Config


def batches_of(count: int, batch_size: int) -> list[range]:
    """The indices of `count` samples, split into batches."""
    return [range(count)[start : start + batch_size] for start in range(0, count, batch_size)]


@torch.inference_mode()
def draw_batch(
    model: Diffusion,
    config: Config,
    indices: range,
    *,
    sampling_steps: int,
    guidance: float = 1.0,
    classes: Sequence[int] | None = None,
    seed: int,
    device: torch.device,
    tick: Callable[[], object],
) -> Tensor:
    """The samples of the given indices at once, [B, C, H, W] in [-1, 1].

    A sample depends on its index, the seed and the number of steps, not on its batch. In a model with classes, sample
    i is of the class that comes next in `classes`, again and again; by default, of class i modulo their number.
    `guidance` is the guidance scale. `tick()` is called at each evaluation of the network.
    """
    settings = config.sampling
    classes = classes or range(config.network.num_classes)
    shape = (config.data.num_channels, config.data.image_size, config.data.image_size)

    def counted(*inputs: Tensor | None) -> Tensor:
        tick()
        return model.network(*inputs)

    scale = torch.full((len(indices),), guidance, dtype=torch.float64)
    counting = replace(model, network=counted)
    sampled = guided(counting, scale if model.takes_guidance or guidance != 1 else None)
    noise = SampleNoise(seed, indices, shape, device)
    label = torch.tensor([classes[i % len(classes)] for i in indices], device=device) if classes else None
    options = {"label": label, "clip": settings.clip}
    if settings.sampler == "ddim":
        x = ddim(sampled, noise(), sampling_steps, **options)
    else:
        x = ancestral(sampled, noise(), sampling_steps, noise, variance=settings.variance_fraction, **options)
    return x.clamp(-1, 1)


def draw_all(draw: Callable[[range], Tensor], count: int, batch_size: int) -> Tensor:
    """All samples of the indices below `count`, drawn by `draw`, as one [N, C, H, W] on the CPU of every rank."""
    return torch.cat(list(distributed_map(lambda indices: draw(indices).cpu(), batches_of(count, batch_size))))


def draw_samples(
    model: Diffusion,
    config: Config,
    count: int,
    *,
    sampling_steps: int,
    guidance: float = 1.0,
    classes: Sequence[int] | None = None,
    seed: int,
    device: torch.device,
    check: Callable[[], object] = lambda: None,
) -> Tensor:
    """The first `count` samples as one [N, C, H, W] on the CPU of every rank, with a progress bar.

    `check()` is called at each evaluation of the network; it may raise. The rest is as in `draw_batch`.
    """
    batch_size = config.sampling.batch_size
    total = tasks_per_rank(batches_of(count, batch_size)) * sampling_steps
    total *= evaluations_per_step(guidance, takes_guidance=model.takes_guidance)
    with tqdm(total=total, desc=f"sampling {sampling_steps} steps", leave=False) as bar:

        def tick() -> None:
            bar.update()
            check()

        options = {"sampling_steps": sampling_steps, "guidance": guidance, "classes": classes}
        options |= {"seed": seed, "device": device, "tick": tick}
        return draw_all(partial(draw_batch, model, config, **options), count, batch_size)
