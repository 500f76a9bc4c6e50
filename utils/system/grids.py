"""Grids of samples as PNG files, and the grids of several models side by side."""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from torchvision.utils import make_grid, save_image

from utils.system.files import write_atomically

PADDING = 2  # pixels between images
LABEL_HEIGHT, LONGEST_HEADING = 26, 110  # pixels
FONT_SIZE, HEADING_SIZE = 17, 11
TALLEST = 2  # the largest ratio of height to width of panels below each other
MOST_CLASS_COLUMNS = 16  # with more classes, columns are not sorted by class
SMALL, ENLARGED = 16, 64  # images up to the first size are enlarged twice as much; those from the second not at all


def grid(images: Tensor, class_names: Sequence[str] = ()) -> Tensor:
    """Images [N, C, H, W] in [-1, 1] as one nearly square image [3, H', W'] in [0, 1].

    Sample i of a class-conditional model has class i modulo their number. If there are not too many, each class has one
    or more columns, under its name. Small images are enlarged.
    """
    scale = _scale_of_small(images)
    return torch.cat([*_headings(images, class_names, scale), _table(images, class_names, scale)], dim=1)


def save_png(image: Tensor, path: Path) -> None:
    """Writes an image [3, H, W] in [0, 1] as a PNG."""
    write_atomically(path, lambda file: save_image(image, file, format="png"))


def comparison(panels: list[tuple[str, Tensor]], class_names: Sequence[str] = ()) -> Tensor:
    """Labelled sets of N images [N, C, H, W] in [-1, 1] as panels of one image [3, H', W'] in [0, 1].

    The panels are side by side. If each class has a column, they are one below the other, unless that is too tall.
    """
    first, font = panels[0][1], _font(FONT_SIZE)
    scale = _scale_of_small(first) * (2 if first.shape[-1] < ENLARGED else 1)
    headings, tables = _headings(first, class_names, scale), [_table(x, class_names, scale) for _, x in panels]
    width = max(tables[0].shape[2], *(math.ceil(font.getlength(label)) + 8 for label, _ in panels))
    stacked = headings and len(tables) * tables[0].shape[1] <= TALLEST * tables[0].shape[2]
    parts = []
    for (label, _), table in zip(panels, tables, strict=True):
        caption = Image.new("RGB", (width, LABEL_HEIGHT), "white")
        ImageDraw.Draw(caption).text(((width - font.getlength(label)) / 2, 3), label, fill="black", font=font)
        below = [table] if stacked else [*headings, table]
        parts.append(torch.cat([pil_to_tensor(caption) / 255, *(_padded(part, width) for part in below)], dim=1))
    if stacked:
        return torch.cat([*(_padded(part, width) for part in headings), *parts], dim=1)
    return torch.cat(parts, dim=2)


def _scale_of_small(images: Tensor) -> int:
    return 2 if images.shape[-1] <= SMALL else 1


def _columns(images: Tensor, class_names: Sequence[str]) -> tuple[int, bool]:
    """The number of columns, and whether each belongs to a class."""
    columns, classes = math.ceil(math.sqrt(len(images))), len(class_names)
    if 1 < classes <= min(len(images), MOST_CLASS_COLUMNS):
        return classes * max(1, round(columns / classes)), True
    return columns, False


def _table(images: Tensor, class_names: Sequence[str], scale: int) -> Tensor:
    columns, _ = _columns(images, class_names)
    image = make_grid((images.clamp(-1, 1) + 1) / 2, nrow=columns, padding=PADDING, pad_value=0.5)
    return image.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def _headings(images: Tensor, class_names: Sequence[str], scale: int) -> list[Tensor]:
    """A strip with the class of each column, turned upright if one is wider than its column; empty without classes."""
    columns, by_class = _columns(images, class_names)
    if not by_class:
        return []
    font, width, texts = _font(HEADING_SIZE), scale * (images.shape[-1] + PADDING), []
    for number in range(columns):
        name = _heading(class_names, number % len(class_names))
        text = Image.new("L", (math.ceil(font.getlength(name)) + 4, 16), 255)
        ImageDraw.Draw(text).text((2, 1), name, fill=0, font=font)
        texts.append(text)
    if any(text.width > width for text in texts):
        texts = [text.transpose(Image.Transpose.ROTATE_90) for text in texts]
    strip = Image.new("L", (columns * width + scale * PADDING, max(text.height for text in texts) + 2), 255)
    for i, text in enumerate(texts):
        strip.paste(text, (i * width + (width - text.width) // 2, strip.height - text.height))
    return [pil_to_tensor(strip).expand(3, -1, -1) / 255]


def _heading(class_names: Sequence[str], number: int) -> str:
    """The name of a class, shortened if it is long, or its number if the font lacks a letter of the name."""
    short = name = class_names[number] if _letters_of_font().issuperset(map(ord, class_names[number])) else str(number)
    while _font(HEADING_SIZE).getlength(name) > LONGEST_HEADING:
        short = short[:-1]
        name = f"{short}..."
    return name


def _padded(image: Tensor, width: int) -> Tensor:
    """Padded with white on both sides."""
    missing = width - image.shape[2]
    return F.pad(image, (missing // 2, missing - missing // 2), value=1.0)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's font, which has more alphabets than Pillow's."""
    import matplotlib  # not at the top: importing it takes a fifth of a second

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


@cache
def _letters_of_font() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(_font(HEADING_SIZE).path)).get_charmap())
