"""Files that are whole or not there, and folders that can be written; of several processes, the first writes them."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from utils.distributed import by_first
from utils.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

LOCK_NAME = ".lock"


@by_first
def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls `write` with a temporary file beside `path`, then renames it: a kill leaves the old file or the new one.

    When this returns, the file is on the disk, its name too.

    Raises:
        InputError: the disk is full, the folder cannot be written, or the like; the old file stands.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        # torch.save says what the disk said only in the context of its own error.
        reason = error if isinstance(error, OSError) else error.__context__
        if isinstance(error, OSError | RuntimeError) and isinstance(reason, OSError):
            raise _cannot_be_written(path, reason) from error
        raise


@by_first
def append_line(path: Path, line: str) -> None:
    """Adds a line to a file.

    Raises:
        InputError: the disk is full, or the like.
    """
    try:
        with open(path, "a") as file:
            file.write(line + "\n")
    except OSError as error:
        raise _cannot_be_written(path, error) from error


def require_regular_file(path: Path) -> None:
    """Refuses what is no file, such as a folder, or a pipe or device that might never end.

    Raises:
        InputError: it is not there, or is none.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: cannot be read: {'Is a directory' if stat.S_ISDIR(mode) else 'not a file'}")


def _cannot_be_written(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path}: cannot be written: {error.strerror or error}; with that mended, the same command goes on"
    )


def _flush_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder, and keeps other runs from writing there; the lock goes with the process, however it ends.

    Raises:
        InputError: another run has it, or the folder cannot be written.
    """
    with ExitStack() as held:
        by_first(lambda: held.enter_context(_lock(folder)))()
        yield


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    prepare_folder(folder)
    with open(folder / LOCK_NAME, "w") as file:
        if fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"{folder}: another process is writing there; wait, or choose another folder"
                ) from error
        yield


@by_first
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
