"""The optimizers: AdamW, and Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon) for matrices if wanted."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from models.network import Network
from utils.config.schema import Optimization

# s -> s (3.4445 - 4.775 s^2 + 2.0315 s^4), applied five times, maps singular values between 0.01 and 1 to values
# between 0.7 and 1.2, which serves as well as exactly 1 (Jordan's coefficients).
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
MOMENTUM = 0.95
RMS = 0.2  # of an update of a weight at learning rate 1: about that of Adam (Liu et al. 2025, 2.2)
SMALLEST_TRACE = 1e-30  # of a squared matrix; a zero gradient stays zero


def optimizers_of(network: Network, settings: Optimization) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters; with `optimizer: muon`, Muon for those of `muon_parameters`, AdamW for the others."""
    matrices = network.muon_parameters() if settings.optimizer == "muon" else []
    taken = set(matrices)
    others = [parameter for parameter in network.parameters() if parameter not in taken]
    options = {"betas": (0.9, settings.adam_beta2), "weight_decay": settings.weight_decay, "fused": True}
    optimizers = [torch.optim.AdamW(others, **options)]
    return [*optimizers, Muon(matrices, weight_decay=settings.weight_decay)] if matrices else optimizers


def moments_of(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state that an optimizer keeps for a parameter, by name: tensors of the same shapes and dtypes."""
    if isinstance(optimizer, Muon):
        return {"momentum_buffer": parameter}
    return {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}


class Muon(torch.optim.Optimizer):
    """Updates each weight, as a matrix, by its momentum with all singular values set to about 1.

    A gradient changes a matrix mostly in a few directions. Muon changes it in all directions equally, and so learns as
    much in fewer steps. PyTorch's own, torch.optim.Muon, does not support convolutions.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, weight_decay: float):
        """With decoupled weight decay; the parameters are weights of convolutions and linear layers, [out, in, ...]."""
        super().__init__(parameters, {"lr": 1e-3, "weight_decay": weight_decay})
        for weight in self.param_groups[0]["params"]:
            self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        self.found_inf: Tensor | None = None  # where this scalar is 1, a step changes nothing, as in fused optimizers

    @torch.no_grad()
    def step(self) -> None:
        """One step down the gradients of all parameters."""
        group = self.param_groups[0]
        weights, lr = [weight for weight in group["params"] if weight.grad is not None], group["lr"]
        gradients = [weight.grad for weight in weights]
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        taken = 1.0
        if self.found_inf is not None:  # a skipped step adds 0, and never NaN, to the momentum and the weights
            taken = 1 - self.found_inf
            gradients = [torch.where(taken > 0, gradient, 0) for gradient in gradients]
        torch._foreach_mul_(buffers, 1 - taken * (1 - MOMENTUM))
        torch._foreach_add_(buffers, gradients, alpha=1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, buffers, MOMENTUM)  # Nesterov momentum
        directions = orthogonalized([gradient.flatten(1) for gradient in ahead])
        torch._foreach_mul_(directions, [taken * lr * RMS * max(direction.shape) ** 0.5 for direction in directions])
        torch._foreach_mul_(weights, 1 - taken * lr * group["weight_decay"])
        torch._foreach_sub_(weights, [d.reshape(weight.shape) for d, weight in zip(directions, weights, strict=True)])


def orthogonalized(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Matrices M [rows, columns] as P M with the same singular vectors and singular values of about 1.

    The Newton-Schulz iteration on A = M M^T, which is square and small, for all matrices of one size at once: A becomes
    Q A Q, and P becomes Q P, with Q = c_0 + c_1 A + c_2 A^2.
    """
    wide = [matrix if len(matrix) <= matrix.shape[1] else matrix.mT for matrix in matrices]
    same_size: dict[int, list[int]] = defaultdict(list)
    for index, matrix in enumerate(wide):
        same_size[len(matrix)].append(index)
    results = list(wide)
    for rows, indices in same_size.items():
        a = torch.stack([wide[index] @ wide[index].mT for index in indices])
        trace = a.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None].clamp(min=SMALLEST_TRACE)
        a = a / trace  # since the norm squares again, and tiny numbers would underflow
        # At least the largest singular value. As the trace is 1, it is at least 1 / sqrt(rows), unless A is 0.
        norm = torch.linalg.matrix_norm(a, keepdim=True).clamp(min=1 / rows)
        a, one = a / norm, torch.eye(rows, device=a.device)
        p = one * (norm * trace).rsqrt()
        for _ in range(ITERATIONS):
            q = torch.baddbmm(a, a, a, beta=COEFFICIENTS[1], alpha=COEFFICIENTS[2]) + COEFFICIENTS[0] * one
            a, p = q @ a @ q, q @ p
        for index, factor in zip(indices, p, strict=True):
            results[index] = factor @ wide[index]
    return [r if r.shape == m.shape else r.mT for r, m in zip(results, matrices, strict=True)]
