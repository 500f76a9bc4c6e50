"""A folder or zip of images, prepared once: parallel workers decode it into one file, which is then memory-mapped.

`data/cache/` contains, under a name made of the folder, the settings, and the names, sizes and times of all files:

    <name>.uint8   the images [N, C, H, W], sorted by class
    <name>.json    the index: the number of images of each class, the broken files, and a hash of the images

The index is written last: if it exists, and the images have the right size, both are complete. Otherwise the folder is
prepared again.
"""

import ctypes
import glob
import hashlib
import mmap
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import BinaryIO
from zipfile import ZipFile

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from utils.config.schema import Count, Section
from utils.config.schema import Data as DataSettings
from utils.data.archive import open_archive, read_entry
from utils.data.decoding import BrokenImage, read_image
from utils.data.folder import ImageFile, class_names_of, find_images
from utils.data.images import ImageSet, content_hash, fit
from utils.system.errors import InputError, counted, first_of, printable
from utils.system.files import CACHE, delete_files, locked, read_if_there, write_atomically

VERSION = 1  # of the preparation; if it changes, all folders are prepared again
BATCH_SIZE = 32  # images that a worker decodes at once
FEW_IMAGES = 256  # are decoded faster than workers start
MOST_MESSAGES = 5  # about broken files


class Index(Section):
    """The index of prepared images: what they were made from, how many each class has, messages, and their hash."""

    identity: str
    counts: list[Count]
    broken: list[str]
    hash: str


@dataclass(frozen=True)
class Folder(Dataset):
    """The images of a folder or a zip; item i is the bytes of uint8 [C, H, W], or the error of reading it."""

    root: Path
    files: list[ImageFile]
    settings: DataSettings

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> bytes | InputError:
        size, channels, background = self.settings.image_size, self.settings.num_channels, self.settings.background
        path, content = self.root / self.files[index].path, None
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root)):
            return BrokenImage(f"{printable(str(path))}: a link out of the folder, not followed; copy the image")
        try:
            if self._archive:
                content = read_entry(self._archive, self.files[index].path)
            image = read_image(path, channels, background, at_least=2 * size, content=content)
        except InputError as error:
            return error
        return fit(image[None], size, channels).numpy().tobytes()

    @cached_property
    def _archive(self) -> ZipFile | None:
        """The zip, opened by each worker for itself, since processes that share a file disturb each other."""
        return open_archive(self.root) if self.root.is_file() else None

    def shape(self, count: int) -> tuple[int, int, int, int]:
        """The shape [N, C, H, W] of `count` of its images."""
        return count, self.settings.num_channels, self.settings.image_size, self.settings.image_size

    def prefix(self) -> str:
        """The beginning of its name in the cache: that of the folder and the settings, not of its files."""
        root = self.root.resolve()
        what = (VERSION, str(root), self.shape(0), self.settings.background)
        return f"{printable(root.name)[:40]}-{hashlib.sha256(repr(what).encode()).hexdigest()[:8]}"

    def identity(self) -> str:
        """Its name in the cache, which changes if any file changes."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(repr(file).encode())
        return f"{self.prefix()}-{digest.hexdigest()[:12]}"


def load_folder(
    root: Path, key: str, settings: DataSettings, accept: Callable[[list[str]], object] | None = None
) -> ImageSet:
    """The images below a folder, whose configuration key is `key`; prepared now, if they are not already.

    `accept` is called with the class names before anything is prepared; it may raise.
    """
    folder = Folder(root, find_images(root, key), settings)
    class_names = class_names_of(folder.files, key)
    if settings.class_names:
        given = [printable(name) for name in settings.class_names]
        if sorted(given) != sorted(class_names):
            raise InputError(f"data.class_names: should be the classes in {root}: {first_of(class_names)}")
        position = {name: given.index(printable(name)) for name in {file.class_name for file in folder.files}}
        folder.files.sort(key=lambda file: position[file.class_name])
        class_names = given
    if accept:
        accept(class_names)
    path = CACHE / f"{folder.identity()}.uint8"
    index = _read_index(path, folder)
    if index is None:
        with locked(CACHE, wait=True):
            index = _read_index(path, folder) or _prepare(path, folder)  # another process may have been faster
    _report(folder, index, class_names)
    images, release = _map(path, folder.shape(sum(index.counts)))
    labels = _labels(index.counts) if class_names else torch.zeros(len(images), dtype=torch.long)
    return ImageSet(images, labels, class_names, index.hash, release)


def _labels(counts: list[int]) -> Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def _read_index(path: Path, folder: Folder) -> Index | None:
    """The index of the images at `path`; None if they are from other files, or incomplete."""
    try:
        index = Index.model_validate_json(read_if_there(path.with_suffix(".json")) or "")
        whole = path.stat().st_size == torch.Size(folder.shape(sum(index.counts))).numel()
    except (OSError, ValueError):
        return None
    return index if whole and index.identity == path.stem else None


def _prepare(path: Path, folder: Folder) -> Index:
    """Decodes all images and writes both files; deletes those of an earlier state of the same folder."""
    prefix = glob.escape(folder.prefix())
    delete_files(CACHE, ".*.uint8.????????.tmp", ".*.json.????????.tmp", f"{prefix}-*.json", f"{prefix}-*.uint8")
    counts, broken = dict.fromkeys((file.class_name for file in folder.files), 0), []

    def write(file: BinaryIO) -> None:
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        workers = 0 if len(folder) <= FEW_IMAGES else processors
        options = {"num_workers": workers, "worker_init_fn": _end_with_parent, "collate_fn": list}
        batches = DataLoader(folder, batch_size=BATCH_SIZE, **options)
        decoded = tqdm(chain.from_iterable(batches), f"preparing {folder.root}", len(folder), False, unit="image")
        for image, content in zip(folder.files, decoded, strict=True):
            if isinstance(content, BrokenImage):
                broken.append(str(content))
                _require_few(broken, folder)
            elif isinstance(content, InputError):
                raise content
            else:
                file.write(content)
                counts[image.class_name] += 1
        for name, count in counts.items():
            if count == 0:
                raise InputError(f"{folder.root / printable(name)}: none of its images can be read: {broken[0]}")

    write_atomically(path, write)
    sizes = list(counts.values())
    images, release = _map(path, folder.shape(sum(sizes)))
    content = content_hash(images, _labels(sizes), release=release)
    index = Index(identity=path.stem, counts=sizes, broken=broken, hash=content)
    write_atomically(path.with_suffix(".json"), lambda file: file.write(index.model_dump_json().encode()))
    return index


def _end_with_parent(_: int) -> None:
    """Makes Linux end a worker when its parent is killed, which a waiting worker would not notice."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # sys/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _require_few(broken: list[str], folder: Folder) -> None:
    share = folder.settings.most_broken
    if len(broken) > share * len(folder):
        raise InputError(
            f"{'; '.join(broken[-MOST_MESSAGES:])} (so far {len(broken)} of {len(folder)} images, more than the "
            f"fraction that data.most_broken allows, {share:g})"
        )


def _report(folder: Folder, index: Index, class_names: list[str]) -> None:
    """Prints the number of images, their classes and the broken files. Raises InputError if too many are broken."""
    if index.broken:
        _require_few(index.broken, folder)
        print(f"{folder.root}: {len(index.broken)} skipped: {first_of(index.broken, MOST_MESSAGES, '; ')}")
    shown = ""
    if class_names:
        names = [f"{i} {name}" for i, name in enumerate(class_names)]
        shown = f" in {counted(len(names), 'class', 'es')}: {first_of(names)}"
    elif len(index.counts) > 1:
        loose = printable(folder.files[0].path)
        shown = f", some of them beside the subfolders ({loose}), which are therefore not classes"
    print(f"{folder.root}: {counted(sum(index.counts), 'image')}{shown}")


def _map(path: Path, shape: tuple[int, ...]) -> tuple[Tensor, Callable[[], object]]:
    """A memory-mapped file as a tensor, and a function that releases the pages that this process has read."""
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # writes do not reach the file
    dont_need = getattr(mmap, "MADV_DONTNEED", None)  # not on Windows
    return torch.frombuffer(mapped, dtype=torch.uint8).view(shape), lambda: dont_need and mapped.madvise(dont_need)
