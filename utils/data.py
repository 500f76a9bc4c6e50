"""The training and test images: a whole data set in memory as uint8, so that no step waits for it."""

import hashlib
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torchvision import datasets

from utils.config import Config
from utils.config import Data as DataSettings
from utils.errors import InputError
from utils.files import remove_if_empty
from utils.folder import fit, read_folder
from utils.process.distributed import rank_zero_first
from utils.process.randomness import seed_of

TORCHVISION = {"MNIST": datasets.MNIST, "FashionMNIST": datasets.FashionMNIST, "CIFAR10": datasets.CIFAR10}
Images = tuple[Tensor, Tensor]  # uint8 [N, C, H, W] and their classes [N]


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 images as the models see them, in [-1, 1]."""
    return images.float() / 127.5 - 1


def content_hash(*tensors: Tensor) -> str:
    """The first twelve hexadecimal digits of a SHA-256 of the tensors (on the CPU)."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:12]


class ImageData:
    """Images [N, C, H, W] in uint8 and their classes [N], if any, in an order that a seed shuffles anew each epoch."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None,
        *,
        seed: int,
        random_flip: bool,
        device: torch.device = torch.device("cpu"),  # noqa: B008 (a constant)
    ):
        """The images and classes lie on the CPU, and are moved to the device."""
        self.hash = content_hash(*(tensor for tensor in (images, labels) if tensor is not None))
        self.images, self.labels = images.to(device), None if labels is None else labels.to(device)
        self.seed, self.random_flip = seed, random_flip

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, examples: range, shuffle: int = 0) -> tuple[Tensor, Tensor | None]:
        """The training examples of these numbers, which count on from epoch to epoch; a function of them alone.

        Each `shuffle` is another sequence of shuffles, so that students of few steps do not all see the same images.

        Returns:
            Images [B, C, H, W] in [-1, 1], and classes [B] or None.
        """
        pieces = []
        for epoch, begin, end in _epochs(examples.start, len(examples), len(self)):
            order, flips = _shuffled(len(self), self.seed, shuffle, epoch)
            pieces.append((order[begin:end], flips[begin:end]))
        indices, flip = (
            torch.cat(part).to(self.images.device, non_blocking=self.images.is_cuda)
            for part in zip(*pieces, strict=True)
        )
        x = to_unit_range(self.images[indices])
        if self.random_flip:
            x = torch.where(flip[:, None, None, None], x.flip(-1), x)
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
def _shuffled(length: int, seed: int, shuffle: int, epoch: int) -> tuple[Tensor, Tensor]:
    """The order of the images in an epoch, and for each place whether a random flip mirrors its image."""
    generator = torch.Generator().manual_seed(seed_of("epoch", seed, shuffle, index=epoch))
    return torch.randperm(length, generator=generator), torch.rand(length, generator=generator) < 0.5


def load_data(config: Config, device: torch.device) -> ImageData:
    """The training images that a configuration names, in its size and channels, on the device.

    Their classes come with them if the configuration has classes.

    Raises:
        InputError: the data are missing and cannot be fetched, or have other classes than the configuration says.
    """
    settings = config.data
    images, labels = load_images(settings)
    require_num_classes(labels, config)
    return ImageData(
        images,
        labels if config.network.num_classes else None,
        seed=config.seed,
        random_flip=settings.random_flip,
        device=device,
    )


def require_num_classes(labels: Tensor, config: Config) -> None:
    """Refuses a network with another number of classes than the data, unless it has none.

    Raises:
        InputError: naming both numbers.
    """
    num_classes, found = config.network.num_classes, int(labels.max()) + 1
    if num_classes and found != num_classes:
        raise InputError(
            f"network.num_classes: {num_classes}, but {config.data.name} has {found} "
            f"{'classes' if found > 1 else 'class'}; 0 is a network that is not told the class"
        )


@rank_zero_first
def load_images(settings: DataSettings, *, test: bool = False) -> Images:
    """The training or test images of a data set, in its size and channels, and their classes.

    Raises:
        InputError: they are missing and cannot be fetched, or a folder has no test images.
    """
    root = Path(settings.root).expanduser()
    if settings.name != "folder":
        images, labels = _read_torchvision(settings.name, root, test)
        return fit(images, settings.image_size, settings.num_channels), labels
    if test and settings.test_root is None:
        raise InputError("data.test_root: missing; needed here: a folder of images like those of data.root")
    folder, key = (Path(settings.test_root).expanduser(), "data.test_root") if test else (root, "data.root")
    size = {"image_size": settings.image_size, "num_channels": settings.num_channels}
    return read_folder(folder, key, classes_of=root, **size)


def _read_torchvision(name: str, root: Path, test: bool) -> Images:
    """A data set of torchvision, in its own size and channels; downloaded if it is missing."""
    dataset_class, there = TORCHVISION[name], root.exists()
    try:
        try:
            dataset = dataset_class(root, train=not test, download=True)
        except (RuntimeError, AssertionError, ValueError, IndexError):
            # A kill in the midst of unpacking leaves a piece of a file, which torchvision takes for the whole.
            for packed in Path(root, name, "raw").glob("*-ubyte.gz"):
                packed.with_suffix("").unlink(missing_ok=True)
            dataset = dataset_class(root, train=not test, download=True)
    except (OSError, RuntimeError) as error:
        for folder in (root / name / "raw", root / name, *([] if there else [root])):  # which torchvision made
            remove_if_empty(folder)
        raise InputError(
            f"data.root: {root.absolute()}: {name} is not there and cannot be fetched: "
            f"{' '.join(str(error).split()):.200}; a relative data.root begins in the current folder"
        ) from error
    images = torch.as_tensor(dataset.data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return images, torch.as_tensor(dataset.targets)
