"""Writes a checkpoint of a `UNet2DModel` as a folder that needs only diffusers, with a model card."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from models.blocks import embed_guidance
from models.diffusion import Diffusion
from models.noise_schedule import betas_at
from utils.checkpoints.checkpoint import Checkpoint
from utils.checkpoints.from_diffusers import PREDICTIONS
from utils.system.errors import InputError, counted
from utils.system.files import temporary_name

MOST_ROUNDING = 1e-3  # of the noise angle

CARD = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags: [{tags}]
---

# {title}

{made_for}. (To be completed: what it was trained on, and its licence, also as `datasets` and `license` above.)

{code}

The scheduler belongs to the model: its own betas and clipping, trailing timesteps. With another scheduler, or another
number of steps, the samples get worse. Images: {size} x {size}, {channels} channel(s).{classes}
"""
METHODS = {
    "matched": "moment matching, [Salimans et al. 2024](https://arxiv.org/abs/2406.04103)",
    "student": "progressive distillation, [Salimans & Ho 2022](https://arxiv.org/abs/2202.00512)",
}
TAGS = {"matched": "moment-matching, few-step", "student": "progressive-distillation, few-step"}
UNCONDITIONAL = """    from diffusers import {pipeline}

    images = {pipeline}.from_pretrained("FOLDER")(batch_size=16, num_inference_steps={steps}{clipped}).images"""
CONDITIONAL = """    import torch
    from diffusers import {pipeline}

    pipeline = {pipeline}.from_pretrained("FOLDER")  # its own call has no classes
    z, label = torch.randn(16, {channels}, {size}, {size}), torch.arange(16) % {num_classes}
    pipeline.scheduler.set_timesteps({steps})
    with torch.no_grad():
        for timestep in pipeline.scheduler.timesteps:
            z = pipeline.scheduler.step(pipeline.unet(z, timestep, label).sample, timestep, z{clipped}).prev_sample
    images = pipeline.numpy_to_pil((z / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy())"""


def require_exportable(checkpoint: Checkpoint) -> int:
    """The number of steps of an exported model. Raises InputError if diffusers cannot run it, or not in these steps."""
    network, steps = checkpoint.config.network, checkpoint.sampling.steps
    if network.type != "unet2d":
        raise InputError(f"--to_diffusers: {checkpoint.path}: not network.type unet2d; --to_onnx exports any network")
    timesteps = network.num_train_timesteps
    if checkpoint.is_student and timesteps % steps:  # diffusers would round
        raise InputError(f"--to_diffusers: {checkpoint.path}: {steps} steps do not divide its {timesteps} timesteps")
    return min(steps, timesteps)


def write_pipeline(checkpoint: Checkpoint, folder: Path, scale: float) -> None:
    """Writes the folder, completely or not at all; a model that takes the guidance scale gets this one built in.

    A model of the ancestral sampler becomes a `DDPMPipeline`, with the smallest variance; any other a `DDIMPipeline`.
    """
    import diffusers

    steps, model = require_exportable(checkpoint), checkpoint.model(torch.device("cpu"))
    network, config = model.network, checkpoint.config
    weights = network.unet.state_dict()
    settings = {key: value for key, value in network.unet.config.items() if not key.startswith("_")}
    if network.num_classes:
        weights["class_embedding.weight"] = _class_vectors(checkpoint, model, scale)
        settings |= {"class_embed_type": None, "num_class_embeds": len(weights["class_embedding.weight"])}
    unet = diffusers.UNet2DModel(**settings)
    unet.load_state_dict(weights)
    timesteps = config.network.num_train_timesteps
    sampler = _sampler(checkpoint)
    scheduler = getattr(diffusers, f"{sampler}Scheduler")(
        num_train_timesteps=timesteps,
        trained_betas=betas_at(model.schedule, timesteps).tolist(),
        prediction_type=next(theirs for theirs, ours in PREDICTIONS.items() if ours == model.prediction),
        timestep_spacing="trailing",
        clip_sample=bool(checkpoint.sampling.clip),
        clip_sample_range=float(checkpoint.sampling.clip or 1),
        **({"variance_type": "fixed_small"} if sampler == "DDPM" else {"set_alpha_to_one": True}),
    )
    _require_precise(checkpoint.path, scheduler, model, steps)
    folder = folder.absolute()
    temporary = temporary_name(folder)
    try:
        getattr(diffusers, f"{sampler}Pipeline")(unet, scheduler).save_pretrained(temporary)
        (temporary / "README.md").write_text(_card(checkpoint, steps, scale, folder.name), encoding="utf-8")
        os.replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder}: cannot be written: {getattr(error, 'strerror', None) or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sampler(checkpoint: Checkpoint) -> str:
    """What diffusers calls a checkpoint's sampler."""
    return "DDPM" if checkpoint.sampling.sampler == "ancestral" else "DDIM"


def _require_precise(path: Path, scheduler: Any, model: Diffusion, steps: int) -> None:
    """Raises InputError if diffusers, which multiplies betas in float32, would round the schedule too much."""
    scheduler.set_timesteps(steps)
    alpha_squared = scheduler.alphas_cumprod[scheduler.timesteps].double()
    t = (scheduler.timesteps.double() + 1) / len(scheduler.alphas_cumprod)
    lost = (alpha_squared.sqrt().acos() - model.schedule.angle(t)).abs() > MOST_ROUNDING
    if (lost | (alpha_squared == 1)).any():
        raise InputError(f"--to_diffusers: {path}: diffusers rounds its noise schedule too much; --to_onnx exports it")


def _class_vectors(checkpoint: Checkpoint, model: Diffusion, scale: float) -> Tensor:
    """The class embeddings of a `UNet2DModel`; the unconditional one comes last if the model was trained with it."""
    network = model.network
    vectors = network.embed_label.weight.detach()
    if checkpoint.kind == "teacher" and checkpoint.config.training.class_dropout:
        vectors = torch.cat([vectors, torch.zeros_like(vectors[:1])])
    if network.embed_guidance is not None:
        with torch.no_grad():
            vectors = vectors + embed_guidance(network.embed_guidance, torch.tensor([scale]), network.features)
    return vectors


def _card(checkpoint: Checkpoint, steps: int, scale: float, title: str) -> str:
    """The text of the folder's README.md."""
    data, names = checkpoint.config.data, checkpoint.class_names
    made_for = "A model that is not distilled"
    if checkpoint.is_student:
        made_for = f"Samples in {counted(steps, 'step')} ({METHODS[checkpoint.kind]})"
    if checkpoint.guidance:
        made_for += f", with a guidance scale of {scale:g} built in"
    shape = {"size": data.image_size, "channels": data.num_channels, "num_classes": len(names), "steps": steps}
    shape["tags"] = TAGS.get(checkpoint.kind, "ddpm")
    shape["pipeline"] = f"{_sampler(checkpoint)}Pipeline"
    clipped = checkpoint.sampling.clip and _sampler(checkpoint) == "DDIM"  # which keeps the unclipped eps by default
    shape["clipped"] = ", use_clipped_model_output=True" if clipped else ""
    code = (CONDITIONAL if names else UNCONDITIONAL).format(**shape)
    classes = f" Classes, in order: {', '.join(names)}." if names else ""
    return CARD.format(title=title, made_for=made_for, code=code, classes=classes, **shape)
