"""Reads an image file of any kind as a tensor."""

import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from utils.data.folder import image_formats, printable
from utils.system.errors import InputError


class BrokenImage(InputError):  # noqa: N818 (the message explains it)
    """A file that cannot be read as an image, now or later."""


def read_image(path: Path, num_channels: int, background: str = "white", at_least: int | None = None) -> Tensor:
    """An image as uint8 [C, H, W]: upright, its first frame, 16 bits scaled to 8.

    Args:
        num_channels: 1 for grey, 3 for colour.
        background: the colour behind transparent pixels.
        at_least: the required height and width; a larger JPEG may be decoded at a fraction of its size, faster.

    Raises:
        BrokenImage: it is not an image, or damaged.
        InputError: it cannot be read now: permission denied, or the like.
    """
    shown = printable(str(path))
    try:
        with warnings.catch_warnings():
            # Large, but smaller than the size that Pillow refuses
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=sorted(set(image_formats().values()))) as file:
                if at_least:
                    file.draft(None, (at_least, at_least))
                image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I;16") or (image.mode == "I" and file.format in ("PNG", "PPM")):
            # 16 bits, which Pillow would clip at 255
            image = Image.fromarray((pil_to_tensor(image.convert("I"))[0] // 257).byte().numpy())
        if image.mode in ("I", "F"):
            raise BrokenImage(f"{shown}: has 32 bits per pixel, so its white is unknown")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
        return pil_to_tensor(image.convert("L" if num_channels == 1 else "RGB"))
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise BrokenImage(f"{shown}: too large: {error}") from error
    except UnidentifiedImageError as error:
        raise BrokenImage(f"{shown}: not a readable image, whatever its name; remove or replace it") from error
    except OSError as error:
        if error.strerror:
            raise InputError(f"{shown}: cannot be read: {error.strerror}") from error
        raise BrokenImage(f"{shown}: cannot be read: damaged: {error}") from error
    except Exception as error:  # any failure of the decoder means a broken file
        raise BrokenImage(f"{shown}: not a readable image: {error}") from error
