"""The image files in a folder, whose subfolders are the classes, and reading one as a tensor."""

import os
import unicodedata
import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from utils.system.errors import InputError

# Files of other formats are skipped, and printed.
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP"}
FORMATS |= {".tif": "TIFF", ".tiff": "TIFF"}
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF's Orientation to Image.Transpose
MOST_NAMES = 20  # to print
PngImagePlugin.MAX_TEXT_CHUNK = 2**26  # bytes of text or of a colour profile; Pillow's 1 MB refuses good pictures


def printable(name: str) -> str:
    """A file name for printing and saving: control characters and invalid bytes as \\x1b, accents composed."""
    text = unicodedata.normalize("NFC", name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
    return "".join(repr(each)[1:-1] if unicodedata.category(each) == "Cc" else each for each in text)


@dataclass(frozen=True, order=True)
class ImageFile:
    """An image file, with its size and times, which show whether it has changed."""

    class_name: str  # its folder, relative to the root, with slashes; "" for the root itself
    name: str
    size: int  # in bytes
    times: tuple[int, int]  # of its content and of its entry in the file system, in nanoseconds


def find_images(root: Path, key: str) -> list[ImageFile]:
    """All image files below a folder, sorted by class and name; prints what else is there.

    Hidden files and folders (`.ipynb_checkpoints`, `._1.png`) are ignored. Links to folders are not followed. Raises
    InputError if there is no such folder, or no image in it; `key` is its configuration key.
    """
    if not root.is_dir():
        raise InputError(f"{key}: {root.absolute()}: no such folder")
    images, others = [], Counter()
    errors: list[OSError] = []
    try:
        for folder, folders, names in os.walk(root, onerror=errors.append):
            folders[:] = [name for name in folders if not name.startswith(".")]
            links = sum(os.path.islink(os.path.join(folder, name)) for name in folders)
            others.update({"link(s) to folders, which are not followed": links} if links else {})
            class_name = os.path.relpath(folder, root).replace(os.sep, "/").removeprefix(".")
            for name in [name for name in names if not name.startswith(".")]:
                path, suffix = os.path.join(folder, name), os.path.splitext(name)[1].lower()
                if suffix in FORMATS and os.path.isfile(path):
                    stat = os.stat(path)
                    images.append(ImageFile(class_name, name, stat.st_size, (stat.st_mtime_ns, stat.st_ctime_ns)))
                else:
                    others[printable(suffix or name) if os.path.exists(path) else "link(s) to nothing"] += 1
        for error in errors:
            raise error
    except OSError as error:
        raise InputError(f"{error.filename or root}: cannot be read: {error.strerror or error}") from error
    skipped = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(MOST_NAMES))
    if not images:
        found = f"there are {skipped}" if skipped else "it is empty"
        raise InputError(f"{key}: {root.absolute()}: no images there, {found}; should be {', '.join(FORMATS)}")
    if skipped:
        print(f"{root}: skipped: {skipped}")
    # Classes that are all numbers are in their order: 0, 1, 2, ..., 10, not 0, 1, 10, 2.
    names = {image.class_name for image in images}
    are_numbers = all(name.isdecimal() and name.isascii() for name in names)
    names = sorted(names, key=lambda name: (int(name) if are_numbers else 0, printable(name), name))
    position = {name: number for number, name in enumerate(names)}
    return sorted(images, key=lambda image: (position[image.class_name], image))


def class_names_of(images: list[ImageFile], key: str = "data.root") -> list[str]:
    """The classes of sorted images, their subfolders; none if there are images beside the subfolders.

    Raises InputError if two names differ only in how they are encoded.
    """
    names = [printable(name) for name in dict.fromkeys(image.class_name for image in images)]
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"{key}: {count} subfolders are called {name}, in different encodings; merge them")
    return names if "" not in names else []


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
            with Image.open(path, formats=sorted(set(FORMATS.values()))) as file:
                _require_readable(file, shown)
                if at_least:
                    file.draft(None, (at_least, at_least))
                start_of_scan = file.fp.tell()
                file.load()
                # libjpeg fills what is missing with grey. (An MPO is several JPEGs.)
                if file.format in ("JPEG", "MPO") and path.read_bytes().find(b"\xff\xd9", start_of_scan) < 0:
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
