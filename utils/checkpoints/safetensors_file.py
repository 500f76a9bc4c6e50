"""Reading untrusted safetensors files (https://github.com/huggingface/safetensors), which hold only tensors and text.

The library checks the header; this code refuses headers that claim to be larger than any real one.
"""

from pathlib import Path

import torch
from torch import Tensor

from utils.system.distributed import on_rank_zero
from utils.system.errors import InputError
from utils.system.files import require_regular_file

MOST_HEADER_BYTES = 2**21  # some 100 KB for 300 tensors
HALF = {torch.float16, torch.bfloat16}


def require_safetensors() -> None:
    """Raises InputError if the library is not installed."""
    try:
        import safetensors  # noqa: F401
    except ImportError as error:
        raise InputError("safetensors files need the library of that name: pip install safetensors") from error


@on_rank_zero
def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, those in half precision as float32, and its metadata.

    Raises:
        InputError: it is missing, truncated, damaged or something else.
    """
    require_safetensors()
    from safetensors import SafetensorError, safe_open

    require_regular_file(path)
    try:
        with open(path, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > MOST_HEADER_BYTES:
            raise InputError(f"{path}: not a safetensors file, or damaged: its header claims to have {header} bytes")
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
            text = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path}: truncated or damaged, or not a safetensors file: {error!s:.200}") from error
    return {name: value.float() if value.dtype in HALF else value for name, value in tensors.items()}, text
