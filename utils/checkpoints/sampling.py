"""Sampling a model: each sample has its own index and noise, and the batches are divided among the ranks."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from models.diffusion import Diffusion
from models.guidance import guided
from models.samplers import SAMPLERS
from utils.config.schema import Config, SamplerSettings
from utils.system.distributed import distributed_map, tasks_per_rank
from utils.system.errors import counted
from utils.system.seeds import SampleNoise


def network_evaluations(sampling: SamplerSettings, guidance: float, *, takes_guidance: bool) -> int:
    """The network evaluations of a sample; guidance doubles them, unless the scale is an input of the network."""
    of_guidance = 1 if guidance == 1 or takes_guidance else 2
    return sampling.steps * SAMPLERS[sampling.sampler].evaluations_per_step * of_guidance


def batches_of(count: int, batch_size: int) -> list[range]:
    """The indices of `count` samples, split into batches."""
    return [range(count)[start : start + batch_size] for start in range(0, count, batch_size)]


@torch.inference_mode()
def draw_batch(
    model: Diffusion,
    config: Config,
    indices: range,
    *,
    sampling: SamplerSettings,
    guidance: float = 1.0,
    classes: Sequence[int] | None = None,
    seed: int,
    device: torch.device,
    tick: Callable[[], object],
) -> Tensor:
    """The samples of the given indices as one batch, [B, C, H, W] in [-1, 1].

    A sample depends on its index, the seed and the sampler's settings, not on its batch. A class-conditional model
    cycles through `classes`; by default, sample i is of class i modulo their number. `tick()` is called at each network
    evaluation.
    """
    sampler, data = SAMPLERS[sampling.sampler], config.data
    classes = classes or range(config.network.num_classes)

    def network(*inputs: Tensor | None) -> Tensor:
        tick()
        return model.network(*inputs)

    scale = torch.full((len(indices),), guidance, dtype=torch.float64)
    sampled = guided(replace(model, network=network), scale if model.takes_guidance or guidance != 1 else None)
    noise = SampleNoise(seed, indices, (data.num_channels, data.image_size, data.image_size), device)
    label = torch.tensor([classes[i % len(classes)] for i in indices], device=device) if classes else None
    options = {"label": label, "clip": sampling.clip}
    if sampler.stochastic:
        options |= {"noise": noise, "variance": sampling.variance_fraction}
    return sampler.sample(sampled, noise(), sampling.steps, **options).clamp(-1, 1)


def draw_all(draw: Callable[[range], Tensor], count: int, batch_size: int) -> Tensor:
    """All samples with indices below `count`, drawn by `draw`, as one [N, C, H, W] on the CPU of every rank."""
    return torch.cat(list(distributed_map(lambda indices: draw(indices).cpu(), batches_of(count, batch_size))))


def draw_samples(
    model: Diffusion,
    config: Config,
    count: int,
    *,
    sampling: SamplerSettings,
    guidance: float = 1.0,
    batch_size: int | None = None,
    check: Callable[[], object] = lambda: None,
    **options: Any,
) -> Tensor:
    """The first `count` samples as one [N, C, H, W] on the CPU of every rank, with a progress bar.

    `check()` is called at each network evaluation; it may raise. The `options` are further arguments of `draw_batch`.
    """
    batch_size = batch_size or config.sampling.batch_size
    evaluations = network_evaluations(sampling, guidance, takes_guidance=model.takes_guidance)
    total = tasks_per_rank(batches_of(count, batch_size)) * evaluations
    with tqdm(total=total, desc=f"sampling {counted(sampling.steps, 'step')}", leave=False) as bar:

        def tick() -> None:
            bar.update()
            check()

        options |= {"sampling": sampling, "guidance": guidance, "tick": tick}
        return draw_all(partial(draw_batch, model, config, **options), count, batch_size)
