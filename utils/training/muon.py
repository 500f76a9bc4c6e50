"""Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon): momentum in which all directions count alike."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# s -> s (3.4445 - 4.775 s^2 + 2.0315 s^4), five times over, brings singular values between 0.01 and 1 to about 1: to
# between 0.7 and 1.2, which serves as well (Jordan's coefficients).
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
MOMENTUM = 0.95
RMS = 0.2  # of what is added to a weight, at a learning rate of 1: about as much as Adam adds (Liu et al. 2025, 2.2)
SMALLEST_NORM = 1e-30  # of a matrix squared: what is no gradient at all stays so


class Muon(torch.optim.Optimizer):
    """Goes by the momentum of each weight, as a matrix whose singular values are all made about 1.

    A gradient moves a matrix mostly in a few directions; so it is moved in all of them alike, and learns as much in
    fewer steps. PyTorch's own, torch.optim.Muon, takes no convolutions, and each matrix alone.

    Attributes:
        found_inf: a scalar tensor, or None; where it is 1, a step changes nothing, as with PyTorch's fused optimizers.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, weight_decay: float):
        """
        Args:
            parameters: weights of convolutions and linear layers, [out, in, ...].
            weight_decay: decoupled: at learning rate r, a step takes the share r * weight_decay off each weight.
        """
        super().__init__(parameters, {"lr": 1e-3, "weight_decay": weight_decay})
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self) -> None:
        """One step down the gradients, of all parameters."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            self._step(weights, group["lr"], group["weight_decay"])

    def _step(self, weights: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        gradients = [weight.grad for weight in weights]
        buffers = [self._buffer(weight) for weight in weights]
        # Where it is to be skipped, 0 is added to the momentum, and to the weights, but never NaN.
        taken = torch.ones((), device=weights[0].device) if self.found_inf is None else 1 - self.found_inf
        gradients = [torch.where(taken > 0, gradient, 0) for gradient in gradients]
        torch._foreach_mul_(buffers, 1 - taken * (1 - MOMENTUM))
        torch._foreach_add_(buffers, torch._foreach_mul(gradients, 1 - MOMENTUM))
        ahead = torch._foreach_lerp(gradients, buffers, MOMENTUM)  # Nesterov's momentum
        directions = orthogonalized([gradient.flatten(1) for gradient in ahead])
        torch._foreach_mul_(weights, 1 - taken * lr * weight_decay)
        for weight, direction in zip(weights, directions, strict=True):
            size = RMS * max(direction.shape) ** 0.5
            weight.sub_(direction.reshape(weight.shape) * (taken * lr * size))

    def _buffer(self, weight: nn.Parameter) -> Tensor:
        state: dict[str, Any] = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        return state["momentum_buffer"]


def orthogonalized(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Matrices M [rows, columns], as P M with the same singular vectors, and values about 1: Newton's iteration.

    It is done on M M^T, which is square and small, and for all of one size at once: A = M M^T becomes Q A Q, and P
    becomes Q P, with Q = c_0 + c_1 A + c_2 A^2.
    """
    wide = [matrix if len(matrix) <= matrix.shape[1] else matrix.mT for matrix in matrices]
    same_size: dict[int, list[int]] = defaultdict(list)
    for index, matrix in enumerate(wide):
        same_size[len(matrix)].append(index)
    results = list(wide)
    for rows, indices in same_size.items():
        a = torch.stack([wide[index] @ wide[index].mT for index in indices])
        norm = torch.linalg.matrix_norm(a, keepdim=True).clamp(min=SMALLEST_NORM)  # at least the largest value squared
        a, one = a / norm, torch.eye(rows, device=a.device)
        p = one * norm.rsqrt()
        for _ in range(ITERATIONS):
            q = torch.baddbmm(a, a, a, beta=COEFFICIENTS[1], alpha=COEFFICIENTS[2]) + COEFFICIENTS[0] * one
            a, p = q @ a @ q, q @ p
        for index, factor in zip(indices, p, strict=True):
            results[index] = factor @ wide[index]
    return [r if r.shape == m.shape else r.mT for r, m in zip(results, matrices, strict=True)]
