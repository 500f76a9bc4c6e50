"""A network of diffusers (https://github.com/huggingface/diffusers) in place of ours: its class, not a copy of it."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from models.blocks import embed_guidance, embed_label, guidance_layers


class UNet2D(nn.Module):
    """v(z, timestep[, label]), or eps or x, by a `UNet2DModel`.

    The class and the guidance scale are embedded here, as in our U-Net, and their sum enters where the class of a
    `UNet2DModel` does. So "no class" is the vector 0.

    Args:
        image_size, num_channels: height and width, and channels, of the images.
        num_classes: 0 for a network without classes.
        takes_guidance: whether the network is given the guidance scale as well: see models/guidance.py.
        settings: the keys of `UNet2DModel`, but for those that follow from the others.

    Attributes:
        bfloat16: whether it computes in bfloat16 where PyTorch's autocast does (False, until it is set).

    Raises:
        ImportError: diffusers is not installed.
        ValueError: diffusers refuses the settings.
    """

    def __init__(
        self, *, image_size: int, num_channels: int, num_classes: int = 0, takes_guidance: bool = False, **settings: Any
    ):
        from diffusers import UNet2DModel  # which few need, and which takes seconds

        super().__init__()
        self.bfloat16 = False
        self.num_classes = num_classes
        self.unet = UNet2DModel(
            sample_size=image_size,
            in_channels=num_channels,
            out_channels=num_channels,
            class_embed_type="identity" if num_classes else None,  # adds the vector that it is given
            **settings,
        )
        self.features, embedding = settings["block_out_channels"][0], self.unet.time_embedding.linear_2.out_features
        self.embed_label = nn.Embedding(num_classes, embedding) if num_classes else None
        self.embed_guidance = guidance_layers(self.features, embedding) if takes_guidance else None

    def forward(
        self, z: Tensor, timestep: Tensor, label: Tensor | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        """The network's prediction, in the shape of z.

        Args:
            z: [B, C, H, W].
            timestep: [B], on the network's own scale; not necessarily whole.
            label: a class [B] in [0, num_classes), or NO_CLASS, if the network has classes.
            guidance: the guidance scale [B], if the network takes it.
        """
        vector = None
        if self.embed_label is not None:
            vector = embed_label(self.embed_label, label)
        if self.embed_guidance is not None:
            vector = vector + embed_guidance(self.embed_guidance, guidance, self.features)
        with torch.autocast(z.device.type, torch.bfloat16) if self.bfloat16 else nullcontext():
            return self.unet(z, timestep, vector, return_dict=False)[0].float()

    def for_inference(self) -> "UNet2D":
        """The same network, in place, without dropout and no longer to be trained."""
        return self.eval().requires_grad_(False)
