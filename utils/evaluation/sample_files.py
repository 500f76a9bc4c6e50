"""Samples as files for the tools of others: a folder of PNGs, or an .npz as the evaluator of ADM reads it."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from utils.data.folder import MANIFEST
from utils.system.distributed import distributed_map, on_rank_zero
from utils.system.errors import InputError
from utils.system.files import LOCK_NAME, locked, read_if_there, write_atomically

SETTINGS = ".samples.json"  # what the samples of a folder depend on, besides their index


def require_new(path: Path) -> None:
    """Raises InputError if the .npz exists, or the folder holds something else than samples."""
    if path.suffix == ".npz":
        if path.exists():
            raise InputError(f"--output {path}: exists already; choose another name")
    elif path.suffix:
        raise InputError(f"--output {path}: should be a .png for a grid, an .npz, or a folder")
    elif path.exists() and not (path.is_dir() and ((path / SETTINGS).exists() or _is_empty(path))):
        raise InputError(f"--output {path}: not empty, and not of sample.py; choose another folder")


def write_samples(
    path: Path, draw: Callable[[range], Tensor], batches: Sequence[range], labels: list[int], settings: dict[str, Any]
) -> None:
    """Writes the samples of all batches, [B, C, H, W] in [-1, 1], except those that are already there.

    A folder gets 000000.png, 000001.png, ..., and with labels a dataset.json. An .npz gets uint8 [N, H, W, 3] as arr_0
    and the labels as arr_1; until all are drawn, they are in a hidden folder beside it. Raises InputError if there are
    samples of other settings.
    """
    is_npz = path.suffix == ".npz"
    folder = path.with_name(f".{path.name}.parts") if is_npz else path
    with locked(folder):
        _require_same(folder, settings, batches[-1].stop)
        missing = _missing(folder, batches)
        drawn = distributed_map(lambda batch: draw(batch).cpu(), missing)
        for batch, samples in zip(missing, tqdm(drawn, "sampling", len(missing), unit="batch"), strict=True):
            _write_pngs(folder, batch, samples)
        _finish(folder, path if is_npz else None, batches[-1].stop, labels)


def _png(folder: Path, index: int) -> Path:
    return folder / f"{index:06}.png"


def _is_empty(folder: Path) -> bool:
    return not any(entry.name != LOCK_NAME for entry in folder.iterdir())


@on_rank_zero
def _require_same(folder: Path, settings: dict[str, Any], count: int) -> None:
    known = json.loads(read_if_there(folder / SETTINGS) or "null") or settings
    if _png(folder, count).exists():
        raise InputError(f"{folder}: has more than {count} samples; choose another name")
    for key, value in settings.items():
        if known[key] != value:
            raise InputError(f"{folder}: samples of another {key}: {known[key]}, not {value}; choose another name")
    write_atomically(folder / SETTINGS, lambda file: file.write(json.dumps(settings).encode()))


@on_rank_zero
def _missing(folder: Path, batches: Sequence[range]) -> list[range]:
    return [batch for batch in batches if not all(_png(folder, index).exists() for index in batch)]


@on_rank_zero
def _write_pngs(folder: Path, batch: range, samples: Tensor) -> None:
    pixels = ((samples + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    for index, image in zip(batch, pixels, strict=True):
        picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
        write_atomically(_png(folder, index), lambda file, picture=picture: picture.save(file, "PNG"))


@on_rank_zero
def _finish(folder: Path, npz: Path | None, count: int, labels: list[int]) -> None:
    """Writes the labels of a folder, or the .npz, and deletes its parts."""
    if npz is None and labels:
        pairs = [[_png(folder, index).name, label] for index, label in enumerate(labels)]
        write_atomically(folder / MANIFEST, lambda file: file.write(json.dumps({"labels": pairs}).encode()))
    if npz is not None:
        images = np.stack([np.asarray(Image.open(_png(folder, index)).convert("RGB")) for index in range(count)])
        arrays = {"arr_0": images, **({"arr_1": np.array(labels)} if labels else {})}
        write_atomically(npz, lambda file: np.savez(file, **arrays))
        shutil.rmtree(folder)
