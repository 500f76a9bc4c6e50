"""Pictures that scripts write: grids of samples, and the grids of several models side by side."""

import math
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from torchvision.utils import make_grid, save_image

from utils.files import write_atomically

LABEL_HEIGHT = 26  # pixels
MOST_COLUMNS, MOST_SORTED_PANELS = 16, 3


def grid(images: Tensor, num_classes: int = 0) -> Tensor:
    """Images [N, C, H, W] in [-1, 1] as one picture [3, H', W'] in [0, 1]: a column for each class, or near to square.

    Sample i of a model with classes is of class i modulo their number; so many columns, where they fit, sort them.
    """
    sorts = 1 < num_classes <= min(len(images), MOST_COLUMNS)
    columns = num_classes if sorts else math.ceil(math.sqrt(len(images)))
    return make_grid((images.clamp(-1, 1) + 1) / 2, nrow=columns, padding=2, pad_value=0.5)


def save_picture(picture: Tensor, path: Path) -> None:
    """Writes a picture [3, H, W] in [0, 1] as a PNG."""
    write_atomically(path, lambda file: save_image(picture, file, format="png"))


def side_by_side(panels: list[tuple[str, Tensor]], num_classes: int = 0) -> Tensor:
    """Sets of images [N, C, H, W] in [-1, 1] as one picture [3, H', W'] in [0, 1], each under its label.

    Many panels are not sorted by class, or the picture would be too wide.
    """
    num_classes = num_classes if len(panels) <= MOST_SORTED_PANELS else 0
    labelled = [
        _labelled(label, grid(images, num_classes).repeat_interleave(2, 1).repeat_interleave(2, 2))
        for label, images in panels
    ]
    return torch.cat(labelled, dim=2)


def _labelled(label: str, picture: Tensor) -> Tensor:
    strip = Image.new("RGB", (picture.shape[2], LABEL_HEIGHT), "white")
    font = ImageFont.load_default(size=17)
    width = ImageDraw.Draw(strip).textlength(label, font=font)
    if width > strip.width - 8:  # few samples make a narrow panel
        font = ImageFont.load_default(size=17 * (strip.width - 8) / width)
        width = ImageDraw.Draw(strip).textlength(label, font=font)
    ImageDraw.Draw(strip).text(((strip.width - width) / 2, 3), label, fill="black", font=font)
    return torch.cat([pil_to_tensor(strip).float() / 255, picture], dim=1)
