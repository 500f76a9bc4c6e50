"""A set of images and their classes, wherever it comes from."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

PIECE = 2**26  # elements to hash at once


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 images as float32 in [-1, 1], as the models need them."""
    return images.float() / 127.5 - 1


def content_hash(*tensors: Tensor, release: Callable[[], object] = lambda: None) -> str:
    """The first twelve hexadecimal digits of a SHA-256 of the tensors (on the CPU).

    `release()` is called after reading each piece, see `ImageSet`.
    """
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
    """Images in uint8 [N, C, H, W], on the CPU, their classes [N], and the names of the classes.

    Attributes:
        images: in memory, or memory-mapped and read on access.
        labels: all 0 without classes.
        class_names: empty without classes.
        hash: of images and labels: see `content_hash`.
        release: if the images are memory-mapped, removes the pages that were read from this process's memory.
    """

    images: Tensor
    labels: Tensor
    class_names: list[str]
    hash: str
    release: Callable[[], object] | None = None

    @classmethod
    def in_memory(cls, images: Tensor, labels: Tensor, class_names: list[str]) -> "ImageSet":
        """A set in memory, with its hash."""
        return cls(images, labels, class_names, content_hash(images, labels))

    @property
    def num_classes(self) -> int:
        """At least 1."""
        return max(1, len(self.class_names))
