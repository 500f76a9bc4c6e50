"""Pictures that scripts write: grids of samples, and the grids of several models side by side."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from torchvision.utils import make_grid, save_image

from utils.files import write_atomically

PADDING = 2  # pixels between images
LABEL_HEIGHT, LONGEST_HEADING = 26, 110  # pixels
FONT_SIZE, HEADING_SIZE = 17, 11
MOST_COLUMNS = 16  # that are sorted by class
MOST_SORTED_PANELS, MOST_ENLARGED_PANELS = 5, 3


def grid(images: Tensor, class_names: Sequence[str] = (), scale: int = 1) -> Tensor:
    """Images [N, C, H, W] in [-1, 1] as one picture [3, H', W'] in [0, 1], near to square.

    Sample i of a model with classes is of class i modulo their number. Where they are not too many, each class has a
    column, or several, under its name. Each pixel becomes `scale` pixels each way.
    """
    columns = math.ceil(math.sqrt(len(images)))
    sorts = 1 < len(class_names) <= min(len(images), MOST_COLUMNS)
    if sorts:
        columns = len(class_names) * max(1, round(columns / len(class_names)))
    picture = make_grid((images.clamp(-1, 1) + 1) / 2, nrow=columns, padding=PADDING, pad_value=0.5)
    picture = picture.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    if not sorts:
        return picture
    names = [class_names[i % len(class_names)] for i in range(columns)]
    return torch.cat([_headings(names, scale * (images.shape[-1] + PADDING), picture.shape[2]), picture], dim=1)


def save_picture(picture: Tensor, path: Path) -> None:
    """Writes a picture [3, H, W] in [0, 1] as a PNG."""
    write_atomically(path, lambda file: save_image(picture, file, format="png"))


def side_by_side(panels: list[tuple[str, Tensor]], class_names: Sequence[str] = ()) -> Tensor:
    """Sets of images [N, C, H, W] in [-1, 1] as one picture [3, H', W'] in [0, 1], each under its label.

    Many panels are not enlarged, and still more not sorted by class, or the picture would be too wide.
    """
    sorts = len(class_names) > 1 and len(panels) <= MOST_SORTED_PANELS
    scale = 1 if sorts and len(panels) > MOST_ENLARGED_PANELS else 2
    return torch.cat(
        [_labelled(label, grid(images, class_names if sorts else (), scale)) for label, images in panels], dim=2
    )


def _headings(names: list[str], column: int, width: int) -> Tensor:
    """The names of columns, each so many pixels wide; upright where one is wider."""
    font = ImageFont.load_default(size=HEADING_SIZE)
    names = [_shortened(name, font) for name in names]
    texts = [Image.new("L", (math.ceil(font.getlength(name)) + 4, 16), 255) for name in names]
    for name, text in zip(names, texts, strict=True):
        ImageDraw.Draw(text).text((2, 1), name, fill=0, font=font)
    if any(text.width > column for text in texts):
        texts = [text.transpose(Image.Transpose.ROTATE_90) for text in texts]
    strip = Image.new("L", (width, max(text.height for text in texts) + 2), 255)
    for i, text in enumerate(texts):
        strip.paste(text, (i * column + (column - text.width) // 2, strip.height - text.height))
    return pil_to_tensor(strip).float().expand(3, -1, -1) / 255


def _shortened(name: str, font: ImageFont.FreeTypeFont) -> str:
    short = name
    while font.getlength(name) > LONGEST_HEADING:
        short = short[:-1]
        name = f"{short}..."
    return name


def _labelled(label: str, picture: Tensor) -> Tensor:
    strip = Image.new("RGB", (picture.shape[2], LABEL_HEIGHT), "white")
    font = ImageFont.load_default(size=FONT_SIZE)
    width = ImageDraw.Draw(strip).textlength(label, font=font)
    if width > strip.width - 8:  # few samples make a narrow panel
        font = ImageFont.load_default(size=FONT_SIZE * (strip.width - 8) / width)
        width = ImageDraw.Draw(strip).textlength(label, font=font)
    ImageDraw.Draw(strip).text(((strip.width - width) / 2, 3), label, fill="black", font=font)
    return torch.cat([pil_to_tensor(strip).float() / 255, picture], dim=1)
