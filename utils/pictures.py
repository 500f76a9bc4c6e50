"""Pictures that scripts write: grids of samples, and the grids of several models together."""

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

from utils.files import write_atomically

PADDING = 2  # pixels between images
LABEL_HEIGHT, LONGEST_HEADING = 26, 110  # pixels
FONT_SIZE, HEADING_SIZE = 17, 11
TALLEST = 2  # times its width, for panels below one another
MOST_COLUMNS = 16  # that are sorted by class
ENLARGED = 64  # pixels of an image, below which it is drawn twice as large


def grid(images: Tensor, class_names: Sequence[str] = (), scale: int = 1) -> Tensor:
    """Images [N, C, H, W] in [-1, 1] as one picture [3, H', W'] in [0, 1], near to square.

    Sample i of a model with classes is of class i modulo their number. Where they are not too many, each class has a
    column, or several, under its name. Each pixel becomes `scale` pixels each way.
    """
    return torch.cat([*_headings(images, class_names, scale), _table(images, class_names, scale)], dim=1)


def save_picture(picture: Tensor, path: Path) -> None:
    """Writes a picture [3, H, W] in [0, 1] as a PNG."""
    write_atomically(path, lambda file: save_image(picture, file, format="png"))


def comparison(panels: list[tuple[str, Tensor]], class_names: Sequence[str] = ()) -> Tensor:
    """Sets of as many images [N, C, H, W] in [-1, 1] as one picture [3, H', W'] in [0, 1], each under its label.

    They stand side by side; or one below the other where each class has a column, which then goes through all of them,
    and that does not become a tower.
    """
    first = panels[0][1]
    scale = 2 if first.shape[-1] < ENLARGED else 1
    labels, tables = [label for label, _ in panels], [_table(images, class_names, scale) for _, images in panels]
    headings = _headings(first, class_names, scale)
    width = max(tables[0].shape[2], *(math.ceil(_font(FONT_SIZE).getlength(label)) + 8 for label in labels))
    stacked = headings and len(tables) * tables[0].shape[1] <= TALLEST * tables[0].shape[2]
    above = [] if stacked else headings  # of each table

    def panel(label: str, table: Tensor) -> Tensor:
        return torch.cat([_caption(label, width), *(_widened(part, width) for part in [*above, table])], dim=1)

    pictures = [panel(label, table) for label, table in zip(labels, tables, strict=True)]
    if stacked:
        return torch.cat([*(_widened(part, width) for part in headings), *pictures], dim=1)
    return torch.cat(pictures, dim=2)


def _columns(images: Tensor, class_names: Sequence[str]) -> tuple[int, bool]:
    """The number of columns, and whether they are sorted by class."""
    columns, classes = math.ceil(math.sqrt(len(images))), len(class_names)
    if 1 < classes <= min(len(images), MOST_COLUMNS):
        return classes * max(1, round(columns / classes)), True
    return columns, False


def _table(images: Tensor, class_names: Sequence[str], scale: int) -> Tensor:
    columns, _ = _columns(images, class_names)
    picture = make_grid((images.clamp(-1, 1) + 1) / 2, nrow=columns, padding=PADDING, pad_value=0.5)
    return picture.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def _headings(images: Tensor, class_names: Sequence[str], scale: int) -> list[Tensor]:
    """A strip with the names of the columns, upright where one is wider than its column; none if they have none."""
    columns, sorts = _columns(images, class_names)
    if not sorts:
        return []
    font, column = _font(HEADING_SIZE), scale * (images.shape[-1] + PADDING)
    names = [_shortened(_drawable(class_names, i % len(class_names)), font) for i in range(columns)]
    texts = [Image.new("L", (math.ceil(font.getlength(name)) + 4, 16), 255) for name in names]
    for name, text in zip(names, texts, strict=True):
        ImageDraw.Draw(text).text((2, 1), name, fill=0, font=font)
    if any(text.width > column for text in texts):
        texts = [text.transpose(Image.Transpose.ROTATE_90) for text in texts]
    strip = Image.new("L", (columns * column + scale * PADDING, max(text.height for text in texts) + 2), 255)
    for i, text in enumerate(texts):
        strip.paste(text, (i * column + (column - text.width) // 2, strip.height - text.height))
    return [pil_to_tensor(strip).float().expand(3, -1, -1) / 255]


def _shortened(name: str, font: ImageFont.FreeTypeFont) -> str:
    short = name
    while font.getlength(name) > LONGEST_HEADING:
        short = short[:-1]
        name = f"{short}..."
    return name


def _caption(label: str, width: int) -> Tensor:
    strip = Image.new("RGB", (width, LABEL_HEIGHT), "white")
    left = (width - _font(FONT_SIZE).getlength(label)) / 2
    ImageDraw.Draw(strip).text((left, 3), label, fill="black", font=_font(FONT_SIZE))
    return pil_to_tensor(strip).float() / 255


def _widened(picture: Tensor, width: int) -> Tensor:
    """A picture with white at both sides."""
    missing = width - picture.shape[2]
    return F.pad(picture, (missing // 2, missing - missing // 2), value=1.0)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_font_path(), size)


def _font_path() -> Path:
    """Matplotlib's own font, which knows the scripts of Europe and more, as Pillow's does not."""
    import matplotlib  # not at the top: it costs a training a fifth of a second of its start

    return Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


@cache
def _known_letters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(_font_path())).get_charmap())


def _drawable(class_names: Sequence[str], number: int) -> str:
    """The name of a class; its number where the font lacks a letter of the name."""
    name = class_names[number]
    return name if _known_letters().issuperset(map(ord, name)) else str(number)
