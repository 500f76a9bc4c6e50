"""Classifier-free guidance (Ho & Salimans 2022), and networks that take the scale as an input (Meng et al. 2022).

The prediction of a class-conditional model that was also trained without labels can be extrapolated away from its
unconditional prediction:

    v = v_unconditional + s (v_class - v_unconditional)

The guidance scale s is 1 for the unguided model and 0 for the unconditional one; a larger s gives samples that match
their class better and vary less. (The w of the two papers is s - 1.) Guidance takes two network evaluations per step; a
network that was distilled with s as an input needs one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.diffusion import UNCONDITIONAL, Diffusion, cast_like, per_image
from models.noise_schedule import NoiseSchedule


def random_scales(scales: list[float] | None, batch_size: int) -> Tensor | None:
    """A guidance scale for each example, [B] in float64, within a range; None without a range.

    Uniform (Meng et al., 3.1), except that a quarter of the examples use the lowest scale, usually 1, where the target
    is the teacher's unguided v. A uniform distribution rarely draws scales near 1, so the student would not learn this
    end of the range, and its samples at s = 1 would look guided.
    """
    if scales is None:
        return None
    low, high = scales
    return low + (high - low) * (torch.rand(batch_size, dtype=torch.float64) - 0.25).clamp(min=0) / 0.75


def relative_to_scale(loss: Tensor, scale: Tensor | None) -> Tensor:
    """The losses [B] at the guidance scales s [B], divided by max(s, 1)^2. (Not in Meng et al.)

    What guidance adds to v grows with s, and so does the student's error; without the division, large scales would
    dominate the loss.
    """
    return loss if scale is None else loss * cast_like(scale.clamp(min=1) ** -2, loss)


@dataclass(frozen=True)
class Guided:
    """A model with guidance: a drop-in replacement for `Diffusion` in samplers, students and teachers."""

    model: Diffusion  # class-conditional; its network takes the scale, or was also trained without labels
    scale: Tensor  # s for each image, [B] in float64, on the CPU

    @property
    def schedule(self) -> NoiseSchedule:
        """The model's own."""
        return self.model.schedule

    @property
    def smallest_time(self) -> float:
        """The model's own."""
        return self.model.smallest_time

    def v(self, z: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """The guided velocity at z [B, C, H, W], the times t [B] and the classes [B]."""
        if self.model.takes_guidance:
            return self.model.v(z, t, label, self.scale)
        v_unconditional = self.model.v(z, t, torch.full_like(label, UNCONDITIONAL))
        v_class = self.model.v(z, t, label)
        return v_unconditional + per_image(self.scale, z) * (v_class - v_unconditional)


def guided(model: Diffusion, scale: Tensor | None) -> Diffusion | Guided:
    """The model with guidance at these scales [B]; the model itself without scales."""
    return model if scale is None else Guided(model, scale)
