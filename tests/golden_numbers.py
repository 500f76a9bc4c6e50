"""How the golden numbers are compared: see golden/README.md."""

import torch
from torch import Tensor

from models.diffusion import Diffusion
from models.noise_schedule import CosineSchedule

DTYPES = [torch.float64, torch.float32]


def stand_in(golden: dict, name: str, prediction: str) -> Diffusion:
    """One of the two stand-in networks of the golden file as a model."""
    p0, p1, p2 = golden["networks"][name]

    def network(z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.tanh(p0 * z + p1 * logsnr[:, None, None, None]) + p2 * z

    return Diffusion(network, CosineSchedule(), prediction)


def tensor(values: list, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).to(dtype)


def assert_golden(actual: Tensor, expected: list, *, cancellation: bool = False) -> None:
    """float64: 1e-9 of each number, or 1e-6 where large ones cancel; float32: 1e-3 of the largest."""
    expected = tensor(expected)
    if actual.dtype == torch.float64:
        torch.testing.assert_close(actual, expected, rtol=1e-6 if cancellation else 1e-9, atol=1e-12)
    else:
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
