"""A zip of images, read in place. Nothing is unpacked to the disk, and a hostile archive is refused as a whole."""

import re
import stat
import zlib
from itertools import pairwise
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from utils.data.decoding import BrokenImage
from utils.system.errors import InputError, printable
from utils.system.files import require_regular_file

MOST_BYTES = 2**28  # of an entry
HEADER = 30  # bytes before each entry, besides its name
DAMAGE = BadZipFile, NotImplementedError, EOFError, ValueError, KeyError, zlib.error


def open_archive(path: Path) -> ZipFile:
    """A zip. Raises InputError if it is none, incomplete or unreadable."""
    require_regular_file(path)
    try:
        return ZipFile(path)
    except DAMAGE as error:
        raise InputError(f"{path}: neither a folder nor a complete zip") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def list_entries(path: Path) -> list[ZipInfo]:
    """The files in a zip. Raises InputError if one of them leads out of it, is not a file, overlaps another, ..."""
    with open_archive(path) as archive:
        entries, end = archive.infolist(), archive.start_dir
    names = set()
    for entry in entries:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        both = f"{entry.filename}\n{entry.orig_filename}"  # newer Pythons take the first from a field of its own
        for wrong, what in (
            (re.search(r"^/|^\w:|\\|\x00|(^|/)\.\.(/|$)", both, re.MULTILINE), "its name leads out of the archive"),
            (kind not in (0, stat.S_IFREG, stat.S_IFDIR), "a link or a device, not a file"),
            (entry.flag_bits & 0x1, "encrypted"),
            (entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED), "its compression is not one of stored, deflated"),
            (entry.filename in names, "two entries have this name"),
        ):
            if wrong:
                raise InputError(f"{path}: {printable(entry.orig_filename)}: {what}; pack the images again")
        names.add(entry.filename)
    # Entries that share their bytes make a small archive as large as one likes.
    entries.sort(key=lambda entry: entry.header_offset)
    starts = [*(entry.header_offset for entry in entries), end]
    for entry, (start, following) in zip(entries, pairwise(starts), strict=True):
        if start + HEADER + entry.compress_size > following:
            raise InputError(f"{path}: {printable(entry.filename)}: overlaps the next entry; pack the images again")
    return [entry for entry in entries if not entry.is_dir()]


def read_entry(archive: ZipFile, name: str) -> bytes:
    """The content of an entry. Raises BrokenImage if it is damaged, or very large."""
    shown = f"{archive.filename}: {printable(name)}"
    try:
        size = archive.getinfo(name).file_size
        if size > MOST_BYTES:
            raise BrokenImage(f"{shown}: larger than {MOST_BYTES // 2**20} MiB")
        with archive.open(name) as file:
            return file.read(size)  # not `archive.read`, which unpacks all that is there before it looks at the size
    except DAMAGE as error:
        raise BrokenImage(f"{shown}: cannot be read: damaged: {error}") from error
    except OSError as error:
        raise InputError(f"{shown}: cannot be read: {error.strerror or error}") from error
