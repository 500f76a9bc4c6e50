"""The training images in batches, in an order that is shuffled in each epoch."""

from functools import lru_cache

import torch
from torch import Tensor

from utils.checkpoints.checkpoint import TrainedOn
from utils.data.images import ImageSet, to_unit_range
from utils.system.seeds import seed_of

MOST_CLASS_NAMES, MOST_LETTERS = 10_000, 500_000  # in a checkpoint; a data set may have a million classes


class ImageData:
    """The training images, with classes for a class-conditional model, in an order that is shuffled in each epoch.

    Attributes:
        description: what checkpoints keep about them.
    """

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
        """
        Args:
            saturation_margin: flat black and white, the bytes 0 and 255, are trained this far outside [-1, 1]. Samples
                are clipped, so a small error there is invisible; around -1 itself, half of the errors are grey.
        """
        class_names = data.class_names if with_classes and names_are_few(data.class_names) else []
        self.description = TrainedOn(data_hash=data.hash, class_names=class_names)
        # Mapped images stay on the disk; others move to the device as a whole, so that no step waits for them.
        self.images, self.release = data.images if data.release else data.images.to(device), data.release
        self.labels = data.labels.to(self.images.device) if with_classes else None
        self.seed, self.random_flip, self.device = seed, random_flip, device
        self.saturation_margin = saturation_margin

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, examples: range, shuffle: int = 0) -> tuple[Tensor, Tensor | None]:
        """The training examples with these numbers, which count through all epochs; a function of the numbers alone.

        Each `shuffle` is a different sequence of orders, so that students of few steps do not all see the same images.

        Returns:
            Images [B, C, H, W] in [-1, 1], except for the margin, and classes [B] or None.
        """
        pieces = []
        for epoch, begin, end in _epochs(examples.start, len(examples), len(self)):
            order, flips = _shuffled(len(self), self.seed, shuffle, epoch)
            pieces.append((order[begin:end], flips[begin:end]))
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


def names_are_few(names: list[str]) -> bool:
    """Whether a checkpoint keeps these class names."""
    return len(names) <= MOST_CLASS_NAMES and sum(map(len, names)) <= MOST_LETTERS


def _epochs(start: int, count: int, length: int) -> list[tuple[int, int, int]]:
    """(epoch, begin, end) of each piece of `count` examples from number `start` on, in epochs of this length."""
    pieces = []
    while count:
        epoch, begin = divmod(start, length)
        end = min(begin + count, length)
        pieces.append((epoch, begin, end))
        start, count = start + end - begin, count - (end - begin)
    return pieces


@lru_cache(maxsize=2)
def _shuffled(length: int, seed: int, shuffle: int, epoch: int) -> tuple[Tensor, Tensor]:
    """The order of the images in an epoch, and for each position whether a random flip mirrors its image."""
    generator = torch.Generator().manual_seed(seed_of("epoch", seed, shuffle, index=epoch))
    return torch.randperm(length, generator=generator), torch.rand(length, generator=generator) < 0.5
