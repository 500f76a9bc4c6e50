"""Images and their classes: a set (`ImageSet`), and the training images in shuffled batches (`ImageData`)."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from utils.checkpoints.checkpoint import TrainedOn
from utils.system.seeds import seed_of

PIECE = 2**26  # elements to hash at once
MOST_CLASS_NAMES, MOST_LETTERS = 10_000, 500_000  # in a checkpoint; a data set may have a million classes


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 images as float32 in [-1, 1], as the models need them."""
    return images.float() / 127.5 - 1


def to_bytes(x: Tensor) -> Tensor:
    """Images in [-1, 1] (values outside are clipped) as uint8, as in a PNG."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte()


def content_hash(*tensors: Tensor, release: Callable[[], object] = lambda: None) -> str:
    """The first twelve hexadecimal digits of a SHA-256 of the tensors (on the CPU); `release` as in `ImageSet`."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        for piece in tensor.flatten().split(PIECE):
            digest.update(piece.numpy().data)
            release()
    return digest.hexdigest()[:12]


def fit(images: Tensor, image_size: int, num_channels: int) -> Tensor:
    """Images [N, C, H, W] in uint8, cropped to the central square, resized, and converted to grey or colour."""
    side = min(images.shape[-2:])
    images = transforms.center_crop(images, [side, side])
    if side != image_size:
        images = transforms.resize(images, [image_size, image_size], antialias=True)
    if num_channels == 3 and images.shape[1] == 1:
        images = images.repeat(1, 3, 1, 1)
    elif num_channels == 1 and images.shape[1] == 3:
        images = transforms.rgb_to_grayscale(images)
    return images.contiguous()


@dataclass(frozen=True)
class ImageSet:
    """Images in uint8 [N, C, H, W], on the CPU, their classes [N], and the names of the classes."""

    images: Tensor  # in memory, or memory-mapped and read on access
    labels: Tensor  # all 0 without classes
    class_names: list[str]  # empty without classes
    hash: str  # of images and labels: see `content_hash`
    release: Callable[[], object] | None = None  # removes the pages of mapped images from this process's memory


class ImageData:
    """The training images, with classes for a class-conditional model, in an order that is shuffled in each epoch."""

    def __init__(
        self,
        data: ImageSet,
        *,
        with_classes: bool,
        seed: int,
        random_flip: bool,
        saturation_margin: float = 0.0,
        device: torch.device = torch.device("cpu"),  # noqa: B008 (a constant)
    ):
        """Flat black and white, the bytes 0 and 255, are trained `saturation_margin` outside [-1, 1].

        Samples are clipped, so a small error there is invisible; around -1 itself, half of the errors are grey.
        """
        few = len(data.class_names) <= MOST_CLASS_NAMES and sum(map(len, data.class_names)) <= MOST_LETTERS
        class_names = data.class_names if with_classes and few else []
        self.description = TrainedOn(data_hash=data.hash, class_names=class_names)  # for checkpoints
        # Mapped images stay on the disk; others move to the device as a whole, so that no step waits for them.
        self.images, self.release = data.images if data.release else data.images.to(device), data.release
        self.labels = data.labels.to(self.images.device) if with_classes else None
        self.seed, self.random_flip, self.device = seed, random_flip, device
        self.saturation_margin = saturation_margin

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, examples: range, order: int = 0) -> tuple[Tensor, Tensor | None]:
        """The training examples with these numbers, which count through all epochs; a function of the numbers alone.

        Another `order` shuffles them differently, so that students of few steps do not all see the same images.
        Returns images [B, C, H, W] in [-1, 1], except for the margin, and classes [B] or None.
        """
        pieces, start = [], examples.start
        while start < examples.stop:
            epoch, begin = divmod(start, len(self))
            end = min(begin + examples.stop - start, len(self))
            indices, flips = _shuffled(len(self), self.seed, order, epoch)
            pieces.append((indices[begin:end], flips[begin:end]))
            start += end - begin
        indices, flip = (torch.cat(part) for part in zip(*pieces, strict=True))
        indices = self._move(indices, self.images.device)
        x = to_unit_range(self._move(self.images[indices], self.device))
        if self.release:
            self.release()
        if self.saturation_margin:
            x = torch.where(x.abs() == 1, x * (1 + self.saturation_margin), x)
        if self.random_flip:
            x = torch.where(self._move(flip, self.device)[:, None, None, None], x.flip(-1), x)
        return x, None if self.labels is None else self._move(self.labels[indices], self.device)

    @staticmethod
    def _move(tensor: Tensor, device: torch.device) -> Tensor:
        """The tensor on a device, without waiting for a GPU."""
        if device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(device, non_blocking=device.type == "cuda")


@lru_cache(maxsize=2)
def _shuffled(length: int, seed: int, order: int, epoch: int) -> tuple[Tensor, Tensor]:
    """The order of the images in an epoch, and for each position whether a random flip mirrors its image."""
    generator = torch.Generator().manual_seed(seed_of("epoch", seed, order, index=epoch))
    return torch.randperm(length, generator=generator), torch.rand(length, generator=generator) < 0.5
