"""Random numbers without a stored state: the seed of every draw is a function of the run's seed and an index.

A training step is seeded by its number, so a run that continues at step n draws what an undisturbed one draws
there; a sample by its index, so picture 17 is the same at any batch size.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def seed_of(*parts: object, index: int = 0) -> int:
    """A seed for PyTorch's generators, in [0, 2^32), made of what it is for. Consecutive indices never collide.

    PyTorch's generator on the CPU looks at 32 bits of its seed only.
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return (int.from_bytes(digest[:4]) + index) % 2**32


class SampleNoise:
    """Standard normal noise for the samples of the given indices, each from a generator of its own."""

    def __init__(self, seed: int, indices: Sequence[int], shape: tuple[int, int, int], device: torch.device):
        self.generators = [torch.Generator().manual_seed(seed_of("sample", seed, index=i)) for i in indices]
        self.shape, self.device = shape, device

    def __call__(self) -> Tensor:
        """The next noise, [B, C, H, W]; drawn on the CPU, so that it is the same for every device."""
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators]).to(self.device)
