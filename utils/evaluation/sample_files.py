"""Samples as files for the tools of others: a folder of PNGs, or an .npz as the evaluator of ADM reads it."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from tqdm import tqdm

from utils.config.reading import differences
from utils.data.folder import MANIFEST
from utils.data.images import to_bytes
from utils.system.distributed import distributed_map, on_rank_zero
from utils.system.errors import InputError
from utils.system.files import LOCK_NAME, delete_files, exists, locked, read_if_there, write_atomically

SETTINGS = ".samples.json"  # what the samples of a folder depend on, besides their index


@on_rank_zero
def require_new(path: Path) -> None:
    """Raises InputError if the .npz exists, or the folder holds something else than samples."""
    if path.suffix not in ("", ".npz"):
        raise InputError(f"--output {path}: should be a .png for a grid, an .npz, or a folder without a dot")
    try:
        if path.suffix == ".npz" and path.exists():
            raise InputError(f"--output {path}: is there and complete; choose another name")
        others = path.exists() and {entry.name for entry in path.iterdir()} - {LOCK_NAME}
    except OSError as error:
        raise InputError(f"--output {path}: {error.strerror or error}") from error
    if others and SETTINGS not in others:
        raise InputError(f"--output {path}: not empty, and not of sample.py; choose another folder")


def write_samples(
    path: Path, draw: Callable[[range], Tensor], batches: Sequence[range], labels: list[int], settings: dict[str, Any]
) -> None:
    """Writes the samples of all batches, [B, C, H, W] in [-1, 1], except those that are already there.

    A folder gets 000000.png, 000001.png, ..., and with labels a dataset.json. An .npz gets uint8 [N, H, W, 3] as arr_0
    and the labels as arr_1; until all are drawn, they are in a hidden folder beside it. Raises InputError if there are
    samples of other settings.
    """
    is_npz, count = path.suffix == ".npz", batches[-1].stop
    folder = path.with_name(f".{path.name}.parts") if is_npz else path
    with locked(folder):
        _require_same(folder, settings, count)
        missing = _missing(folder, batches)
        drawn = distributed_map(lambda batch: draw(batch).cpu(), missing)
        for batch, samples in zip(missing, tqdm(drawn, "sampling", len(missing), unit="batch"), strict=True):
            _write_pngs(folder, batch, samples)
        _write_npz(folder, path, count, labels) if is_npz else _write_labels(folder, labels)
    if is_npz:
        on_rank_zero(shutil.rmtree)(folder)


def _png(folder: Path, index: int) -> Path:
    return folder / f"{index:06}.png"


def _require_same(folder: Path, settings: dict[str, Any], count: int) -> None:
    content = read_if_there(folder / SETTINGS)
    delete_files(folder, ".*.tmp", *(["*.png"] if content is None else []))
    if content is None:
        write_atomically(folder / SETTINGS, lambda file: file.write(json.dumps(settings).encode()))
        return
    try:
        known = dict(json.loads(content))
    except (ValueError, TypeError):
        known = {}
    wrong = [f"has other samples: {difference}" for difference in differences(known, settings)]
    wrong += [f"has more than {count} samples"] if exists(_png(folder, count)) else []
    if wrong:
        raise InputError(f"{folder}: {wrong[0]}; delete this folder, or choose another --output")


@on_rank_zero
def _missing(folder: Path, batches: Sequence[range]) -> list[range]:
    """The batches that are not there; a power failure may leave empty files."""
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
    return [batch for batch in batches if not all(sizes.get(_png(folder, index).name) for index in batch)]


@on_rank_zero
def _write_pngs(folder: Path, batch: range, samples: Tensor) -> None:
    for index, image in zip(batch, to_bytes(samples), strict=True):
        write_atomically(_png(folder, index), partial(to_pil_image(image).save, format="PNG"), sync=False)


def _write_labels(folder: Path, labels: list[int]) -> None:
    """Writes dataset.json, in which the sampled classes are 0, 1, 2, ..."""
    numbers = {label: number for number, label in enumerate(sorted(set(labels)))}
    pairs = [[_png(folder, index).name, numbers[label]] for index, label in enumerate(labels)]
    content = json.dumps({"labels": pairs or None}).encode()
    write_atomically(folder / MANIFEST, lambda file: file.write(content))


@on_rank_zero
def _write_npz(folder: Path, path: Path, count: int, labels: list[int]) -> None:
    delete_files(path.parent, f".{path.name}.????????.tmp")
    width, height = Image.open(_png(folder, 0)).size
    images = np.empty((count, height, width, 3), np.uint8)  # filled in place: np.stack would take twice the memory
    for index, image in enumerate(images):
        image[:] = Image.open(_png(folder, index)).convert("RGB")
    classes = {"arr_1": np.array(labels)} if labels else {}
    write_atomically(path, lambda file: np.savez(file, arr_0=images, **classes))
