"""Zips of images, and labels in a dataset.json."""

import json
import os
import stat
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from test_folder_cache import cache, load, values  # noqa: F401 (a fixture)

from utils.data import archive
from utils.data.images import ImageSet, content_hash
from utils.system.errors import InputError


def png(value: int, side: int = 8) -> bytes:
    file = BytesIO()
    Image.new("L", (side, side), value).save(file, "PNG")
    return file.getvalue()


PICTURES = {f"{name}/{i}.png": png(10 * k + i) for k, name in enumerate(("cat", "dog")) for i in range(3)}
LABELS = {f"00000/img{i}.png": i % 2 for i in range(6)}


def write_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def same(first: ImageSet, second: ImageSet) -> bool:
    return first.hash == second.hash == content_hash(second.images, second.labels) and (
        first.class_names == second.class_names
    )


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_read_like_the_folder_that_it_was_made_of(tmp_path, compression):
    folder = load(write_folder(tmp_path / "pictures", PICTURES))
    assert values(folder) == [0, 1, 2, 10, 11, 12] and folder.class_names == ["cat", "dog"]
    assert same(folder, load(write_zip(tmp_path / "flat.zip", PICTURES, compression)))
    assert same(folder, load(write_zip(tmp_path / "dots.zip", {f"./{name}": PICTURES[name] for name in PICTURES})))
    one = {f"pictures/{name}": content for name, content in PICTURES.items() if "cat" in name}
    assert load(write_zip(tmp_path / "one.zip", one)).class_names == ["cat"]
    around = {"__MACOSX/cat/._1.png": b"junk", "pictures/": b"", "pictures/.DS_Store": b"junk"}
    with_folder = {f"pictures/{name}": content for name, content in reversed(PICTURES.items())} | around
    assert same(folder, load(write_zip(tmp_path / "with_folder.zip", with_folder, compression)))


def test_workers_read_a_zip_as_one_process_does(tmp_path):
    many = {f"{i % 3}/{i:03}.png": png(i % 256) for i in range(300)}  # enough for workers
    folder, archive = write_folder(tmp_path / "many", many), write_zip(tmp_path / "many.zip", many)
    assert same(load(folder), load(archive))


def test_a_zip_that_has_changed_is_prepared_again(tmp_path):
    path = write_zip(tmp_path / "a.zip", PICTURES)
    before = load(path)
    write_zip(path, PICTURES | {"cat/1.png": png(99)})
    assert values(load(path)) == [0, 99, 2, 10, 11, 12] != values(before)


def test_a_dataset_json_labels_the_images_of_a_folder_and_of_a_zip(tmp_path):
    files = {name: png(i) for i, name in enumerate(LABELS)}
    by_class = load(write_folder(tmp_path / "by_class", {f"{LABELS[name]}/{name[6:]}": files[name] for name in files}))
    assert values(by_class) == [0, 2, 4, 1, 3, 5] and by_class.class_names == ["0", "1"]
    labelled = files | {"dataset.json": json.dumps({"labels": list(LABELS.items())}).encode()}
    assert same(by_class, load(write_folder(tmp_path / "labelled", labelled)))
    assert same(by_class, load(write_zip(tmp_path / "labelled.zip", labelled)))
    assert same(by_class, load(write_zip(tmp_path / "deep.zip", {f"deep/{name}": labelled[name] for name in labelled})))
    unlabelled = load(write_zip(tmp_path / "no.zip", files | {"dataset.json": b'{"labels": null}'}))
    assert values(unlabelled) == list(range(6)) and unlabelled.class_names == []


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS | {"00000/img0.png": 1.5}, r"with integers from 0.*; labels.0.1: Input should be a valid integer"),
        (LABELS | {"00000/img0.png": True}, r"labels.0.1: Input should be a valid integer"),
        (LABELS | {"00000/img0.png": -1}, r"labels.0.1: Input should be greater than or equal to 0"),
        (LABELS | {"00000/img9.png": 1}, r"labels of images that are missing: 00000/img9.png"),
        (dict(list(LABELS.items())[1:]), r"images without a label: 00000/img0.png"),
        ([*LABELS.items(), ("00000/img0.png", 1)], r"labelled twice: 00000/img0.png"),
        (LABELS | {"00000/img0.png": 10**15}, r"labels without an image \(should be 0, 1, ...\): 2"),
        ("cats", r"labels: Input should be a valid array"),
    ],
)
def test_wrong_labels_are_one_line_each(tmp_path, labels, message):
    pairs = list(labels.items()) if isinstance(labels, dict) else labels
    files = {name: png(i) for i, name in enumerate(LABELS)} | {"dataset.json": json.dumps({"labels": pairs}).encode()}
    with pytest.raises(InputError, match=rf"dataset.json: .*{message}"):
        load(write_folder(tmp_path / "labelled", files))
    with pytest.raises(InputError, match=rf"labelled.zip/dataset.json: .*{message}"):
        load(write_zip(tmp_path / "labelled.zip", files))


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"labels": [["a.png"]]}', b"[" * 10**5, b"\xff"])
def test_a_dataset_json_of_another_kind(tmp_path, content):
    with pytest.raises(InputError, match=r"a.zip/dataset.json: should be {.*00000000.png"):
        load(write_zip(tmp_path / "a.zip", {"a.png": png(1), "dataset.json": content}))


def entry(name: str, **attributes: int) -> Callable[[Path], None]:
    """Writes an archive with one more entry, whose ZipInfo has these attributes."""

    def write(path: Path) -> None:
        info = zipfile.ZipInfo(name)
        for attribute, value in attributes.items():
            setattr(info, attribute, value)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(info, png(5))

    return write


def patched(old: bytes, new: bytes, count: int = -1) -> Callable[[Path], None]:
    """Replaces bytes of an archive."""

    def write(path: Path) -> None:
        content = path.read_bytes()
        assert old in content and len(old) == len(new)
        path.write_bytes(content.replace(old, new, count))

    return write


def with_flags(offset: int, value: int) -> Callable[[Path], None]:
    """Writes a number of two bytes at an offset of the first entry of the central directory."""

    def write(path: Path) -> None:
        content = bytearray(path.read_bytes())
        struct.pack_into("<H", content, content.index(b"PK\1\2") + offset, value)
        path.write_bytes(content)

    return write


def overlapping(path: Path) -> None:
    """All entries of the central directory point at the first one: one kernel of bytes, as often as one likes."""
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\1\2")
    while (at := content.find(b"PK\1\2", at + 1)) > 0:
        struct.pack_into("<I", content, at + 42, 0)
    path.write_bytes(content)


HOSTILE = {
    "leads up": (entry("../../evil.png"), "evil.png: its name leads out of the archive"),
    "leads up in the middle": (entry("cat/../../evil.png"), "evil.png: its name leads out"),
    "is absolute": (entry("/etc/evil.png"), "evil.png: its name leads out"),
    "is on a drive": (entry("C:/evil.png"), "evil.png: its name leads out"),
    "has backslashes": (patched(b"cat/0.png", b"..\\x0.png"), "x0.png: its name leads out"),
    "hides its name after a zero": (patched(b"cat/0.png", b"c/0.png\0."), "its name leads out"),
    "is a link": (entry("cat/link.png", external_attr=(stat.S_IFLNK | 0o777) << 16), "cat/link.png: a link or a dev"),
    "is a pipe": (entry("cat/pipe.png", external_attr=(stat.S_IFIFO | 0o600) << 16), "cat/pipe.png: a link or a dev"),
    "is encrypted": (with_flags(8, 1), "cat/0.png: encrypted"),
    "needs another decompressor": (with_flags(10, 14), "cat/0.png: its compression is not one of stored, deflated"),
    "is there twice": (patched(b"cat/1.png", b"cat/0.png"), "cat/0.png: two entries have this name"),
    "shares its bytes": (overlapping, "overlaps the next entry"),
    "is cut off": (lambda path: path.write_bytes(path.read_bytes()[:-30]), "neither a folder nor a complete zip"),
    "is no zip": (lambda path: path.write_bytes(b"Rar!\x1a\x07"), "neither a folder nor a complete zip"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives_are_refused_in_one_line(tmp_path, kind):
    change, message = HOSTILE[kind]
    path = write_zip(tmp_path / "a.zip", PICTURES)
    change(path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=rf"a\.zip: .*{message}"):
        load(path)
    assert sorted(tmp_path.rglob("*")) == before  # nothing was unpacked


BROKEN = {
    "is damaged": (patched(png(11)[20:60], bytes(40)), "dog/1.png: cannot be read: damaged: Bad CRC-32"),
    "claims another size": (with_flags(24, 10), "cat/0.png: cannot be read: damaged: Bad CRC-32"),
    "has another name inside": (patched(b"cat/0.png", b"cat/\xff.png", 1), "cat/0.png: cannot be read: damaged: "),
    "is a bomb of pixels": (None, "dog/bomb.png: too large: "),
    "is a bomb of zeros": (None, "dog/zeros.png: larger than 1 MiB"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_entries_that_cannot_be_read_are_skipped_by_name(tmp_path, kind, capsys, monkeypatch):
    change, message = BROKEN[kind]
    files = dict(PICTURES)
    if kind == "is a bomb of pixels":
        files["dog/bomb.png"] = png(0, 400)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400 * 400 // 2 - 1)
    if kind == "is a bomb of zeros":
        files["dog/zeros.png"] = bytes(2**20 + 1)
        monkeypatch.setattr(archive, "MOST_BYTES", 2**20)
    path = write_zip(tmp_path / "a.zip", files, zipfile.ZIP_DEFLATED if change is None else zipfile.ZIP_STORED)
    if change:
        change(path)
    with pytest.raises(InputError, match=message):
        load(path)
    assert len(load(path, most_broken=0.9).images) < len(files)
    assert message in capsys.readouterr().out


def test_what_is_packed_behind_a_small_size_is_not_unpacked(tmp_path):
    path = write_zip(tmp_path / "a.zip", PICTURES | {"cat/0.png": bytes(2**25)}, zipfile.ZIP_DEFLATED)
    with_flags(24, 10)(path)
    with_flags(26, 0)(path)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"cat/0.png: cannot be read: damaged: Bad CRC-32"):
        load(path)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_a_pipe_is_no_archive(tmp_path):
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(InputError, match=r"pipe.zip: cannot be read: not a file"):
        load(tmp_path / "pipe.zip")
