"""Files on the disk: atomic writes, reading, finding, deleting; locks on folders."""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from utils.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

LOCK_NAME = ".lock"
_locks: set[TextIO] = set()  # that this process holds
WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # what disks answer that are shared without them


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls `write` with a temporary file beside `path`, then renames it: a kill leaves the old file or the new one.

    When this returns, the file and its name are on the disk.

    Raises:
        InputError: the disk is full, the folder cannot be written to, or the like; the old file stands.
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


def read_if_there(path: Path) -> bytes | None:
    """The content of a file, None if there is no such file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal: the same wherever the file lies."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_files(folder: Path, pattern: str) -> list[Path]:
    """The paths in a folder that match a glob pattern, sorted; none if there is no such folder."""
    return sorted(folder.glob(pattern))


def delete_files(folder: Path, *patterns: str) -> None:
    """Deletes the files of a folder whose names match the patterns, those of the first pattern first."""
    for pattern in patterns:
        for path in find_files(folder, pattern):
            path.unlink()


def remove_if_empty(folder: Path) -> None:
    """Removes a folder, unless there is something in it."""
    with suppress(OSError):
        folder.rmdir()


def require_regular_file(path: Path) -> None:
    """Refuses anything but a regular file: a folder, or a pipe or device that might never end.

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
        f"{path}: cannot be written: {error.strerror or error}; with that mended, the same command (without --restart) "
        "goes on"
    )


def _flush_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Makes the folder, and keeps other runs from writing there; the lock ends with the process, however that ends.

    With `wait`, waits until a run that has the lock has ended, or let it go.

    Raises:
        InputError: another run has it, or the folder cannot be written to.
    """
    prepare_folder(folder)
    with ExitStack() as opened:
        try:
            file = None
            while file is None or not _is_there(file, folder / LOCK_NAME):  # whoever had it may have deleted it
                file = opened.enter_context(open(folder / LOCK_NAME, "w"))
                _lock(file, folder, wait)
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise _cannot_be_written(folder / LOCK_NAME, error) from error
            print(f"{folder}: this disk knows no locks: see to it that no other run writes there")
        _locks.add(file)
        opened.callback(_locks.discard, file)
        yield


def _close_locks() -> None:
    for file in _locks:
        file.close()
    _locks.clear()


if hasattr(os, "register_at_fork"):  # or a lock would last as long as any process that was forked meanwhile
    os.register_at_fork(after_in_child=_close_locks)


def _lock(file: TextIO, folder: Path, wait: bool) -> None:
    if not fcntl:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        if not wait:
            raise InputError(f"{folder}: another process is writing there; wait, or choose another folder") from error
        print(f"{folder}: another process is writing there; waiting for it")
        fcntl.flock(file, fcntl.LOCK_EX)


def _is_there(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def prepare_folder(folder: Path) -> None:
    """Makes the folder where it is missing, and tests that it can be written to.

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
