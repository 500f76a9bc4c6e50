"""Folders that are prepared once, whatever happens on the way."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_folder import write_image

from utils.config.schema import Data
from utils.data import folder_cache
from utils.data.folder_cache import load_folder
from utils.data.images import ImageSet, content_hash
from utils.system.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_cache, "CACHE", tmp_path / "cache")
    return folder_cache.CACHE


@pytest.fixture
def root(tmp_path) -> Path:
    for i in range(8):
        write_image(tmp_path / f"pictures/{'cats' if i % 2 else 'dogs'}/{i}.png", 8, 8, i)
    return tmp_path / "pictures"


def load(root: Path, **changes) -> ImageSet:
    settings = {"name": "folder", "root": str(root), "image_size": 8, "num_channels": 1} | changes
    return load_folder(root, "data.root", Data.model_validate(settings))


def values(data: ImageSet) -> list[int]:
    return data.images[:, 0, 0, 0].tolist()


def decoded_again(*_) -> None:
    raise AssertionError("decoded again")


def test_what_has_been_prepared_is_mapped_and_not_decoded_again(root, cache, monkeypatch):
    first = load(root)
    assert values(first) == [1, 3, 5, 7, 0, 2, 4, 6] and first.labels.tolist() == [0] * 4 + [1] * 4
    assert first.class_names == ["cats", "dogs"] and first.hash == content_hash(first.images, first.labels)
    monkeypatch.setattr(folder_cache, "read_image", decoded_again)
    again = load(root)
    assert torch.equal(again.images, first.images) and again.hash == first.hash
    again.release()
    assert torch.equal(again.images, first.images)
    again.images[0] = 9  # reaches no other process
    assert values(load(root))[0] == 1
    assert sorted(path.suffix for path in cache.iterdir()) == ["", ".json", ".uint8"]


def test_what_changes_is_prepared_anew_in_place_of_the_old(root, cache):
    before = load(root)
    for change in (
        lambda: write_image(root / "cats/9.png", 8, 8, 9),
        lambda: (root / "cats/9.png").rename(root / "dogs/9.png"),
        lambda: write_image(root / "dogs/9.png", 8, 8, 10),
        lambda: (root / "dogs/9.png").unlink(),
    ):
        change()
        data = load(root)
        assert data.hash != before.hash and len(list(cache.glob("*.uint8"))) == len(list(cache.glob("*.json"))) == 1
        before = data
    load(root, image_size=4)
    load(root, background="red")
    assert len(list(cache.glob("*.uint8"))) == 3  # of other settings, beside it


def test_an_image_that_was_replaced_by_one_of_the_same_size_and_time_is_read_again(root):
    path = root / "cats/1.bmp"
    write_image(path, value=50)
    before, first = path.stat(), values(load(root))
    write_image(path, value=60)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert sorted(values(load(root))) == sorted([*(value for value in first if value != 50), 60])


@pytest.mark.parametrize("damage", ["cut", "gone", "no index", "other files' index", "no JSON", "other types"])
def test_what_is_not_whole_or_belongs_to_other_files_is_made_anew(root, cache, damage):
    expected = values(load(root))
    (images,), (index,) = cache.glob("*.uint8"), cache.glob("*.json")
    content = json.loads(index.read_text())
    {
        "cut": lambda: os.truncate(images, 100),
        "gone": images.unlink,
        "no index": index.unlink,
        "other files' index": lambda: index.write_text(json.dumps(content | {"identity": "other"})),
        "no JSON": lambda: index.write_text(index.read_text()[:-5]),
        "other types": lambda: index.write_text(json.dumps(content | {"classes": [8]})),
    }[damage]()
    assert values(load(root)) == expected


def test_a_few_broken_pictures_are_named_and_left_out(root, capsys):
    for i in range(3):
        (root / f"cats/broken{i}.png").write_bytes(b"no picture")
    data = load(root, most_broken=0.3)
    assert values(data) == [1, 3, 5, 7, 0, 2, 4, 6] and data.labels.tolist() == [0] * 4 + [1] * 4
    said = capsys.readouterr().out
    assert f"3 skipped: {root}/cats/broken0.png: not a readable image" in said and "broken2.png" in said
    assert "8 images in 2 classes: 0 cats, 1 dogs" in said
    for _ in range(2):  # prepared or not
        with pytest.raises(
            InputError, match=r"broken2.png: .*3 of 11 images, more than the fraction that data.most_broken allows, 0.2"
        ):
            load(root, most_broken=0.2)


def test_what_cannot_be_read_now_is_not_left_out_for_ever(root, monkeypatch, cache):
    def forbidden(path, *_, **__):
        raise InputError(f"{path}: cannot be read: Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(folder_cache, "read_image", forbidden)
        with pytest.raises(InputError, match=r"1.png: cannot be read: Permission denied$"):
            load(root, most_broken=1.0)
    assert not list(cache.glob("*.uint8")) and len(load(root).images) == 8


def test_a_class_without_a_picture_that_can_be_read_is_an_error(root):
    (root / "bats").mkdir()
    (root / "bats/1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"pictures/bats: none of its images can be read: .*bats/1.png: not"):
        load(root, most_broken=0.5)


def test_folders_of_odd_names(tmp_path):
    """With what a pattern means by it, too long, and two that look alike when they are printed."""
    for name in ("a[1-9]", "x" * 250):
        write_image(tmp_path / name / "1.png")
        load(tmp_path / name)
        write_image(tmp_path / name / "2.png")
        assert len(load(tmp_path / name).images) == 2
        assert len(list(folder_cache.CACHE.glob(f"{name[0]}*.uint8"))) == 1
    for i, odd in enumerate((b"\xe4", b"\xf6")):
        write_image(Path(os.fsdecode(os.fsencode(tmp_path) + b"/odd/" + odd)) / "1.png", value=i)
    data = load(tmp_path / "odd")
    assert data.class_names == ["\\xe4", "\\xf6"] and data.labels.tolist() == values(data) == [0, 1]


def test_workers_decode_what_one_process_does(root, monkeypatch):
    for i in range(100):
        write_image(root / f"birds/{i:03}.png", 10 + i, 40, i)
    (root / "birds/050.png").write_bytes(b"no picture")
    alone = load(root)
    monkeypatch.setattr(folder_cache, "FEW_IMAGES", 10)
    monkeypatch.setattr(folder_cache, "VERSION", 99)
    parallel = load(root)
    assert torch.equal(parallel.images, alone.images) and torch.equal(parallel.labels, alone.labels)
    assert values(parallel)[50] == 51


def test_names_in_any_script_and_names_that_are_no_text(tmp_path, capsys):
    names = ["Ärger/ß.PNG", "猫/一.png", "кот/два.Png", "हि\u200cन्दी/1.png"]
    for i, name in enumerate(names):
        write_image(tmp_path / "pictures" / name, value=i)
    odd = os.fsencode(tmp_path / "pictures") + b"/\xff\xfe"
    os.mkdir(odd)
    (tmp_path / "pictures" / names[0]).replace(os.fsdecode(odd + b"/\xff.png"))
    data = load(tmp_path / "pictures")
    assert data.class_names == ["\\xff\\xfe", "кот", "हि\u200cन्दी", "猫"] and values(data) == [0, 2, 3, 1]
    assert "0 \\xff\\xfe" in capsys.readouterr().out


def test_links_out_of_the_folder_are_not_followed(root, tmp_path, capsys):
    write_image(tmp_path / "secret/1.png", value=77)
    (root / "cats/away.png").symlink_to(tmp_path / "secret/1.png")
    (root / "cats/nowhere.png").symlink_to(tmp_path / "nowhere.png")
    (root / "birds").symlink_to(tmp_path / "secret")
    (root / "cats/within.png").symlink_to(root / "cats/1.png")
    with pytest.raises(InputError, match=r"cats/away.png: a link out of the folder, not followed; .* data.most_broken"):
        load(root)
    data = load(root, most_broken=0.2)
    assert values(data) == [1, 3, 5, 7, 1, 0, 2, 4, 6] and data.class_names == ["cats", "dogs"]
    printed = capsys.readouterr().out
    assert "skipped: 1 link(s) to folders, which are not followed, 1 link(s) to nothing" in printed
    assert "1 skipped: " in printed and "away.png: a link out of the folder" in printed


def test_what_real_folders_hold(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(folder / "a.jpg", quality=95)
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.save(folder / "b.png")
    palette.save(folder / "c.png", transparency=1)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(
        folder / "d.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), (200, 0, 0))]
    )
    Image.fromarray(np.full((8, 8), 32896, np.uint16)).save(folder / "e.png")
    data = load(folder, num_channels=3, background="#0000ff")
    assert data.images[0, :, 4, 4].tolist() == pytest.approx([255, 0, 0], abs=3)
    assert data.images[1:, :, 4, 4].tolist() == [[10, 200, 30], [0, 0, 255], [1, 2, 3], [128, 128, 128]]


def test_a_large_photo_is_read_at_a_fraction_of_its_size(tmp_path):
    """And looks the same, to two greys, as the whole read and resized."""
    ramp = torch.linspace(0, 255, 1024).byte().expand(3, 1024, 1024)
    Image.fromarray(ramp.permute(1, 2, 0).numpy()).save(tmp_path / "a.jpg", quality=95)
    small = folder_cache.read_image(tmp_path / "a.jpg", 3, at_least=64)
    assert small.shape == (3, 128, 128)
    whole = folder_cache.read_image(tmp_path / "a.jpg", 3)
    assert (folder_cache.fit(small[None], 32, 3).int() - folder_cache.fit(whole[None], 32, 3).int()).abs().max() <= 2


PREPARE = """
import sys
from pathlib import Path
from utils.config.schema import Data
from utils.data import folder_cache
folder_cache.FEW_IMAGES = 0
settings = Data(name="folder", root="pictures", image_size=8, num_channels=1)
print(folder_cache.load_folder(Path("pictures"), "data.root", settings).hash)
"""


def prepare(folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the workers in /proc")
def test_a_kill_leaves_nothing_half_and_two_at_once_prepare_it_once(root, tmp_path):
    for i in range(300):
        write_image(root / f"birds/{i}.png", 300, 300, i % 256)
    killed, cache = prepare(tmp_path), tmp_path / "data/cache"
    while not any(path.stat().st_size for path in cache.glob(".*.uint8.*.tmp")):
        assert killed.poll() is None
        time.sleep(0.002)
    workers = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
    killed.kill()  # alone, as the system does where memory is short
    killed.wait()
    assert workers
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "the workers outlive it, and wait for a reader that is gone"
        time.sleep(0.01)
    assert not list(cache.glob("*.uint8"))
    said = [process.communicate()[0] for process in (prepare(tmp_path), prepare(tmp_path))]
    assert said[0].splitlines()[-1] == said[1].splitlines()[-1] == load(root).hash
    assert sum("waiting for it" in text for text in said) <= 1
    assert len(list(cache.glob("*.uint8"))) == 1 and not list(cache.glob(".*.tmp"))
