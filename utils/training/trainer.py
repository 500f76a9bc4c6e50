"""One step of training: from the global batch to the exponential moving average (EMA) of the weights."""

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from models.diffusion import Diffusion
from utils.compute import Compute
from utils.errors import InputError
from utils.files.torch_file import require_like
from utils.process import distributed
from utils.process.randomness import normal_noise, seed_of
from utils.schema import Optimization
from utils.training.optimizers import moments_of, optimizers_of, parameters_of

LARGEST_HALF_LIFE = 0.1  # of the EMA, as a share of the steps so far


def require_image_for_each_rank(settings: Optimization) -> None:
    """Refuses a global batch that is too small to be sharded.

    Raises:
        InputError: there would be processes without an image.
    """
    world_size, steps, section = distributed.world_size(), settings.accumulation_steps, type(settings).__name__.lower()
    if settings.batch_size < world_size * steps:
        raise InputError(
            f"{section}.batch_size: {settings.batch_size} is less than {world_size * steps}, an image for each of "
            f"{world_size} processes in each of {steps} accumulation_steps"
        )


def ema_decay(decay: float, step: int) -> float:
    """The decay of the EMA at a step: warmed up, so that its half-life is at most a share of the steps so far.

    Without a warm-up, the average would stay close to the random initial weights for thousands of steps. (Karras et
    al. 2022, "Elucidating the design space", do the same, with a share of 5%.)
    """
    return min(decay, 0.5 ** (1 / (LARGEST_HALF_LIFE * (step + 1))))


class Trainer:
    """Trains a model with AdamW or Muon, and keeps the EMA of its weights; the same on every rank.

    Attributes:
        model: the one to compute losses with: `network`, which in many processes averages its gradients over all ranks.
        network: the one that is trained, in place.
        ema: a copy of it with the averaged weights, in evaluation mode.
        optimizers: AdamW, and Muon for the matrices if it is to be used.
        step: how many steps have been taken.
        most_skipped_in_a_row: the longest series of steps that were skipped, since their gradients were not finite; a
            scalar on the device.
    """

    def __init__(
        self,
        model: Diffusion,
        settings: Optimization,
        compute: Compute,
        *,
        learning_rate: Callable[[int], float],
        seed: int,
        sampling_steps: int | None = None,
    ):
        """
        Args:
            model: the model to train, in place.
            compute: how the model computes.
            learning_rate: the learning rate at each step.
            seed, sampling_steps: of the configuration, and what the model is distilled for, None for an undistilled
                model: random numbers depend on both.
        """
        self.settings, self.compute, self.learning_rate = settings, compute, learning_rate
        self.seed, self.sampling_steps = seed, sampling_steps
        self.network = compute.for_training(model).network
        self.optimizers = optimizers_of(self.network, settings)
        self.ema = copy.deepcopy(self.network).eval().requires_grad_(False)
        self._averaged, self._current = (
            [weight.detach() for weight in network.parameters()] for network in (self.ema, self.network)
        )
        self.timeout = distributed.COMPILATION_TIMEOUT if compute.compiles else distributed.STEP_TIMEOUT
        parallel = distributed.data_parallel(self.network.train(), compute.device, self.timeout)
        self.model = replace(model, network=parallel)
        self.step = 0
        self.skipped_in_a_row, self.most_skipped_in_a_row = (torch.zeros((), device=compute.device) for _ in range(2))
        self._sums = torch.zeros(3, device=compute.device)

    def seed_for(self, what: str) -> None:
        """Seeds PyTorch: all that is drawn in a step depends on its number alone, so no random state need be saved."""
        torch.manual_seed(seed_of(what, self.seed, self.sampling_steps, index=self.step))

    def noise(self, examples: range, x: Tensor) -> Tensor:
        """Standard normal noise in the shape of x [b, C, H, W], for the training examples of these numbers."""
        seeds = [seed_of("noise", self.seed, self.sampling_steps, index=example) for example in examples]
        return normal_noise(seeds, x)

    def take_step(self, losses_of: Callable[..., Tensor], *numbers: Tensor | None) -> None:
        """One step of training on the global batch, with numbers [B] for its examples, such as their times.

        `losses_of(examples, *numbers)` returns the loss of each of a micro-batch's examples, [b], which are numbered
        through the whole run; so a rank loads, and draws noise for, what it computes with, and nothing else. The step
        goes down the gradient of the mean over the global batch. Nothing in it waits for the device.
        """
        # Accumulate gradients over this rank's shard of the global batch, one micro-batch after the other; in the
        # backward pass of the last, they are averaged over all ranks.
        loss = torch.zeros((), device=self.compute.device)
        batch_size, accumulation_steps = self.settings.batch_size, self.settings.accumulation_steps
        examples = range(self.step * batch_size, (self.step + 1) * batch_size)
        micro_batches = distributed.micro_batches(batch_size, accumulation_steps)
        for micro_batch in micro_batches:
            # The dropout mask depends on an image's index in the global batch. (A tensor: compiled code would be
            # compiled anew for each value of a number.)
            start = torch.full((), micro_batch.start, dtype=torch.int32, device=self.compute.device)
            self.network.first_example = start
            self.seed_for("dropout")
            is_last = micro_batch == micro_batches[-1]
            with nullcontext() if is_last else distributed.no_sync(self.model.network):
                own = (None if number is None else number[micro_batch] for number in numbers)
                share = losses_of(examples[micro_batch], *own).sum() / batch_size
                # A loss that is not finite makes the whole gradient NaN, whatever its own was: so all ranks, which see
                # their own losses and the mean of the gradients, skip the same steps.
                nan_if_not_finite = torch.where(share.detach().isfinite(), 1.0, math.nan)
                # The backward pass takes the mean over the ranks, where the share is already one of the global mean.
                (share * distributed.world_size() * nan_if_not_finite).backward()
            loss += share.detach()

        # Update weights, unless the gradient is not finite.
        norm = clip_grad_norm_(self.network.parameters(), self.settings.gradient_clipping)
        skipped = (~norm.isfinite()).float()
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = self.learning_rate(self.step)
            optimizer.found_inf = skipped  # as a GradScaler does: where it is 1, nothing is changed
            if not (self.compute.device.type == "mps" and skipped):  # Apple's fused Adam does not look at found_inf
                optimizer.step()
            optimizer.zero_grad()

        # Update EMA.
        torch._foreach_lerp_(self._averaged, self._current, 1 - ema_decay(self.settings.ema_decay, self.step))

        # Metrics: the sums of loss and norm over the steps that were not skipped, and their number.
        self._sums += torch.where(skipped > 0, 0, torch.stack([loss, norm, 1 - skipped]))
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * skipped
        self.most_skipped_in_a_row = torch.maximum(self.most_skipped_in_a_row, self.skipped_in_a_row)
        self.step += 1

    def take_metrics(self) -> tuple[float | None, float | None, int]:
        """Mean loss and mean gradient norm over the steps since the last call that were not skipped; their number."""
        _, norm, taken = self._sums.tolist()
        loss, _, _ = distributed.all_reduce_sum(self._sums)  # each rank has the losses of its shard, and the same norm
        self._sums.zero_()
        return (loss / taken, norm / taken, int(taken)) if taken else (None, None, 0)

    def state_dict(self) -> dict[str, dict]:
        """Everything that continuing needs, but the number of the step."""
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
        """Loads a state that was saved after `step` steps.

        Raises:
            ValueError: it is not the state of such a network, or not whole.
        """
        for name, expected in self.state_dict().items():
            if name != "optimizer":
                require_like(state[name], expected)
        parameters = dict(enumerate(self._parameters()))
        if not isinstance(state["optimizer"], dict) or state["optimizer"].keys() != parameters.keys():
            raise ValueError("not the state of these parameters")
        for index, (parameter, optimizer) in parameters.items():  # the fused Adam would not look
            require_like(state["optimizer"][index], moments_of(parameter, optimizer))
        self.network.load_state_dict(state["network"])
        self.ema.load_state_dict(state["ema"])
        for optimizer in self.optimizers:
            own = [state["optimizer"][index] for index, (_, its) in parameters.items() if its is optimizer]
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": dict(enumerate(own)), "param_groups": groups})
        self.step = step

    def _parameters(self) -> list[tuple[nn.Parameter, torch.optim.Optimizer]]:
        """The network's parameters in their order, each with the optimizer that it belongs to."""
        owner = {parameter: optimizer for optimizer in self.optimizers for parameter in parameters_of(optimizer)}
        return [(parameter, owner[parameter]) for parameter in self.network.parameters()]
