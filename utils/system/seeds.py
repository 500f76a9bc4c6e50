"""Random numbers without stored state: every seed is a function of the run's seed and an index.

A training example is seeded by its number in the run. So a resumed run draws what an uninterrupted one would draw, and
each rank draws only for its own shard. A sample is seeded by its index, so sample 17 is the same at any batch size.
"""

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def seed_of(*parts: object, index: int = 0) -> int:
    """A seed in [0, 2^32), all that PyTorch's CPU generator uses, for a purpose; consecutive indices never collide."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return (int.from_bytes(digest[:4]) + index) % 2**32


def normal_noise(seeds: Iterable[int], x: Tensor) -> Tensor:
    """Standard normal noise in the shape and on the device of x [B, C, H, W], each image's from its own seed."""
    eps, generator = torch.empty(x.shape, device=x.device), torch.Generator(x.device)
    for image, seed in zip(eps, seeds, strict=True):
        image.normal_(generator=generator.manual_seed(seed))
    return eps


class SampleNoise:
    """Standard normal noise for the samples of the given indices, each from its own generator."""

    def __init__(self, seed: int, indices: Sequence[int], shape: tuple[int, int, int], device: torch.device):
        self.generators = [torch.Generator().manual_seed(seed_of("sample", seed, index=i)) for i in indices]
        self.shape, self.device = shape, device

    def __call__(self) -> Tensor:
        """The next noise, [B, C, H, W]; drawn on the CPU, so it is the same on every device."""
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators]).to(self.device)
