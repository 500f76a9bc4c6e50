"""Files: atomic writes, reading, finding, deleting, and locks on folders.

In many processes, rank 0 alone does it, and every rank gets the result or the error. (Only the data set is read by each
rank: see utils/data/datasets.py.)
"""

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from utils.system.distributed import on_rank_zero
from utils.system.errors import InputError

CACHE = Path("data/cache")  # for files that can be made again
LOCK_NAME = ".lock"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # answers of shared disks that do not support locks


def temporary_name(path: Path) -> Path:
    """A hidden name beside a path that no other process uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


@on_rank_zero
def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, sync: bool = True) -> None:
    """Calls `write` with a temporary file beside `path`, then renames it: a kill leaves the old file or the new one.

    When this returns, the file and its name are on the disk, unless `sync` is false, which is faster. Raises InputError
    if the disk is full, the folder is not writable, or the like; the old file is unchanged.
    """
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if sync and os.name == "posix":  # elsewhere a folder cannot be opened
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        # torch.save reports the disk's error only in the context of its own.
        reason = error if isinstance(error, OSError) else error.__context__
        if isinstance(error, OSError | RuntimeError) and isinstance(reason, OSError):
            raise _not_written(path, reason) from error
        raise


@on_rank_zero
def append_line(path: Path, line: str) -> None:
    """Appends a line to a file. Raises InputError if the disk is full, or the like."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise _not_written(path, error) from error


@on_rank_zero
def read_if_there(path: Path) -> bytes | None:
    """The content of a file, None if it does not exist. Raises InputError if it cannot be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


@on_rank_zero
def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


exists = on_rank_zero(os.path.exists)


@on_rank_zero
def find_files(folder: Path, pattern: str) -> list[Path]:
    """The paths in a folder that match a glob pattern, sorted; none if there is no such folder."""
    return sorted(folder.glob(pattern))


@on_rank_zero
def delete_files(folder: Path, *patterns: str) -> None:
    """Deletes the files of a folder that match the patterns, those of the first pattern first."""
    for pattern in patterns:
        for path in find_files(folder, pattern):
            path.unlink()


@on_rank_zero
def remove_if_empty(folder: Path) -> None:
    """Removes a folder if it is empty."""
    with suppress(OSError):
        folder.rmdir()


@on_rank_zero
def prepare_folder(folder: Path) -> None:
    """Creates the folder if it is missing, and tests that it is writable. Raises InputError if it is not."""
    probe = temporary_name(folder / "writable")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{folder}: this folder is not writable: {error.strerror or error}") from error


def require_regular_file(path: Path) -> None:
    """Raises InputError for anything but a regular file: a folder, or a pipe or device that might never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: cannot be read: {'Is a directory' if stat.S_ISDIR(mode) else 'not a file'}")


def read_at_most(path: Path, count: int) -> bytes:
    """The content of a file of at most `count` bytes. Raises InputError for a larger one, or one that is unreadable."""
    require_regular_file(path)
    try:
        with open(path, "rb") as file:
            content = file.read(count + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(content) > count:
        raise InputError(f"{path}: larger than {count // 2**10} KiB")
    return content


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Creates the folder, and keeps other runs from writing there; the lock ends with the process, however that ends.

    With `wait`, waits for another run to release it. Otherwise raises InputError, as for a folder that is not writable.
    """
    with ExitStack() as held:

        @on_rank_zero
        def hold() -> None:
            held.enter_context(_lock(folder, wait))

        hold()
        yield


def _lock(folder: Path, wait: bool) -> AbstractContextManager:
    prepare_folder(folder)
    lock = FileLock(folder / LOCK_NAME, fallback_to_soft=False)
    try:
        return lock.acquire(timeout=0)
    except Timeout as error:
        if not wait:
            raise InputError(f"{folder}: another process is writing there; wait, or choose another folder") from error
        print(f"{folder}: another process is writing there; waiting for it")
        return lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise _not_written(folder / LOCK_NAME, error) from error
        print(f"{folder}: this disk does not support locks: make sure that no other run writes there")
        return nullcontext()


def _not_written(path: Path, error: OSError) -> InputError:
    advice = "once that is fixed, the same command (without --restart) continues"
    return InputError(f"{path}: cannot be written: {error.strerror or error}; {advice}")
