"""Classifier-free guidance (Ho & Salimans 2022), and a network that has learned it (Meng et al. 2022).

A model that knows each class, and what pictures of no particular class look like, can be led away from the latter:

    v = v_none + s (v_class - v_none)

The guidance scale s is counted as most tools do: 1 is the model as it is, 0 knows no class, and a larger s gives
pictures that are more clearly of their class, and less varied. The w of the two papers is s - 1. That takes two
evaluations of the network; one that is given s as an input, and has learned the sum, needs one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.diffusion import NO_CLASS, Diffusion, cast_like, per_image
from models.noise_schedule import NoiseSchedule


def without_class(label: Tensor | None, dropped: Tensor) -> Tensor | None:
    """The classes [B], left out where `dropped` [B] says so: from such examples a model learns what "none" is."""
    return None if label is None else label.masked_fill(dropped.to(label.device), NO_CLASS)


def random_scales(scales: list[float] | None, batch_size: int) -> Tensor | None:
    """A guidance scale for each example, [B] in float64, in a range; None without one.

    Uniform (Meng et al., 3.1), but that a quarter of them are the lowest itself, usually 1: the student must learn
    nothing there but to remain as it is, and by itself forgets that first, since it is only the edge of what it learns.
    """
    if scales is None:
        return None
    low, high = scales
    return low + (high - low) * (torch.rand(batch_size, dtype=torch.float64) - 0.25).clamp(min=0) / 0.75


def relative_to_scale(loss: Tensor, scale: Tensor | None) -> Tensor:
    """The losses [B] of a student at these guidance scales s [B], divided by s^2 above 1. (Not in Meng et al.)

    What guidance adds to v grows with s, and with it the error of a student who learns it; undivided, the loss would be
    that of the largest scales.
    """
    return loss if scale is None else loss * cast_like(scale.clamp(min=1) ** -2, loss)


def evaluations_per_step(scale: float, *, takes_guidance: bool) -> int:
    """How often a network is evaluated in a step of a sampler: twice where it is guided and does not take the scale."""
    return 1 if scale == 1 or takes_guidance else 2


@dataclass(frozen=True)
class Guided:
    """A model with guidance, in place of a `Diffusion` wherever one is sampled, taught or taught by.

    Attributes:
        model: one with classes; either its network takes the scale, or it knows what no class is.
        scale: s for each image, [B] in float64, on the CPU.
    """

    model: Diffusion
    scale: Tensor

    @property
    def schedule(self) -> NoiseSchedule:
        """The model's own."""
        return self.model.schedule

    def v(self, z: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """The velocity at z [B, C, H, W] and the times t [B], led to the classes [B]."""
        if self.model.takes_guidance:
            return self.model.v(z, t, label, self.scale)
        v_none = self.model.v(z, t, torch.full_like(label, NO_CLASS))
        v_class = self.model.v(z, t, label)
        return v_none + per_image(self.scale, z) * (v_class - v_none)


def guided(model: Diffusion, scale: Tensor | None) -> Diffusion | Guided:
    """The model with guidance at these scales [B], or as it is, where there are none."""
    return model if scale is None else Guided(model, scale)
