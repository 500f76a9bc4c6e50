"""The images below a folder or in a zip, and their classes: the subfolders, or the labels in a dataset.json.

dataset.json is that of EDM's dataset_tool: {"labels": [["00000/img00000000.png", 6], ...]}
"""

import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from utils.data.archive import list_entries, open_archive, read_entry
from utils.data.decoding import FORMATS
from utils.system.errors import InputError, first_of, printable
from utils.system.files import read_at_most

MANIFEST = "dataset.json"
MOST_MANIFEST_BYTES = 2**28
MOST_NAMES = 20  # to print


class Manifest(BaseModel):
    """The content of a dataset.json."""

    labels: list[tuple[str, Annotated[int, Field(ge=0, strict=True)]]] | None


@dataclass(frozen=True, order=True)
class ImageFile:
    """An image file, with its size, and two numbers that show whether it has changed."""

    class_name: str  # its folder, relative to the root, with slashes; "" for the root itself; or its label
    path: str  # relative to the root, with slashes
    size: int  # in bytes
    stamps: tuple[int, int]  # times of its content and of its entry in the file system, in ns; in a zip, the checksum


def find_images(root: Path, key: str) -> list[ImageFile]:
    """All image files below a folder or in a zip, sorted by class and name; prints what else is there.

    Hidden files and folders (`.ipynb_checkpoints`, `._1.png`) are ignored. Links to folders are not followed. Raises
    InputError if there is no such folder or zip, or no image in it; `key` is its configuration key.
    """
    if not root.exists():
        raise InputError(f"{key}: {root.absolute()}: no such folder, or zip")
    others = Counter[str]()
    try:
        files = list(_walk(root, others) if root.is_dir() else _entries(root))
    except OSError as error:
        raise InputError(f"{error.filename or root}: cannot be read: {error.strerror or error}") from error
    images, manifests = [], []
    for file in files:
        name = os.path.basename(file.path)
        suffix = os.path.splitext(name)[1].lower()
        if suffix in FORMATS:
            images.append(file)
        elif name == MANIFEST and file.class_name == "":
            manifests.append(file.path)
        else:
            others[printable(suffix or name)] += 1
    skipped = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(MOST_NAMES))
    if not images:
        found = f"there are {skipped}" if skipped else "it is empty"
        raise InputError(f"{key}: {root.absolute()}: no images there, {found}; should be {', '.join(FORMATS)}")
    if skipped:
        print(f"{root}: skipped: {skipped}")
    for path in manifests:
        images = _labelled(images, root, path)
    # Classes that are all numbers are in their order: 0, 1, 2, ..., 10, not 0, 1, 10, 2.
    names = {image.class_name for image in images}
    are_numbers = all(name.isdecimal() and name.isascii() for name in names)
    names = sorted(names, key=lambda name: (int(name) if are_numbers else 0, printable(name), name))
    position = {name: number for number, name in enumerate(names)}
    return sorted(images, key=lambda image: (position[image.class_name], image))


def _walk(root: Path, others: Counter[str]) -> Iterator[ImageFile]:
    """The files below a folder; counts what is no file."""
    errors: list[OSError] = []
    for folder, folders, names in os.walk(root, onerror=errors.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = sum(os.path.islink(os.path.join(folder, name)) for name in folders)
        others.update({"link(s) to folders, which are not followed": links} if links else {})
        class_name = os.path.relpath(folder, root).replace(os.sep, "/").removeprefix(".")
        for name in [name for name in names if not name.startswith(".")]:
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                found = os.stat(path)
                stamps = (found.st_mtime_ns, found.st_ctime_ns)
                yield ImageFile(class_name, f"{class_name}/{name}".lstrip("/"), found.st_size, stamps)
            else:
                suffix = os.path.splitext(name)[1].lower()
                others[printable(suffix or name) if os.path.exists(path) else "link(s) to nothing"] += 1
    for error in errors:
        raise error


def _entries(root: Path) -> Iterator[ImageFile]:
    """The files in a zip. A folder around all subfolders, as a zip of one folder has, is no part of the classes."""
    named = [(entry.filename.removeprefix("./"), entry) for entry in list_entries(root)]
    named = [(name, entry) for name, entry in named if "/." not in f"/{name}"]
    wanted = [posixpath.dirname(name) for name, _ in named if name.lower().endswith((*FORMATS, MANIFEST))]
    common = posixpath.commonpath(wanted) if wanted else ""
    common = posixpath.dirname(common) if len(set(wanted)) == 1 else common
    for name, entry in named:
        class_name = posixpath.dirname(name).removeprefix(common).lstrip("/")
        yield ImageFile(class_name, entry.filename, entry.file_size, (entry.CRC, 0))


def _labelled(images: list[ImageFile], root: Path, manifest: str) -> list[ImageFile]:
    """The images with the labels of a dataset.json as class names, "" without labels.

    Raises InputError unless every image has one label, and the labels are 0, 1, 2, ...
    """
    where, folder = printable(str(root / manifest)), manifest.removesuffix(MANIFEST)
    if root.is_dir():
        content = read_at_most(root / manifest, MOST_MANIFEST_BYTES)
    else:
        with open_archive(root) as archive:
            content = read_entry(archive, manifest)
    try:
        pairs = Manifest.model_validate_json(content).labels
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(map(str, first["loc"])) or "its content"
        right = 'should be {"labels": [["00000/img00000000.png", 6], ...]}, with integers from 0, or {"labels": null}'
        raise InputError(f"{where}: {right}; {at}: {first['msg']}") from error
    if pairs is None:
        return [replace(image, class_name="") for image in images]
    labels, paths = {folder + name: label for name, label in pairs}, {image.path for image in images}
    found = set(labels.values())
    for wrong, what in (
        (sorted(labels.keys() - paths), "labels of images that are missing"),
        (sorted(paths - labels.keys()), "images without a label"),
        (sorted(name for name, count in Counter(name for name, _ in pairs).items() if count > 1), "labelled twice"),
        ([str(i) for i in range(len(found)) if i not in found], "labels without an image (should be 0, 1, ...)"),
    ):
        if wrong:
            raise InputError(f"{where}: {what}: {first_of([printable(name) for name in wrong], 3)}")
    return [replace(image, class_name=str(labels[image.path])) for image in images]


def class_names_of(images: list[ImageFile], key: str = "data.root") -> list[str]:
    """The classes of sorted images, their subfolders; none if there are images beside the subfolders.

    Raises InputError if two names differ only in how they are encoded.
    """
    names = [printable(name) for name in dict.fromkeys(image.class_name for image in images)]
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"{key}: {count} subfolders are called {name}, in different encodings; merge them")
    return names if "" not in names else []
