"""A folder of pictures of one's own: what lies in it. Its subfolders are the classes."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from utils.errors import InputError

NEED_OTHER_PROGRAMS = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}  # of what Pillow knows; or no pictures
MOST_NAMES = 20  # that are printed


@cache
def picture_formats() -> dict[str, str]:
    """The formats that can be read, by suffix in lower case: {".png": "PNG", ...}."""
    Image.init()
    known = Image.registered_extensions().items()
    return {suffix: name for suffix, name in known if name in Image.OPEN and name not in NEED_OTHER_PROGRAMS}


def printable(name: str) -> str:
    """A name of a file as it may be printed and saved, also where its bytes are no text.

    Accents are composed, as people type them; some systems hand them over as letters of their own.
    """
    return unicodedata.normalize("NFC", name.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


@dataclass(frozen=True, order=True)
class Picture:
    """A file, and by what it is noticed that it has changed.

    Attributes:
        class_name: the folder that it lies in, from the root, with slashes; "" for the root itself.
        name: of the file itself.
        size, modified: in bytes, and in nanoseconds.
    """

    class_name: str
    name: str
    size: int
    modified: int

    @property
    def path(self) -> str:
        """From the root."""
        return os.path.join(self.class_name, self.name)


def find_pictures(root: Path, key: str) -> list[Picture]:
    """All pictures below a folder, sorted by class and name; prints what lies there besides.

    Hidden files and folders are left out (`.ipynb_checkpoints`, `._1.png`); links to folders, and out of the folder,
    are not followed.

    Raises:
        InputError: there is no such folder, or no picture in it; `key` names the folder in the configuration.
    """
    if not root.is_dir():
        raise InputError(f"{key}: {root.absolute()}: no such folder")
    pictures, others = [], Counter()
    try:
        for entry, class_name in _visible_files(str(root)):
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.is_symlink() and not _leads_to_a_file_in(root, entry):
                others["links"] += 1
            elif suffix in picture_formats() and entry.is_file():
                stat = entry.stat()
                pictures.append(Picture(class_name, entry.name, stat.st_size, stat.st_mtime_ns))
            else:
                others[suffix or printable(entry.name)] += 1
    except OSError as error:
        raise InputError(f"{error.filename or root}: cannot be read: {error.strerror or error}") from error
    skipped = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(MOST_NAMES))
    if not pictures:
        found = f"there are {skipped}" if skipped else "it is empty"
        raise InputError(f"{key}: {root.absolute()}: no pictures there, {found}; such as .png, .jpg, .webp or .tif")
    if skipped:
        print(f"{root}: skipped, no pictures: {skipped}")
    return sorted(pictures, key=lambda picture: (printable(picture.class_name), picture))


def class_names_of(pictures: list[Picture]) -> list[str]:
    """The classes of sorted pictures, their subfolders; none where there are pictures beside these."""
    names = [printable(name) for name in dict.fromkeys(picture.class_name for picture in pictures)]
    return names if "" not in names else []


def _visible_files(root: str) -> Iterator[tuple[os.DirEntry, str]]:
    """All that is no folder, each with the path of its folder from the root; links are not followed."""
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


def _leads_to_a_file_in(root: Path, link: os.DirEntry) -> bool:
    target = Path(os.path.realpath(link.path))
    return target.is_file() and target.is_relative_to(os.path.realpath(root))
