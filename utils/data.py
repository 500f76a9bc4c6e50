"""The training and test images: a whole data set in memory as uint8, so that no step waits for it."""

from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets
from torchvision.transforms.v2 import functional as transforms

from utils.config import Config
from utils.config import Data as DataSettings
from utils.errors import InputError
from utils.process.distributed import rank_zero_first
from utils.process.randomness import seed_of

TORCHVISION = {"MNIST": datasets.MNIST, "FashionMNIST": datasets.FashionMNIST, "CIFAR10": datasets.CIFAR10}
Images = tuple[Tensor, Tensor]  # uint8 [N, C, H, W] and their classes [N]
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif"}


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 images as the models see them, in [-1, 1]."""
    return images.float() / 127.5 - 1


class ImageData:
    """Images [N, C, H, W] in uint8 and their classes [N], if any, in an order that a seed shuffles anew each epoch."""

    def __init__(self, images: Tensor, labels: Tensor | None, *, seed: int, random_flip: bool):
        self.images, self.labels = images, labels
        self.seed, self.random_flip = seed, random_flip

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, step: int, batch_size: int, shuffle: int = 0) -> tuple[Tensor, Tensor | None]:
        """The global batch of a step: images [B, C, H, W] in [-1, 1] and classes [B]; a function of the step alone.

        Each `shuffle` is another sequence of shuffles, so that students of few steps do not all see the same images.
        """
        indices = torch.cat(
            [
                _permutation(len(self), self.seed, shuffle, epoch)[begin:end]
                for epoch, begin, end in _epochs(step * batch_size, batch_size, len(self))
            ]
        ).to(self.images.device, non_blocking=self.images.is_cuda)
        x = to_unit_range(self.images[indices])
        if self.random_flip:
            flip = torch.rand(batch_size) < 0.5
            x = torch.where(flip.to(x.device, non_blocking=x.is_cuda)[:, None, None, None], x.flip(-1), x)
        return x, None if self.labels is None else self.labels[indices]


def _epochs(start: int, count: int, length: int) -> list[tuple[int, int, int]]:
    """(epoch, begin, end) of each piece of `count` images from number `start` on, in epochs of one length."""
    pieces = []
    while count:
        epoch, begin = divmod(start, length)
        end = min(begin + count, length)
        pieces.append((epoch, begin, end))
        start, count = start + end - begin, count - (end - begin)
    return pieces


@lru_cache(maxsize=2)
def _permutation(length: int, seed: int, shuffle: int, epoch: int) -> Tensor:
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed_of("epoch", seed, shuffle, index=epoch)))


def load_data(config: Config, device: torch.device) -> ImageData:
    """The training images that a configuration names, in its size and channels, on the device.

    Their classes come with them if the configuration has classes.

    Raises:
        InputError: the data are missing and cannot be fetched, or have other classes than the configuration says.
    """
    settings = config.data
    images, labels = load_images(settings)
    num_classes = config.network.num_classes
    if num_classes and int(labels.max()) >= num_classes:
        raise InputError(f"network.num_classes: {num_classes}, but {settings.name} has {int(labels.max()) + 1} classes")
    return ImageData(
        images.to(device),
        labels.to(device) if num_classes else None,
        seed=config.seed,
        random_flip=settings.random_flip,
    )


@rank_zero_first
def load_images(settings: DataSettings, *, test: bool = False) -> Images:
    """The training or test images of a data set, in its size and channels, and their classes.

    Raises:
        InputError: they are missing and cannot be fetched, or a folder has no test images.
    """
    if settings.name != "folder":
        images, labels = _read_torchvision(settings, test)
        return _fit(images, settings), labels
    if test and settings.test_root is None:
        raise InputError("data.test_root: missing; needed here: a folder of images like those of data.root")
    return _read_folder(settings, test)


def _read_torchvision(settings: DataSettings, test: bool) -> Images:
    """A data set of torchvision, in its own size and channels; downloaded if it is missing."""
    dataset_class = TORCHVISION[settings.name]
    try:
        try:
            dataset = dataset_class(settings.root, train=not test, download=True)
        except (RuntimeError, AssertionError, ValueError, IndexError):
            # A kill in the midst of unpacking leaves a piece of a file, which torchvision takes for the whole.
            for packed in Path(settings.root, settings.name, "raw").glob("*-ubyte.gz"):
                packed.with_suffix("").unlink(missing_ok=True)
            dataset = dataset_class(settings.root, train=not test, download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"data.root: {settings.root}: {settings.name} is not there and cannot be fetched: "
            f"{' '.join(str(error).split()):.200}"
        ) from error
    images = torch.as_tensor(dataset.data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return images, torch.as_tensor(dataset.targets)


def _read_folder(settings: DataSettings, test: bool) -> Images:
    """All images below a folder; the class of each is the index of its folder among those of data.root."""
    root = Path(settings.test_root if test else settings.root)
    paths = _find_images(root, "data.test_root" if test else "data.root")
    training = _find_images(Path(settings.root), "data.root") if test else paths
    names = sorted({path.parent.relative_to(settings.root) for path in training})
    classes = {name: i for i, name in enumerate(names)}
    images = torch.empty(len(paths), settings.num_channels, settings.image_size, settings.image_size, dtype=torch.uint8)
    labels = torch.empty(len(paths), dtype=torch.long)
    for i, path in enumerate(paths):
        name = path.parent.relative_to(root)
        if name not in classes:
            raise InputError(f"{path}: of a class that data.root has no folder for: {name}")
        try:
            image = transforms.pil_to_tensor(Image.open(path).convert("L" if settings.num_channels == 1 else "RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"{path}: not an image that can be read") from error
        images[i], labels[i] = _fit(image[None], settings)[0], classes[name]
    return images, labels


def _find_images(root: Path, key: str) -> list[Path]:
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise InputError(f"{key}: {root}: no images there ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return paths


def _fit(images: Tensor, settings: DataSettings) -> Tensor:
    """Images [N, C, H, W] in uint8, cut to their middle square, in the configuration's size and channels."""
    side = min(images.shape[-2:])
    images = transforms.center_crop(images, [side, side])
    if side != settings.image_size:
        images = transforms.resize(images, [settings.image_size, settings.image_size], antialias=True)
    if settings.num_channels == 3 and images.shape[1] == 1:
        images = images.repeat(1, 3, 1, 1)
    elif settings.num_channels == 1 and images.shape[1] == 3:
        images = transforms.rgb_to_grayscale(images)
    return images.contiguous()
