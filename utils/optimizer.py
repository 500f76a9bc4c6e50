"""One step of training: the gradient, Adam, and the moving average of the weights."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from utils.config import Optimization
from utils.torch_file import require_like


class Optimizer:
    """Adam for a network, in place, and the network's moving average, `ema`."""

    def __init__(self, network: nn.Module, settings: Optimization):
        self.network, self.settings = network, settings
        self.adam = torch.optim.Adam(network.parameters(), betas=(0.9, settings.adam_beta2), fused=True)
        self.averaged = AveragedModel(network, multi_avg_fn=self._average)
        self.averaged.eval()
        self.step = 0
        device = next(network.parameters()).device
        self.skipped_in_a_row, self.most_skipped_in_a_row = (torch.zeros((), device=device) for _ in range(2))

    @property
    def ema(self) -> nn.Module:
        """The network with the averaged weights, in evaluation mode."""
        return self.averaged.module

    def _average(self, averaged: list[Tensor], current: list[Tensor], _: Tensor) -> None:
        # Warmed up: without it, the average is the first, random weights for thousands of steps.
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        get_ema_multi_avg_fn(decay)(averaged, current, None)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of the loss to what there is.

        A loss that is not finite makes all of the gradient NaN, whatever its own was: so each of several processes,
        which see their own losses and the same sum of gradients, skips the same steps.
        """
        (loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)).backward()

    def update(self, learning_rate: float) -> Tensor:
        """One step down the gradient, which is then forgotten; its norm is returned, before it was clipped.

        Where the gradient is not finite, the weights stay as they are, and the norm is NaN. All of it happens on the
        device: nobody waits for it.
        """
        norm = clip_grad_norm_(self.network.parameters(), self.settings.gradient_clipping)
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        not_finite = (~norm.isfinite()).float()
        self.adam.found_inf = not_finite  # where it is 1, the fused Adam changes nothing
        self.adam.step()
        self.adam.zero_grad()
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * not_finite
        self.most_skipped_in_a_row = torch.maximum(self.most_skipped_in_a_row, self.skipped_in_a_row)
        self.averaged.update_parameters(self.network)
        self.step += 1
        return norm.masked_fill(not_finite > 0, math.nan)

    def state_dict(self) -> dict[str, dict]:
        """Everything that continuing needs, but the number of the step."""
        return {
            "network": dict(self.network.state_dict()),
            "ema": dict(self.averaged.state_dict()),
            "optimizer": self.adam.state_dict()["state"],
        }

    def load_state_dict(self, state: dict[str, dict], step: int) -> None:
        """Takes over a state after so many steps.

        Raises:
            ValueError: it is not the state of such a network, or not whole.
        """
        for name, expected in self.state_dict().items():
            if name != "optimizer":
                require_like(state[name], expected)
        parameters = dict(enumerate(self.network.parameters()))
        if not isinstance(state["optimizer"], dict) or state["optimizer"].keys() != parameters.keys():
            raise ValueError("not the state of these parameters")
        for index, parameter in parameters.items():  # the fused Adam would not look
            moments = {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
            require_like(state["optimizer"][index], moments)
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["ema"])
        self.adam.load_state_dict({"state": state["optimizer"], "param_groups": self.adam.state_dict()["param_groups"]})
        self.step = step
