"""A set of images and their classes, wherever it comes from."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

PIECE = 2**26  # elements that are hashed at once


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 images as the models see them, in [-1, 1]."""
    return images.float() / 127.5 - 1


def content_hash(*tensors: Tensor, let_go: Callable[[], object] = lambda: None) -> str:
    """The first twelve hexadecimal digits of a SHA-256 of the tensors (on the CPU).

    `let_go()` is called after each piece that has been read, see `ImageSet`.
    """
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        for piece in tensor.flatten().split(PIECE):
            digest.update(piece.numpy().data)
            let_go()
    return digest.hexdigest()[:12]


def fit(images: Tensor, image_size: int, num_channels: int) -> Tensor:
    """Images [N, C, H, W] in uint8, cut to their middle square, resized, and converted to grey or colour."""
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
        images: in memory, or a map of a file, of which what is looked at is read.
        labels: all 0 where there are no classes.
        class_names: empty where there are none.
        hash: of the images and labels: see `content_hash`.
        let_go: where the images are mapped, takes what has been read out of this process's memory again.
    """

    images: Tensor
    labels: Tensor
    class_names: list[str]
    hash: str
    let_go: Callable[[], object] | None = None

    @classmethod
    def in_memory(cls, images: Tensor, labels: Tensor, class_names: list[str]) -> "ImageSet":
        """A set whose hash is computed now."""
        return cls(images, labels, class_names, content_hash(images, labels))

    @property
    def num_classes(self) -> int:
        """At least 1."""
        return max(1, len(self.class_names))
