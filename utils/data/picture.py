"""A picture file, read as a tensor, whatever its kind."""

import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from utils.data.folder import picture_formats, printable
from utils.errors import InputError


class NoPicture(InputError):  # noqa: N818 (it says what is wrong)
    """A file that will never be read as a picture."""


def read_picture(path: Path, num_channels: int, background: str = "white", at_least: int | None = None) -> Tensor:
    """A picture as uint8 [C, H, W]: upright, its first frame, 16 bits scaled to 8.

    Args:
        num_channels: 1 for grey, 3 for colour.
        background: the colour that it is laid over where it is transparent.
        at_least: pixels that are needed each way; a larger JPEG may be read at a fraction of its size, in less time.

    Raises:
        NoPicture: it is none, or a damaged one.
        InputError: it cannot be read now: permission denied, or the like.
    """
    shown = printable(str(path))
    try:
        with warnings.catch_warnings():
            # Large, but below the size that Pillow refuses
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=sorted(set(picture_formats().values()))) as file:
                if at_least:
                    file.draft(None, (at_least, at_least))
                image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I;16") or (image.mode == "I" and file.format in ("PNG", "PPM")):
            # 16 bits, which Pillow would cut off at 255
            image = Image.fromarray((pil_to_tensor(image.convert("I"))[0] // 257).byte().numpy())
        if image.mode in ("I", "F"):
            raise NoPicture(f"{shown}: has 32 bits a pixel, of which nobody says what is white")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
        return pil_to_tensor(image.convert("L" if num_channels == 1 else "RGB"))
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise NoPicture(f"{shown}: too large: {error}") from error
    except UnidentifiedImageError as error:
        raise NoPicture(f"{shown}: not an image that can be read, whatever its name; remove or replace it") from error
    except OSError as error:
        if error.strerror:
            raise InputError(f"{shown}: cannot be read: {error.strerror}") from error
        raise NoPicture(f"{shown}: cannot be read: damaged: {error}") from error
    except Exception as error:  # whatever a broken file makes its reader say, the file is what is wrong
        raise NoPicture(f"{shown}: not an image that can be read: {error}") from error
