"""Reading an image file as a tensor."""

import warnings
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from utils.system.errors import InputError, printable

# Files of other formats are skipped, and printed.
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP"}
FORMATS |= {".tif": "TIFF", ".tiff": "TIFF"}
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF's Orientation to Image.Transpose
PngImagePlugin.MAX_TEXT_CHUNK = 2**26  # bytes of text or of a colour profile; Pillow's 1 MB refuses good pictures


class BrokenImage(InputError):  # noqa: N818 (the message explains it)
    """A file that cannot be read as an image, now or later."""


def _require_readable(file: Image.Image, shown: str) -> None:
    """Raises BrokenImage for files, not loaded yet, that Pillow would read wrongly."""
    layout, tags = str(file.tile and file.tile[0].args), getattr(file, "tag_v2", {})  # tags of TIFF 6.0
    bits, has_8_bits = max(tags.get(258, [1])), not any(text in layout for text in ("L;2", "L;4", ";16"))
    for what, is_so in (
        ("32 bits per pixel, so its white is unknown", file.mode in ("I", "F")),
        ("a transparent colour, but not 8 bits", "transparency" in file.info and not has_8_bits),
        ("12 bits", bits == 12),
        ("16 bits, inverted or in planes", bits > 8 and (tags.get(262) == 0 or tags.get(284) == 2)),
        ("signed values", 2 in tags.get(339, [])),
        ("CMYK without Adobe's marker", (file.format, file.mode) == ("JPEG", "CMYK") and "adobe" not in file.info),
    ):
        if is_so:
            raise BrokenImage(f"{shown}: has {what}; save it in another way")


def read_image(
    path: Path,
    num_channels: int,
    background: str = "white",
    at_least: int | None = None,
    content: bytes | None = None,
) -> Tensor:
    """An image as uint8 [C, H, W]: upright, its first frame, 16 bits scaled to 8; transparent pixels show `background`.

    `num_channels` is 1 for grey, 3 for colour. A JPEG much larger than `at_least` pixels, the required height and
    width, may be decoded at a fraction of its size, which is faster. `content` is that of an entry of an archive.
    Raises BrokenImage, or InputError if it cannot be read now.
    """
    shown = printable(str(path))
    try:
        with warnings.catch_warnings():
            # Large, but smaller than the size that Pillow refuses
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            source = path if content is None else BytesIO(content)
            with Image.open(source, formats=sorted(set(FORMATS.values()))) as file:
                _require_readable(file, shown)
                if at_least:
                    file.draft(None, (at_least, at_least))
                start_of_scan = file.fp.tell()
                file.load()
                # libjpeg fills what is missing with grey. (An MPO is several JPEGs.)
                if file.format in ("JPEG", "MPO"):
                    content = path.read_bytes() if content is None else content
                    if content.find(b"\xff\xd9", start_of_scan) < 0:
                        raise BrokenImage(f"{shown}: cannot be read: damaged: it has no end marker")
                turn = None
                with suppress(Exception):  # broken EXIF data
                    turn = TURNS.get(file.getexif().get(0x0112))
                image = file if turn is None else file.transpose(turn)
        if image.mode.startswith("I;16"):  # which Pillow would clip at 255
            image = Image.fromarray((pil_to_tensor(image.convert("I"))[0] // 257).byte().numpy())
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
