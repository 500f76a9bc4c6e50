"""Files that are whole or not there, and folders that can be written."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from utils.errors import InputError


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Calls `write` with a temporary file beside `path`, then renames it: a kill leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


def prepare_folder(folder: Path) -> None:
    """Makes the folder where it is missing, and sees that it can be written.

    Raises:
        InputError: it cannot.
    """
    probe = folder / ".writable.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{folder}: this folder cannot be written: {error.strerror or error}") from error
