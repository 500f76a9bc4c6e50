import errno
import os
import signal
import time

import pytest
import torch

from utils.system.errors import InputError
from utils.system.files import append_line, locked, write_atomically


def test_a_folder_is_locked_by_one_and_then_by_another(tmp_path):
    with locked(tmp_path), pytest.raises(InputError, match="another process is writing there"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
def test_a_lock_does_not_last_as_long_as_what_was_forked_meanwhile(tmp_path):
    reading, writing = os.pipe()
    with locked(tmp_path):
        child = os.fork()
        if child == 0:
            os.write(writing, b"I am here")
            time.sleep(60)
            os._exit(0)
        os.read(reading, 1)
    try:
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "file"

    def write(file):
        file.write(b"outer")
        write_atomically(path, lambda other: other.write(b"inner"))
        assert path.read_bytes() == b"inner"

    write_atomically(path, write)
    assert path.read_bytes() == b"outer" and [entry.name for entry in tmp_path.iterdir()] == ["file"]


class FullDisk:
    """A file on a disk that takes no more."""

    def __init__(self, file):
        self.file = file

    def write(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize(
    "write", [lambda file: torch.save({"a": torch.zeros(9)}, FullDisk(file)), lambda file: FullDisk(file).write(b"b")]
)
def test_a_full_disk_is_one_clear_error_and_the_old_file_stands(tmp_path, write):
    path = tmp_path / "file.pt"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match=r"file.pt: cannot be written: No space left on device"):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.pt"]  # what was half written takes no room


def test_another_error_is_a_bug_and_not_the_disks(tmp_path):
    with pytest.raises(RuntimeError, match="a bug"):
        write_atomically(tmp_path / "file", lambda file: (_ for _ in ()).throw(RuntimeError("a bug")))


def test_a_line_that_cannot_be_added(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        append_line(tmp_path / "nowhere/metrics.jsonl", "{}")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_disk_without_locks_is_used_and_that_is_said(tmp_path, monkeypatch, capsys, number):
    def no_locks(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("utils.system.files.FileLock.acquire", no_locks)
    with locked(tmp_path):
        pass
    assert "this disk does not support locks" in capsys.readouterr().out


def test_a_lock_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(InputError, match=r"\.lock: cannot be written: Is a directory"), locked(tmp_path):
        pass
