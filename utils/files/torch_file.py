"""Reading untrusted files of torch.save: nothing in them is executed, and their contents are checked.

PyTorch's `weights_only` keeps a file from running code. It does not keep it from unpacking to a thousand times its
size, from claiming tensors that it does not hold, or from holding something else than is expected. So the archive is
looked at before PyTorch reads it, and every value afterwards.
"""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import InputError
from utils.files.disk import require_regular_file

# Of the part that is not tensors; it has some 100 KB for 300 tensors.
MOST_METADATA_BYTES, MOST_VALUES, DEEPEST, LONGEST_TEXT = 2**21, 50_000, 8, 4096
DTYPES = {torch.float32, torch.int64}


def read_torch_file(path: Path, keys_of: dict[int, set[str]], what: str) -> dict[str, Any]:
    """Reads a dictionary of plain values and tensors from a file of torch.save, on the CPU.

    Args:
        keys_of: the keys that it must have, by format version; other versions are refused.

    Raises:
        InputError: there is none, it is truncated, damaged or something else, or of another format version.
    """
    require_regular_file(path)
    try:
        _check_archive(path)
        with warnings.catch_warnings(action="ignore"):  # what a foreign file makes PyTorch say is said below, in a line
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_values(content, path.stat().st_size)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # whatever a broken file makes the reader say, the file is what is wrong
        raise InputError(
            f"{path}: truncated or damaged, or not {what} of this project; take another copy of it"
        ) from error
    if not isinstance(content, dict) or "format_version" not in content:
        raise InputError(f"{path}: not {what} of this project")
    version = content.pop("format_version")
    if content.keys() not in keys_of.values():
        raise InputError(f"{path}: not {what} of this project")
    if type(version) is not int or keys_of.get(version) != content.keys():
        known = " and ".join(map(str, keys_of))
        raise InputError(f"{path}: of format version {version!s:.20}; this code reads {known}")
    return content


def _check_archive(path: Path) -> None:
    """Refuses a zip file that torch.save would not have written, or that does not hold what was written."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        metadata = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(metadata) != 1 or metadata[0].file_size > MOST_METADATA_BYTES or len(entries) > MOST_VALUES:
            raise ValueError("not written by torch.save, or with far too much in it")
        if archive.comment or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("compressed, or with a comment")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("entries that overlap")
        if archive.testzip():
            raise ValueError("a wrong checksum")


def _check_values(content: object, file_size: int) -> None:
    """Refuses all but dictionaries, lists and tuples of numbers, text and tensors, not more than a file can hold."""
    left, count, tensor_bytes = [(content, 0)], 0, 0
    while left:
        value, depth = left.pop()
        count += 1
        if count > MOST_VALUES or depth > DEEPEST:
            raise ValueError("too many values, or nested too deeply")
        if type(value) is dict:
            left += [(part, depth + 1) for pair in value.items() for part in pair]
        elif type(value) in (list, tuple):
            left += [(part, depth + 1) for part in value]
        elif type(value) is Tensor:
            if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in DTYPES:
                raise ValueError("a tensor of another kind")
            tensor_bytes += value.numel() * value.element_size()
        elif type(value) is str:
            if len(value) > LONGEST_TEXT:
                raise ValueError("a text far too long")
        elif type(value) is int:
            if not -(2**63) <= value < 2**63:
                raise ValueError("a number far too large")
        elif value is not None and type(value) not in (bool, float):
            raise ValueError("a value of another type")
    if tensor_bytes > file_size:
        raise ValueError("tensors larger than the file")


def require_like(found: object, expected: dict[str, Tensor]) -> None:
    """Refuses anything but tensors of the same names, shapes and types; the expected ones may be on the meta device.

    Raises:
        ValueError: naming the first that differs.
    """
    if not isinstance(found, dict):
        raise ValueError("no weights")
    for name in [*expected, *found]:
        mine, theirs = expected.get(name), found.get(name)
        if mine is None or not isinstance(theirs, Tensor):
            raise ValueError(f"{name!s:.80} is {'unexpected' if mine is None else 'missing'}")
        if theirs.shape != mine.shape:
            raise ValueError(f"{name} is {tuple(theirs.shape)} and should be {tuple(mine.shape)}")
        if theirs.dtype != mine.dtype:
            raise ValueError(f"{name} is of {theirs.dtype} and should be of {mine.dtype}")
