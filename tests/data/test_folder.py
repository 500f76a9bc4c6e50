import os
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import FILES
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from utils.config.schema import Config, Data
from utils.data import folder_cache
from utils.data.datasets import load_data, load_images, require_num_classes, require_same_classes
from utils.data.decoding import BrokenImage, read_image
from utils.data.folder import class_names_of, find_images
from utils.system.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(folder_cache, "CACHE", tmp_path_factory.mktemp("cache"))
    return folder_cache.CACHE


def write_image(path: Path, height: int = 8, width: int = 8, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (value, value, value)).save(path)


def load(root: Path, *, num_classes: int = 0, **data):
    settings = {"name": "folder", "root": str(root), "image_size": 8, "num_channels": 1} | data
    network = {"features": 4, "multipliers": [1, 2], "attention_resolutions": [], "num_classes": num_classes}
    return load_data(Config.model_validate({"data": settings, "network": network}), torch.device("cpu"))


def test_a_folder_of_images_of_any_size(tmp_path, capsys):
    write_image(tmp_path / "cats/1.png", 20, 40, 10)
    write_image(tmp_path / "dogs/deep/2.png", 64, 16, 20)
    data = load(tmp_path, num_classes=2, image_size=16, num_channels=3)
    assert data.images.shape == (2, 3, 16, 16)
    assert data.images[:, 0, 0, 0].tolist() == [10, 20] and data.labels.tolist() == [0, 1]
    assert "2 images in 2 classes: 0 cats, 1 dogs/deep" in capsys.readouterr().out


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    Image.fromarray(np.array([[0, 257, 32896, 65535]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 1).tolist() == [[[0, 1, 128, 255]]]


def test_what_has_no_white_is_no_picture(tmp_path):
    for name, kind in (("f.tif", np.float32), ("i.tif", np.int32)):
        Image.fromarray(np.ones((2, 2), kind)).save(tmp_path / name)
        with pytest.raises(InputError, match=f"{name}: has 32 bits per pixel, so its white is unknown"):
            read_image(tmp_path / name, 1)


@pytest.mark.parametrize("name", FILES)
def test_files_written_from_the_specifications_are_read_rightly_or_refused_by_name(tmp_path, name):
    content, pixels = FILES[name]
    path = tmp_path / f"a.{name.partition(' ')[0].lower()}"
    path.write_bytes(content)
    if pixels is None:
        with pytest.raises(BrokenImage, match=path.name):
            read_image(path, 3)
        return
    expected = torch.tensor([pixel if isinstance(pixel, tuple) else 3 * (pixel,) for pixel in pixels])
    found = read_image(path, 3)[:, 0, : len(pixels)].T
    assert (found - expected).abs().max() <= 1  # the conversion from YCbCr rounds


@pytest.mark.parametrize("suffix", ["png", "webp", "gif"])
def test_what_is_transparent_is_white_whatever_the_file_hides_there(tmp_path, suffix):
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (0, 200, 0, 0))
    image.save(tmp_path / f"a.{suffix}", lossless=True)
    picture = read_image(tmp_path / f"a.{suffix}", 3)
    assert picture[:, 0, 1].tolist() == [255, 255, 255] and picture[0, 0, 0] > 190 and picture[1, 0, 0] < 10
    assert read_image(tmp_path / f"a.{suffix}", 1)[0, 0, 1] == 255
    half = Image.new("LA", (1, 1), (0, 128))
    half.save(tmp_path / "half.png")
    assert read_image(tmp_path / "half.png", 1).item() == 127


def test_a_photo_stands_upright(tmp_path):
    image = Image.new("L", (16, 8))
    image.paste(255, (0, 0, 8, 8))  # bright on the left, to be turned so that it is on top
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image.save(tmp_path / "a.jpg", exif=exif)
    picture = read_image(tmp_path / "a.jpg", 1)
    assert picture.shape == (1, 16, 8) and picture[0, 2, 4] > 250 and picture[0, 13, 4] < 5


def test_six_formats_are_read_and_the_rest_is_printed(tmp_path, capsys):
    for name in ("a.bmp", "b.tif", "c.TIFF", "d.webp", "e.png", "f.gif", "g.JPG", "h.ppm"):
        write_image(tmp_path / name)
    for name in ("notes.txt", "more.txt", "README", "a.\033[31m"):
        (tmp_path / name).write_text("no image")
    assert len(load(tmp_path)) == 7
    assert "skipped: 2 .txt, 1 .\\x1b[31m, 1 README, 1 .ppm" in capsys.readouterr().out


def test_broken_exif_and_long_text_do_not_spoil_a_good_picture(tmp_path):
    grey = Image.new("L", (16, 16), 200)
    grey.save(tmp_path / "a.jpg", exif=b"Exif\0\0garbage!")
    grey.save(tmp_path / "b.png", exif=b"\0\x08\0\x02\x01\x12\0\x03junk")
    grey.save(tmp_path / "c.webp", exif=b"junk", lossless=True)
    text = PngInfo()
    text.add_text("prompt", "x" * 2**21, zip=True)
    grey.save(tmp_path / "d.png", pnginfo=text)
    for path in tmp_path.iterdir():
        assert read_image(path, 1).unique().tolist() == [200], path


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_photo_stands_upright_whatever_else_its_exif_data_say(tmp_path, suffix):
    """A resolution in text can be read, but Pillow could not write it again."""
    image = Image.new("L", (16, 8))
    image.paste(255, (0, 0, 8, 8))
    for orientation, corner in ((6, (0, 0, 0)), (3, (0, 7, 15)), (8, (0, 15, 0))):
        entries = struct.pack("<HHII", 0x0112, 3, 1, orientation) + struct.pack("<HHII", 0x011A, 2, 4, 0x20202020)
        exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + bytes(4)
        image.save(tmp_path / f"a.{suffix}", exif=exif)
        assert read_image(tmp_path / f"a.{suffix}", 1)[corner] > 200


def test_a_jpeg_without_its_end_is_broken(tmp_path):
    path, noise = tmp_path / "a.jpg", torch.randint(256, (64, 64), dtype=torch.uint8).numpy()
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    read_image(path, 1)
    for appended in (b"what some cameras append", b"ftypmp42\xff\xda\0\0", b"\xff\xd9\xff\xda"):
        path.write_bytes(whole + appended)
        read_image(path, 1)
    path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) // 2))
    with pytest.raises(BrokenImage, match=r"a.jpg: cannot be read: damaged"):
        read_image(path, 1)


@pytest.mark.parametrize(
    ("folders", "classes"),
    [(range(12), [str(k) for k in range(12)]), (("10", "9", "x"), ["10", "9", "x"]), (("07", "6"), ["6", "07"])],
)
def test_classes_that_are_all_numbers_are_in_their_order(tmp_path, folders, classes):
    for name in folders:
        (tmp_path / str(name)).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / str(name) / "a.png")
    assert class_names_of(find_images(tmp_path, "data.root")) == classes


def test_a_teacher_with_one_class_more_than_the_data(tmp_path):
    network = {"type": "unet2d", "block_out_channels": [32], "down_block_types": ["DownBlock2D"]}
    network |= {"up_block_types": ["UpBlock2D"], "num_classes": 11}
    data = {"name": "MNIST", "image_size": 8, "num_channels": 1}
    config = Config.model_validate({"data": data, "network": network})
    with pytest.raises(InputError, match=r"num_classes: 11, but MNIST has 10 .* use convert.py --last_class_is_none"):
        require_num_classes([str(k) for k in range(10)], config)


def test_classes_may_be_given_in_another_order(tmp_path):
    for value, name in ((10, "bird"), (20, "cat"), (30, "dog")):
        write_image(tmp_path / name / "a.png", value=value)
    data = load(tmp_path, num_classes=3, class_names=["dog", "bird", "cat"])
    assert data.description.class_names == ["dog", "bird", "cat"]
    assert data.images[:, 0, 0, 0].tolist() == [30, 10, 20] and data.labels.tolist() == [0, 1, 2]
    with pytest.raises(InputError, match=r"data.class_names: should be the classes in"):
        load(tmp_path, num_classes=3, class_names=["dog", "bird"])
    with pytest.raises(InputError, match=r"data.class_names: should be the classes in .*: bird, cat, dog"):
        load(tmp_path, num_classes=3, class_names=["dog", "bird", "cat", "bird"])
    with pytest.raises(ValueError, match=r"data.class_names: only for name: folder; MNIST has its own"):
        load(tmp_path, name="MNIST", class_names=["dog", "bird"])


def test_two_classes_of_one_name_are_refused(tmp_path):
    for name in (b"caf\xc3\xa9", b"cafe\xcc\x81"):
        folder = Path(os.fsdecode(bytes(tmp_path) + b"/" + name))
        write_image(folder / "a.png")
    with pytest.raises(InputError, match=r"data.root: 2 subfolders are called café, in different encodings"):
        load(tmp_path)


@pytest.mark.parametrize("names", [("train/cat", "train/dog", "test/cat", "test/dog"), ("train", "test")])
def test_sets_of_images_are_not_taken_for_classes(tmp_path, names):
    for name in names:
        write_image(tmp_path / name / "a.png")
    for num_classes in (len(names), 0):
        with pytest.raises(InputError, match=r"test and train seem to be sets of images.* should be .*/train .*, and"):
            load(tmp_path, num_classes=num_classes)
    load(tmp_path / "train")


def test_no_picture_is_what_its_name_hides(tmp_path):
    """A file is not given to a reader that would run another program, whatever its suffix."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    with pytest.raises(InputError, match=r"a.png: not a readable image"):
        load(tmp_path)


def test_hidden_files_and_folders_do_not_count(tmp_path):
    for name in ("cats/1.png", "dogs/1.png", ".ipynb_checkpoints/1.png", "cats/._1.png", "cats/.thumbs/1.png"):
        write_image(tmp_path / name)
    assert load(tmp_path, num_classes=2).labels.tolist() == [0, 1]


def test_the_number_of_classes_must_fit(tmp_path, capsys):
    for name in ("cats/1.png", "dogs/1.png"):
        write_image(tmp_path / name)
    for wrong in (1, 3, 10):
        with pytest.raises(
            InputError, match=f"network.num_classes: {wrong}, but .* has 2 classes .*; it should be 2, or 0"
        ):
            load(tmp_path, num_classes=wrong)
    with pytest.raises(
        InputError, match=r"network.num_classes: 1, but .* has 0 classes: no subfolders, .*; it should be 0,"
    ):
        load(tmp_path / "cats", num_classes=1)
    assert load(tmp_path).labels is None
    write_image(tmp_path / "loose.png")
    assert len(load(tmp_path)) == 3  # of which a network without classes makes nothing
    said = capsys.readouterr().out
    assert "3 images, some of them beside the subfolders (loose.png), which are therefore not classes" in said
    with pytest.raises(InputError, match=r"network.num_classes: 2, but .* has 0 classes: no subfolders, or"):
        load(tmp_path, num_classes=2)


def test_folders_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"data.root: .*nowhere: no such folder, or zip"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no images there, it is empty"):
        load(tmp_path)
    write_image(tmp_path / "real/1.png")
    (tmp_path / "links").mkdir()
    (tmp_path / "links/linked").symlink_to(tmp_path / "real")
    (tmp_path / "links/a.txt").write_text("a")
    with pytest.raises(
        InputError,
        match=r"no images there, there are .*1 link\(s\) to folders, which are not followed",
    ):
        load(tmp_path / "links")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load(Path("~/real"))) == 1


def test_what_is_wrong_with_a_picture_is_said(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"a.png: not a readable image, whatever its name"):
        load(tmp_path)
    write_image(path, 100, 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4999)  # beyond twice as many, it may be a bomb
    with pytest.raises(InputError, match=r"a.png: too large: "):
        load(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9999)  # Pillow warns; no error, even where warnings are
    assert len(load(tmp_path)) == 1
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"a.png: (cannot be read: damaged|not a readable image)"):
        load(tmp_path)

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", forbidden)
    with pytest.raises(InputError, match=r"a.png: cannot be read: Permission denied"):
        load(tmp_path)


def test_the_test_images_of_a_folder_have_its_classes(tmp_path):
    for path, value in (("a/cats/1.png", 1), ("a/dogs/1.png", 2), ("b/cats/3.png", 3), ("b/dogs/7.png", 7)):
        write_image(tmp_path / path, 8, 8, value)
    settings = Data(
        name="folder", root=str(tmp_path / "a"), test_root=str(tmp_path / "b"), image_size=8, num_channels=1
    )
    training, test = load_images(settings), load_images(settings, test=True)
    assert test.images[:, 0, 0, 0].tolist() == [3, 7] and test.labels.tolist() == [0, 1]
    assert test.class_names == ["cats", "dogs"]
    require_same_classes(test.class_names, training.class_names)
    write_image(tmp_path / "b/bats/1.png")
    with pytest.raises(InputError, match=r"data.root: missing subfolders: bats"):
        load_images(settings, test=True, accept=partial(require_same_classes, training=training.class_names))
    (tmp_path / "b/cats/3.png").unlink()
    with pytest.raises(InputError, match=r"data.test_root: missing subfolders: cats"):
        load_images(settings, test=True, accept=partial(require_same_classes, training=training.class_names))
    with pytest.raises(InputError, match=r"data.test_root: missing"):
        load_images(settings.model_copy(update={"test_root": None}), test=True)
