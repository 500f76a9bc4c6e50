"""The optimizers of a training: AdamW, and Muon where it is asked for."""

import torch
from torch import Tensor, nn

from utils.schema import Optimization
from utils.training.muon import Muon

DOORS = {"conv_in", "conv_out"}  # of our network and of diffusers': where pictures go in and out


def optimizers_of(network: nn.Module, settings: Optimization) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters, or, with `optimizer: muon`, for those that are no matrices, and Muon for these."""
    matrices = matrices_of(network) if settings.optimizer == "muon" else []
    taken = set(matrices)
    others = [parameter for parameter in network.parameters() if parameter not in taken]
    options = {"betas": (0.9, settings.adam_beta2), "weight_decay": settings.weight_decay, "fused": True}
    optimizers = [torch.optim.AdamW(others, **options)]  # whose decay is decoupled; without, Adam
    return [*optimizers, Muon(matrices, weight_decay=settings.weight_decay)] if matrices else optimizers


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters that it optimizes, in their order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def moments_of(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer keeps of a parameter, by name: tensors of the same shapes and types."""
    if isinstance(optimizer, Muon):
        return {"momentum_buffer": parameter}
    return {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}


def matrices_of(network: nn.Module) -> list[nn.Parameter]:
    """The weights that Muon is for: of convolutions and attention, but not where pictures go in and out.

    Nor of the linear layers through which noise level and class act on all others: there Adam does as well.
    """
    layers = {name: layer for name, layer in network.named_modules() if name not in DOORS}
    return [layer.weight for name, layer in layers.items() if isinstance(layer, nn.Conv2d) or _attends(name, layer)]


def _attends(name: str, layer: nn.Module) -> bool:
    """Whether it is a linear layer of attention, which diffusers' networks have: to_q, to_k, to_v, to_out.0."""
    return isinstance(layer, nn.Linear) and ".to_" in name
