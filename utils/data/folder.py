"""The image files in a folder, whose subfolders are the classes, and reading one of any format as a tensor."""

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from utils.system.errors import InputError

UNSUPPORTED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}  # Pillow needs other programs for them
MOST_NAMES = 20  # to print
PngImagePlugin.MAX_TEXT_CHUNK = 2**26  # bytes of text or of a colour profile; Pillow's 1 MB refuses good pictures


@cache
def image_formats() -> dict[str, str]:
    """The supported formats, by suffix in lower case: {".png": "PNG", ...}."""
    Image.init()
    known = Image.registered_extensions().items()
    return {suffix: name for suffix, name in known if name in Image.OPEN and name not in UNSUPPORTED}


def printable(name: str) -> str:
    """A file name for printing and saving, even if its bytes are not valid text; accents are composed, as typed."""
    return unicodedata.normalize("NFC", name.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


@dataclass(frozen=True, order=True)
class ImageFile:
    """An image file, with its size and time, which show whether it has changed."""

    class_name: str  # its folder, relative to the root, with slashes; "" for the root itself
    name: str
    size: int  # in bytes
    modified: int  # in nanoseconds


def find_images(root: Path, key: str) -> list[ImageFile]:
    """All image files below a folder, sorted by class and name; prints what else is there.

    Hidden files and folders (`.ipynb_checkpoints`, `._1.png`) are ignored. Links to folders, and out of the folder, are
    not followed. Raises InputError if there is no such folder, or no image in it; `key` is its configuration key.
    """
    if not root.is_dir():
        raise InputError(f"{key}: {root.absolute()}: no such folder")
    images, others = [], Counter()
    try:
        for entry, class_name in _visible_files(str(root)):
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.is_symlink() and not _is_link_within(root, entry):
                others["links to folders or out of the folder, which are not followed"] += 1
            elif suffix in image_formats() and entry.is_file():
                stat = entry.stat()
                images.append(ImageFile(class_name, entry.name, stat.st_size, stat.st_mtime_ns))
            else:
                others[suffix or printable(entry.name)] += 1
    except OSError as error:
        raise InputError(f"{error.filename or root}: cannot be read: {error.strerror or error}") from error
    skipped = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(MOST_NAMES))
    if not images:
        found = f"there are {skipped}" if skipped else "it is empty"
        raise InputError(f"{key}: {root.absolute()}: no images there, {found}; such as .png, .jpg, .webp or .tif")
    if skipped:
        print(f"{root}: skipped: {skipped}")
    # Classes that are all numbers are in their order: 0, 1, 2, ..., 10, not 0, 1, 10, 2.
    are_numbers = all(image.class_name.isdecimal() and image.class_name.isascii() for image in images)

    def order(image: ImageFile) -> tuple[int, str, ImageFile]:
        return int(image.class_name) if are_numbers else 0, printable(image.class_name), image

    return sorted(images, key=order)


def class_names_of(images: list[ImageFile]) -> list[str]:
    """The classes of sorted images, their subfolders; none if there are images beside the subfolders."""
    names = [printable(name) for name in dict.fromkeys(image.class_name for image in images)]
    return names if "" not in names else []


def _visible_files(root: str) -> Iterator[tuple[os.DirEntry, str]]:
    """Everything but folders, each with the path of its folder relative to the root; links are not followed."""
    left = [""]
    while left:
        folder = left.pop()
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    left.append(f"{folder}/{entry.name}" if folder else entry.name)
                else:
                    yield entry, folder


def _is_link_within(root: Path, link: os.DirEntry) -> bool:
    target = Path(os.path.realpath(link.path))
    return target.is_file() and target.is_relative_to(os.path.realpath(root))


class BrokenImage(InputError):  # noqa: N818 (the message explains it)
    """A file that cannot be read as an image, now or later."""


def _upright(image: Image.Image) -> Image.Image:
    """The image, turned as its EXIF data say, if they can be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data; the pixels are already decoded
        return image


def _has_end(jpeg: bytes) -> bool:
    """Whether a JPEG has an end marker after its last start of a scan; libjpeg fills what is missing with grey."""
    return jpeg.rfind(b"\xff\xd9") > jpeg.rfind(b"\xff\xda")


def read_image(path: Path, num_channels: int, background: str = "white", at_least: int | None = None) -> Tensor:
    """An image as uint8 [C, H, W]: upright, its first frame, 16 bits scaled to 8; transparent pixels show `background`.

    `num_channels` is 1 for grey, 3 for colour. A JPEG much larger than `at_least` pixels, the required height and
    width, may be decoded at a fraction of its size, which is faster. Raises BrokenImage, or InputError if it cannot be
    read now.
    """
    shown = printable(str(path))
    try:
        with warnings.catch_warnings():
            # Large, but smaller than the size that Pillow refuses
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=sorted(set(image_formats().values()))) as file:
                if at_least:
                    file.draft(None, (at_least, at_least))
                file.load()
                image = _upright(file)
                if file.format == "JPEG" and not _has_end(path.read_bytes()):
                    raise BrokenImage(f"{shown}: cannot be read: damaged: it ends too early")
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
