"""Reading untrusted files of torch.save and of safetensors: nothing in them is executed, and contents are checked.

PyTorch's `weights_only` prevents a file from running code, but not from unpacking to a thousand times its size, from
declaring tensors that it does not contain, or from containing something unexpected. So the archive is checked before
PyTorch reads it, and every value afterwards. The library safetensors checks its files itself, but not their size.
"""

import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from utils.system.distributed import on_rank_zero
from utils.system.errors import InputError
from utils.system.files import require_regular_file

# Limits of everything but the tensors; it has some 100 KB for 300 tensors.
MOST_METADATA_BYTES, MOST_VALUES, DEEPEST, LONGEST_TEXT = 2**21, 50_000, 8, 4096
# What torch.save writes for tensors: `weights_only` allows bytearray(2**31), too, and PyTorch ignores case in names.
ENTRY = re.compile(r"[^/]+/(data\.pkl|data/\d+|version|byteorder|\.(\w+_version|\w+_alignment|data/serialization_id))")
GLOBALS = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict", "torch FloatStorage", "torch LongStorage"}
DTYPES, HALF = {torch.float32, torch.int64}, {torch.float16, torch.bfloat16}


@on_rank_zero
def read_torch_file(path: Path, version: int, keys: set[str], what: str) -> dict[str, Any]:
    """Plain values and tensors of a file of torch.save that has this `format_version` and these keys, on the CPU."""
    require_regular_file(path)
    try:
        _check_archive(path)
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_values(content, path.stat().st_size)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # any failure of the reader means a broken file
        raise InputError(f"{path}: truncated or damaged, or not {what} of this project; take another copy") from error
    if not isinstance(content, dict) or "format_version" not in content:
        raise InputError(f"{path}: not {what} of this project")
    found = content.pop("format_version")
    if content.keys() != keys:
        raise InputError(f"{path}: not {what} of this project, or of another format version than {version}")
    if type(found) is not int or found != version:
        raise InputError(f"{path}: has format version {found!s:.20}; this code reads {version} only")
    return content


def _check_archive(path: Path) -> None:
    """Raises ValueError for a zip file that torch.save would not have written, or that is inconsistent."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        metadata = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(metadata) != 1 or metadata[0].file_size > MOST_METADATA_BYTES or len(entries) > MOST_VALUES:
            raise ValueError("not written by torch.save, or far too large")
        if archive.comment or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("compressed, or with a comment")
        if not all(ENTRY.fullmatch(entry.filename) for entry in entries):
            raise ValueError("unexpected names")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("overlapping entries")
        if archive.testzip():
            raise ValueError("wrong checksum")
        for opcode, argument, _ in pickletools.genops(archive.read(metadata[0])):
            if opcode.name in ("STACK_GLOBAL", "INST") or (opcode.name == "GLOBAL" and argument not in GLOBALS):
                raise ValueError("unexpected global")


def _check_values(content: object, file_size: int) -> None:
    """Raises ValueError for anything but dictionaries, lists and tuples of numbers, text and tensors, within limits."""
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
                raise ValueError("unexpected kind of tensor")
            tensor_bytes += value.numel() * value.element_size()
        elif type(value) is str:
            if len(value) > LONGEST_TEXT:
                raise ValueError("text too long")
        elif type(value) is int:
            if not -(2**63) <= value < 2**63:
                raise ValueError("number too large")
        elif value is not None and type(value) not in (bool, float):
            raise ValueError("unexpected type")
    if tensor_bytes > file_size:
        raise ValueError("tensors larger than the file")


@on_rank_zero
def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, those in half precision as float32, and its metadata; else InputError."""
    require_regular_file(path)
    try:
        with open(path, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > MOST_METADATA_BYTES:
            raise InputError(f"{path}: not a safetensors file, or damaged: its header claims to have {header} bytes")
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
            text = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path}: truncated or damaged, or not a safetensors file: {error!s:.200}") from error
    return {name: value.float() if value.dtype in HALF else value for name, value in tensors.items()}, text


def require_like(found: object, expected: dict[str, Tensor]) -> None:
    """Raises ValueError unless these are tensors with the expected names, shapes and dtypes (on any device)."""
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
