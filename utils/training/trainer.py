"""One step of training: gradients of the global batch, optimizers, exponential moving average (EMA) of the weights."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from models.diffusion import Diffusion
from utils.checkpoints.compute import Compute
from utils.checkpoints.tensor_files import require_like
from utils.config.schema import Optimization
from utils.system import distributed
from utils.training.optimizers import moments_of, optimizers_of

LARGEST_HALF_LIFE = 0.1  # of the EMA, as a fraction of the steps so far


def ema_decay(decay: float, step: int) -> float:
    """The decay of the EMA at a step; the warm-up limits the half-life to a fraction of the steps so far.

    Otherwise the average stays close to the random initial weights for thousands of steps. (Karras et al. 2022: 5%.)
    """
    return min(decay, 0.5 ** (1 / (LARGEST_HALF_LIFE * (step + 1))))


class Trainer:
    """Trains a model with AdamW or Muon, and keeps the EMA of its weights; the same on every rank.

    for part in trainer.micro_batches():
        trainer.backward(losses of the examples in this slice of the global batch)
    trainer.update()
    """

    def __init__(
        self,
        model: Diffusion,
        settings: Optimization,
        compute: Compute,
        *,
        learning_rate: Callable[[int], float],
        seed_of: Callable[[str, int], int],
        warm_up_ema: bool = True,
    ):
        """Trains the model in place; `seed_of(purpose, step)` seeds its random numbers, so that no state is saved.

        The EMA of a short training that starts with good weights needs no warm-up.
        """
        self.settings, self.compute, self.learning_rate, self.seed_of = settings, compute, learning_rate, seed_of
        self.warm_up_ema = warm_up_ema
        self.network = compute.for_training(model).network  # the trained one; `model` computes the losses
        self.optimizers = optimizers_of(self.network, settings)
        self.ema = copy.deepcopy(self.network).eval().requires_grad_(False)
        self._averaged, self._current = (
            [weight.detach() for weight in network.parameters()] for network in (self.ema, self.network)
        )
        self.timeout = distributed.COMPILATION_TIMEOUT if compute.compiles else distributed.STEP_TIMEOUT
        parallel = distributed.data_parallel(self.network.train(), compute.device, self.timeout)
        self.model = replace(model, network=parallel)
        self.step = 0
        self._loss, self.skipped_in_a_row, self.most_skipped_in_a_row = torch.zeros(3, device=compute.device)
        self._sums, self._updates = torch.zeros(3, device=compute.device), 0

    def micro_batches(self) -> Iterator[slice]:
        """This rank's shard of the global batch, in `accumulation_steps` slices of the global batch."""
        slices = distributed.micro_batches(self.settings.batch_size, self.settings.accumulation_steps)
        for part in slices:
            # The dropout mask depends on an image's index in the global batch. (A tensor: a number would be a constant
            # of compiled code, which would be compiled again for each value.)
            start = torch.full((), part.start, dtype=torch.int32, device=self.compute.device)
            self.network.first_example = start
            torch.manual_seed(self.seed_of("dropout", self.step))
            # The backward pass of the last micro-batch averages the accumulated gradients over all ranks.
            with nullcontext() if part == slices[-1] else distributed.no_sync(self.model.network):
                yield part

    def backward(self, losses: Tensor) -> None:
        """Adds the gradient of a micro-batch's losses [b] to that of the mean over the global batch."""
        loss = losses.sum() / self.settings.batch_size
        # A loss that is not finite makes the whole gradient NaN: so all ranks, which know only their own losses and the
        # mean of the gradients, skip the same steps.
        nan_if_not_finite = torch.where(loss.detach().isfinite(), 1.0, math.nan)
        # The backward pass averages over the ranks, but the loss is already divided by the global batch size.
        (loss * distributed.world_size() * nan_if_not_finite).backward()
        self._loss = self._loss + loss.detach()

    def update(self) -> None:
        """Clips the gradients, then updates weights and EMA; skips the weights if the gradient is not finite."""
        parameters, clipping = list(self.network.parameters()), self.settings.gradient_clipping
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        skipped, on_cuda = (~norm.isfinite()).float(), self.compute.device.type == "cuda"
        if on_cuda or norm > clipping:  # on CUDA, scaling by 1 costs less than waiting for the norm
            clip_grads_with_norm_(parameters, clipping, norm)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = self.learning_rate(self.step)
            # As a GradScaler does: where it is 1, a step changes nothing. On CUDA, Python does not wait for it.
            optimizer.found_inf = skipped if on_cuda or skipped else None
            if not (self.compute.device.type == "mps" and skipped):  # Apple's fused Adam ignores found_inf
                optimizer.step()
            optimizer.zero_grad()
        decay = self.settings.ema_decay
        decay = ema_decay(decay, self.step) if self.warm_up_ema else decay
        torch._foreach_lerp_(self._averaged, self._current, 1 - decay)

        # Metrics: the sums of loss and norm over the steps that were not skipped, and their number.
        self._sums += torch.where(skipped > 0, 0, torch.stack([self._loss, norm, 1 - skipped]))
        self._loss = torch.zeros_like(self._loss)
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * skipped
        self.most_skipped_in_a_row = torch.maximum(self.most_skipped_in_a_row, self.skipped_in_a_row)
        self.step += 1
        self._updates += 1

    def take_metrics(self) -> tuple[float | None, float | None, int]:
        """Mean loss and mean gradient norm of the updates since the last call that were not skipped; how many were."""
        _, norm, taken = self._sums.tolist()
        loss, _, _ = distributed.all_reduce_sum(self._sums)  # each rank has the losses of its shard, and the same norm
        self._sums.zero_()
        skipped, self._updates = self._updates - int(taken), 0
        return (loss / taken, norm / taken, skipped) if taken else (None, None, skipped)

    def state_dict(self) -> dict[str, dict]:
        """Everything needed to resume, except the number of the step."""
        return {
            "network": dict(self.network.state_dict()),
            "ema": dict(self.ema.state_dict()),
            "optimizer": {
                index: dict(optimizer.state[parameter])
                for index, (parameter, optimizer) in enumerate(self._parameters())
                if parameter in optimizer.state
            },
        }

    def load_state_dict(self, state: dict[str, dict], step: int) -> None:
        """Loads a state that was saved after `step` steps. Raises ValueError if it does not fit the network."""
        expected = self.state_dict()
        if not isinstance(state, dict) or state.keys() != expected.keys():
            raise ValueError("not the state of a trainer")
        for name in ("network", "ema"):
            require_like(state[name], expected[name])
        parameters = dict(enumerate(self._parameters()))
        if not isinstance(state["optimizer"], dict) or state["optimizer"].keys() != parameters.keys():
            raise ValueError("not the state of these parameters")
        for index, (parameter, optimizer) in parameters.items():  # the fused Adam would not check
            require_like(state["optimizer"][index], moments_of(parameter, optimizer))
        self.network.load_state_dict(state["network"])
        self.ema.load_state_dict(state["ema"])
        for optimizer in self.optimizers:
            own = [state["optimizer"][index] for index, (_, owner) in parameters.items() if owner is optimizer]
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": dict(enumerate(own)), "param_groups": groups})
        self.step = step

    def _parameters(self) -> list[tuple[nn.Parameter, torch.optim.Optimizer]]:
        """The network's parameters in order, each with its optimizer."""
        owner = {
            parameter: one for one in self.optimizers for group in one.param_groups for parameter in group["params"]
        }
        return [(parameter, owner[parameter]) for parameter in self.network.parameters()]
