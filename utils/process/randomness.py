"""Random numbers without a stored state: the seed of every draw is a function of the run's seed and an index.

A training example is seeded by its number in the run, so a run that continues draws what an undisturbed one draws
there, and each rank draws its share alone; a sample by its index, so picture 17 is the same at any batch size.
"""

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def seed_of(*parts: object, index: int = 0) -> int:
    """A seed for PyTorch's generators, in [0, 2^32), made of what it is for. Consecutive indices never collide.

    PyTorch's generator on the CPU looks at 32 bits of its seed only.
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return (int.from_bytes(digest[:4]) + index) % 2**32


def normal_noise(seeds: Iterable[int], x: Tensor) -> Tensor:
    """Standard normal noise in the shape and on the device of x [B, C, H, W], each image's from its own seed."""
    eps, generator = torch.empty(x.shape, device=x.device), torch.Generator(x.device)
    for image, seed in zip(eps, seeds, strict=True):
        image.normal_(generator=generator.manual_seed(seed))
    return eps


class SampleNoise:
    """Standard normal noise for the samples of the given indices, each from a generator of its own."""

    def __init__(self, seed: int, indices: Sequence[int], shape: tuple[int, int, int], device: torch.device):
        self.generators = [torch.Generator().manual_seed(seed_of("sample", seed, index=i)) for i in indices]
        self.shape, self.device = shape, device

    def __call__(self) -> Tensor:
        """The next noise, [B, C, H, W]; drawn on the CPU, so that it is the same for every device."""
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators]).to(self.device)
