"""The training and test images: a whole data set in memory as uint8, so that no step waits for it."""

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torchvision import datasets

from utils.checkpoints import TrainedOn
from utils.config import Config
from utils.config import Data as DataSettings
from utils.errors import InputError
from utils.files import remove_if_empty
from utils.folder import fit, read_folder
from utils.process.distributed import rank_zero_first
from utils.process.randomness import seed_of

MOST_CLASS_NAMES = 10_000  # that checkpoints keep: some sets have a class for each of a million people
TORCHVISION = {"MNIST": datasets.MNIST, "FashionMNIST": datasets.FashionMNIST, "CIFAR10": datasets.CIFAR10}


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


@dataclass(frozen=True)
class ImageSet:
    """Images in uint8 [N, C, H, W], their classes [N], all 0 where there are none, and the names of the classes."""

    images: Tensor
    labels: Tensor
    class_names: list[str]

    @cached_property
    def hash(self) -> str:
        """What images and classes are known by: see `content_hash`."""
        return content_hash(self.images, self.labels)

    @property
    def num_classes(self) -> int:
        """At least 1."""
        return int(self.labels.max()) + 1


class ImageData:
    """The training images, and their classes if the model is told them, in an order that is shuffled each epoch.

    Attributes:
        description: what checkpoints keep of them.
    """

    def __init__(
        self,
        data: ImageSet,
        *,
        with_classes: bool,
        seed: int,
        random_flip: bool,
        device: torch.device = torch.device("cpu"),  # noqa: B008 (a constant)
    ):
        """The images and classes lie on the CPU, and are moved to the device."""
        class_names = data.class_names if with_classes and len(data.class_names) <= MOST_CLASS_NAMES else []
        self.description = TrainedOn(data_hash=data.hash, class_names=class_names)
        self.images, self.labels = data.images.to(device), data.labels.to(device) if with_classes else None
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
    data = load_images(settings)
    require_num_classes(data, config)
    with_classes = config.network.num_classes > 0
    return ImageData(data, with_classes=with_classes, seed=config.seed, random_flip=settings.random_flip, device=device)


def require_num_classes(data: ImageSet, config: Config) -> None:
    """Refuses a network with another number of classes than the data, unless it has none.

    Raises:
        InputError: naming both numbers.
    """
    num_classes, found = config.network.num_classes, data.num_classes
    if num_classes and found != num_classes:
        raise InputError(
            f"network.num_classes: {num_classes}, but {config.data.name} has {found} "
            f"{'classes' if found > 1 else 'class'}; 0 is a network that is not told the class"
        )


@rank_zero_first
def load_images(settings: DataSettings, *, test: bool = False) -> ImageSet:
    """The training or test images of a data set, in its size and channels, and their classes.

    Raises:
        InputError: they are missing and cannot be fetched, or a folder has no test images.
    """
    root = Path(settings.root).expanduser()
    if settings.name != "folder":
        images, labels, class_names = _read_torchvision(settings.name, root, test)
        return ImageSet(fit(images, settings.image_size, settings.num_channels), labels, class_names)
    if test and settings.test_root is None:
        raise InputError("data.test_root: missing; needed here: a folder of images like those of data.root")
    folder, key = (Path(settings.test_root).expanduser(), "data.test_root") if test else (root, "data.root")
    size = {"image_size": settings.image_size, "num_channels": settings.num_channels}
    return ImageSet(*read_folder(folder, key, classes_of=root, **size))


def _read_torchvision(name: str, root: Path, test: bool) -> tuple[Tensor, Tensor, list[str]]:
    """The parts of an `ImageSet`, in torchvision's own size and channels; downloaded if they are missing."""
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
    class_names = [name.partition(" - ")[0] for name in dataset.classes]  # MNIST's are "0 - zero", ...
    return images, torch.as_tensor(dataset.targets), class_names
