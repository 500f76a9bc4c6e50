"""Pipelines of diffusers, tiny and untrained, as `save_pretrained` writes them."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor

UNET = {
    "sample_size": 16,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}


def save_pipeline(folder: Path, *, unet: dict[str, Any] | None = None, **scheduler: Any) -> UNet2DModel:
    """Writes a pipeline with random weights, and returns its network."""
    torch.manual_seed(0)
    network = UNet2DModel(**UNET | (unet or {})).eval()
    DDPMPipeline(network, DDPMScheduler(**scheduler)).save_pretrained(folder)
    return network


@torch.no_grad()
def draw(
    network: UNet2DModel,
    scheduler: DDIMScheduler | DDPMScheduler,
    z: Tensor,
    steps: int,
    label: Tensor | None = None,
    **options: bool,
) -> Tensor:
    """What the loop of `DDIMPipeline` draws from the noise z, before it is clipped."""
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        z = scheduler.step(network(z, timestep, label).sample, timestep, z, **options).prev_sample
    return z


def stock(folder: Path) -> tuple[UNet2DModel, DDIMScheduler]:
    """A pipeline read by diffusers, with timesteps such that the first is the last that it was trained with."""
    pipeline = DDIMPipeline.from_pretrained(folder)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing", clip_sample=False)
    return pipeline.unet, scheduler
