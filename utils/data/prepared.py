"""A folder of pictures, prepared once: decoded by parallel workers into one file, which is mapped from then on.

Below `data/cache/` lie, under a name made of the folder, the settings, and all its files' names, sizes and times:

    <name>.uint8   the images [N, C, H, W], those of each class together
    <name>.json    the index: the sizes of the classes, what could not be read, and a hash of the images

The index is written last: where there is one, and as many images as it says, they are whole. Whatever else is there is
made anew.
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
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from utils.data.folder import Picture, class_names_of, find_pictures, printable
from utils.data.image_set import ImageSet, content_hash, fit
from utils.data.picture import NoPicture, read_picture
from utils.errors import InputError, counted, first_of
from utils.files import CACHE, delete_files, locked, read_if_there, write_atomically
from utils.schema import Count, Section
from utils.schema import Data as DataSettings

VERSION = 1  # of what a picture becomes; with another, all folders are prepared anew
BATCH_SIZE = 32  # pictures that a worker decodes at once
FEW_PICTURES = 256  # are decoded sooner than workers have started
MOST_MESSAGES = 5  # about pictures that cannot be read


class Index(Section):
    """What is known of prepared images.

    Attributes:
        identity: what went in.
        counts: how many images each class has, in the order of the images.
        broken: a message for each picture that cannot be read.
        hash: of the images and their classes, see `content_hash`.
    """

    identity: str
    counts: list[Count]
    broken: list[str]
    hash: str


@dataclass(frozen=True)
class Folder(Dataset):
    """The pictures of a folder; item i is the bytes of uint8 [C, H, W], or says why it cannot be read."""

    root: Path
    pictures: list[Picture]
    settings: DataSettings

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> bytes | InputError:
        size, channels, background = self.settings.image_size, self.settings.num_channels, self.settings.background
        try:
            picture = read_picture(self.root / self.pictures[index].path, channels, background, at_least=2 * size)
        except InputError as error:
            return error
        return fit(picture[None], size, channels).numpy().tobytes()

    def shape(self, count: int) -> tuple[int, int, int, int]:
        """The shape [N, C, H, W] of so many of its images."""
        return count, self.settings.num_channels, self.settings.image_size, self.settings.image_size

    def place(self) -> str:
        """The beginning of the names of what it becomes: of the folder and the settings, not of its pictures."""
        what = (VERSION, str(self.root.resolve()), self.shape(0), self.settings.background)
        return f"{printable(self.root.resolve().name)[:40]}-{hashlib.sha256(repr(what).encode()).hexdigest()[:8]}"

    def identity(self) -> str:
        """The whole name: it changes with any picture, too."""
        digest = hashlib.sha256()
        for picture in self.pictures:
            digest.update(repr(picture).encode())
        return f"{self.place()}-{digest.hexdigest()[:12]}"


def load_folder(
    root: Path, key: str, settings: DataSettings, accept: Callable[[list[str]], object] | None = None
) -> ImageSet:
    """The pictures below a folder, in the size and channels of the settings; prepared now, if they are not already.

    Args:
        key: the name of the folder in the configuration, for messages.
        accept: is given the names of the classes before anything is prepared; it may raise.

    Raises:
        InputError: there are no pictures, too many cannot be read, or there is no room for what they become.
    """
    folder = Folder(root, find_pictures(root, key), settings)
    class_names = class_names_of(folder.pictures)
    if accept:
        accept(class_names)
    identity = folder.identity()
    path = CACHE / f"{identity}.uint8"
    index = _read_index(path, folder)
    if index is None:
        with locked(CACHE, wait=True):
            index = _read_index(path, folder) or _prepare(path, folder)  # another process may have been faster
    _report(folder, index, class_names)
    images, let_go = _map(path, folder.shape(sum(index.counts)))
    labels = _labels(index.counts) if class_names else torch.zeros(len(images), dtype=torch.long)
    return ImageSet(images, labels, class_names, index.hash, let_go)


def _labels(counts: list[int]) -> Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def _read_index(path: Path, folder: Folder) -> Index | None:
    """The index of the images at `path`; None if they are of other pictures, or not whole."""
    try:
        index = Index.model_validate_json(read_if_there(path.with_suffix(".json")) or "")
        whole = path.stat().st_size == torch.Size(folder.shape(sum(index.counts))).numel()
    except (OSError, ValueError):
        return None
    return index if whole and index.identity == path.stem else None


def _prepare(path: Path, folder: Folder) -> Index:
    """Decodes all pictures and writes both files; what the same folder has become before is deleted."""
    place = glob.escape(folder.place())
    delete_files(CACHE, ".*.uint8.tmp", f"{place}-*.json", f"{place}-*.uint8")
    counts, broken = dict.fromkeys((picture.class_name for picture in folder.pictures), 0), []

    def write(file: BinaryIO) -> None:
        workers = 0 if len(folder) <= FEW_PICTURES else num_processors()
        options = {"num_workers": workers, "worker_init_fn": _end_with_parent, "collate_fn": list}
        batches = DataLoader(folder, batch_size=BATCH_SIZE, **options)
        decoded = tqdm(chain.from_iterable(batches), f"preparing {folder.root}", len(folder), False, unit="picture")
        for picture, content in zip(folder.pictures, decoded, strict=True):
            if isinstance(content, NoPicture):
                broken.append(str(content))
                _require_few(broken, folder)
            elif isinstance(content, InputError):
                raise content
            else:
                file.write(content)
                counts[picture.class_name] += 1
        for name, count in counts.items():
            if count == 0:
                raise InputError(f"{folder.root / printable(name)}: none of its pictures can be read: {broken[0]}")

    write_atomically(path, write)
    sizes = list(counts.values())
    images, let_go = _map(path, folder.shape(sum(sizes)))
    content = content_hash(images, _labels(sizes), let_go=let_go)
    index = Index(identity=path.stem, counts=sizes, broken=broken, hash=content)
    write_atomically(path.with_suffix(".json"), lambda file: file.write(index.model_dump_json().encode()))
    return index


def _end_with_parent(_: int) -> None:
    """Lets Linux end a worker when its parent is killed, which it would not notice while it waits to hand on."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # sys/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _require_few(broken: list[str], folder: Folder) -> None:
    share = folder.settings.most_broken
    if len(broken) > share * len(folder):
        raise InputError(
            f"{'; '.join(broken[-MOST_MESSAGES:])} (so far {len(broken)} of {len(folder)} pictures, more than "
            f"data.most_broken allows: {share:g} of them)"
        )


def _report(folder: Folder, index: Index, class_names: list[str]) -> None:
    """Prints what was found, and what was left out.

    Raises:
        InputError: too much was left out.
    """
    if index.broken:
        _require_few(index.broken, folder)
        print(f"{folder.root}: {len(index.broken)} left out: {first_of(index.broken, MOST_MESSAGES, '; ')}")
    shown = ""
    if class_names:
        names = [f"{i} {name}" for i, name in enumerate(class_names)]
        shown = f" in {counted(len(names), 'class', 'es')}: {first_of(names)}"
    elif len(index.counts) > 1:
        loose = printable(folder.pictures[0].name)
        shown = f", some beside the subfolders ({loose}): so the subfolders are no classes"
    print(f"{folder.root}: {counted(sum(index.counts), 'picture')}{shown}")


def num_processors() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _map(path: Path, shape: tuple[int, ...]) -> tuple[Tensor, Callable[[], object]]:
    """A file's bytes as a tensor that is read from it where it is looked at, and a function that forgets them again.

    What has been read counts as this process's memory, until it is let go; the system keeps it in its own, if it can.
    """
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # what is written there does not reach the file
    dont_need = getattr(mmap, "MADV_DONTNEED", None)  # not on Windows
    return torch.frombuffer(mapped, dtype=torch.uint8).view(shape), lambda: dont_need and mapped.madvise(dont_need)
