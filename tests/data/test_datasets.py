import gzip
import hashlib
import io
import pickle
import shutil
import struct
import tarfile
from urllib.error import URLError

import numpy as np
import pytest
import torch
from conftest import ROOT
from torchvision import datasets

from utils.config.schema import Config, Data
from utils.data.datasets import load_data, load_images
from utils.data.images import ImageData
from utils.system.errors import InputError

CPU = torch.device("cpu")


def load(num_classes: int = 0, **data) -> ImageData:
    settings = {"name": "MNIST", "root": str(ROOT / "data"), "image_size": 32, "num_channels": 1} | data
    network = {"multipliers": [1], "attention_resolutions": [], "num_classes": num_classes}
    return load_data(Config.model_validate({"data": settings, "network": network}), CPU)


def test_mnist_comes_with_the_repository():
    """At their own size the images are those of the original file, which is 16 bytes and then the pixels."""
    with gzip.open(ROOT / "data/MNIST/raw/train-images-idx3-ubyte.gz") as file:
        original = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    data = load(image_size=28)
    assert np.array_equal(data.images.numpy(), original)
    assert data.labels is None
    resized = load(image_size=32)
    assert resized.images.shape == (60_000, 1, 32, 32) and resized.images.dtype == torch.uint8
    assert resized.images.float().mean().item() == pytest.approx(original.mean(), rel=0.02)


def test_colour_and_classes():
    data = load(num_classes=10, image_size=8, num_channels=3)
    assert data.images.shape == (60_000, 3, 8, 8)
    assert torch.equal(data.images[:, 0], data.images[:, 2])
    assert data.labels[:5].tolist() == [5, 0, 4, 1, 9]
    with pytest.raises(InputError, match=r"network.num_classes: 7, but MNIST has 10 classes"):
        load(num_classes=7, image_size=8)


def test_a_torn_unpacking_is_mended(tmp_path):
    shutil.copytree(ROOT / "data/MNIST/raw", tmp_path / "MNIST/raw", ignore=shutil.ignore_patterns("*-ubyte"))
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        with gzip.open(tmp_path / f"MNIST/raw/{name}-ubyte.gz") as file:
            (tmp_path / f"MNIST/raw/{name}-ubyte").write_bytes(file.read()[:10_000])
    assert len(load(root=str(tmp_path), image_size=8)) == 60_000


def test_missing_and_not_to_be_fetched(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", no_network)
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"MNIST is missing and cannot be downloaded: .*no network"):
            load(root=str(root))
    assert list(tmp_path.iterdir()) == []  # what torchvision made for what it did not get


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def test_fashion_mnist_in_its_real_format(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    labels = np.arange(12, dtype=np.uint8) % 10
    files = {
        "images-idx3": struct.pack(">4I", 0x803, 12, 28, 28) + images.tobytes(),
        "labels-idx1": struct.pack(">2I", 0x801, 12) + labels.tobytes(),
    }
    folder = tmp_path / "FashionMNIST/raw"
    folder.mkdir(parents=True)
    resources = []
    for split in ("train", "t10k"):
        for kind, content in files.items():
            packed = gzip.compress(content)
            (folder / f"{split}-{kind}-ubyte.gz").write_bytes(packed)
            resources.append((f"{split}-{kind}-ubyte.gz", md5(packed)))
    monkeypatch.setattr(datasets.FashionMNIST, "resources", resources)
    data = load(num_classes=10, name="FashionMNIST", root=str(tmp_path), image_size=28)
    assert torch.equal(data.images[:, 0], torch.from_numpy(images))
    assert data.labels.tolist() == labels.tolist()


def test_cifar10_in_its_real_format(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
    members, lists = {}, {}
    for k in range(5):
        batch = {"data": images[2 * k : 2 * k + 2].reshape(2, -1), "labels": [2 * k, 2 * k + 1]}
        members[f"data_batch_{k + 1}"] = pickle.dumps(batch)
    members["test_batch"] = pickle.dumps({"data": images[:2].reshape(2, -1), "labels": [0, 1]})
    members["batches.meta"] = pickle.dumps({"label_names": [f"class {i}" for i in range(10)]})
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
            lists[name] = md5(content)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5((tmp_path / "cifar-10-python.tar.gz").read_bytes()))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[n, m] for n, m in lists.items() if n.startswith("data")])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", lists["test_batch"]]])
    monkeypatch.setattr(
        datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": lists["batches.meta"]}
    )
    data = load(num_classes=10, name="CIFAR10", root=str(tmp_path), num_channels=3)
    assert torch.equal(data.images, torch.from_numpy(images))
    assert data.labels.tolist() == list(range(10))
    assert load(name="CIFAR10", root=str(tmp_path), num_channels=1, image_size=16).images.shape == (10, 1, 16, 16)


def test_the_test_images_of_mnist_are_others():
    settings = Data(name="MNIST", root=str(ROOT / "data"), image_size=28, num_channels=1)
    test = load_images(settings, test=True)
    assert test.images.shape == (10_000, 1, 28, 28) and test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert test.class_names == list("0123456789")
