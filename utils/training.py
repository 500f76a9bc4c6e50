"""What stands around the loss that a script computes: the optimizer, the log, pictures and checkpoints."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from models.diffusion import Diffusion
from utils import distributed
from utils.checkpoints import save_checkpoint
from utils.compute import Compute
from utils.config import Config, Optimization
from utils.distributed import by_first
from utils.errors import InputError
from utils.files import append_line, locked, write_atomically
from utils.interruption import Interrupted, SignalWatch
from utils.optimizer import Optimizer
from utils.pictures import grid, save_picture
from utils.randomness import seed_of
from utils.run import STATE_VERSION, Run, exists
from utils.sampling import draw_samples
from utils.timing import Stopwatch, read_metrics

MOST_SKIPPED_IN_A_ROW = 10


def require_enough_images(settings: Optimization) -> None:
    """Refuses a batch that cannot be shared out.

    Raises:
        InputError: there would be processes without an image.
    """
    processes, pieces, section = distributed.count(), settings.accumulation_steps, type(settings).__name__.lower()
    if settings.batch_size < processes * pieces:
        raise InputError(
            f"{section}.batch_size: {settings.batch_size} is less than {processes * pieces}, an image for each of "
            f"{processes} processes in each of {pieces} accumulation_steps"
        )


class Trainer:
    """Takes the steps of one run, in as many processes as there are:

    for step in trainer.steps():
        for share in trainer.shares(*batch):
            trainer.backward(loss(share))
        trainer.update()

    Attributes:
        model: the one to compute losses with.
    """

    def __init__(
        self,
        model: Diffusion,
        config: Config,
        settings: Optimization,
        run: Run,
        *,
        learning_rate: Callable[[int], float],
        sampling_steps: int | None,
        compute: Compute,
        stopwatch: Stopwatch,
    ):
        """
        Args:
            model: the model to train, in place; its EMA is what is saved, sampled and taught with.
            run: the folder, and the state to continue from, which is taken out of it.
            learning_rate: the learning rate at each step.
            sampling_steps: what the model is distilled for, None for an undistilled model.
            compute: how the model computes; kept with the state.

        Raises:
            InputError: the state does not fit.
        """
        self.config, self.settings, self.run = config, settings, run
        self.learning_rate, self.sampling_steps = learning_rate, sampling_steps
        self.compute, self.stopwatch = compute, stopwatch
        self.network = compute.for_training(model).network
        self.optimizer = Optimizer(self.network, settings)
        self.saved_step, self.saved_at = None, time.monotonic()
        if run.state:
            self._continue_from(run.state)
            run.state = None  # it may be large
        self.patience = distributed.COMPILATION_TIMEOUT if compute.compiles else distributed.STEP_TIMEOUT
        self.model = replace(model, network=distributed.parallel(self.network, compute.device, self.patience))

    def _continue_from(self, state: dict[str, Any]) -> None:
        try:
            self.optimizer.load_state_dict(state, state["step"])
        except ValueError as error:
            raise InputError(f"{self.run.state_path}: damaged: {error}; --restart begins anew") from error
        self.saved_step = state["step"]

    @property
    def step(self) -> int:
        """How many steps have been taken."""
        return self.optimizer.step

    def steps(self, description: str) -> Iterator[int]:
        """Counts the steps that are left to take; between them, saves and samples as often as the settings say."""
        self.model.network.train()
        silent = not distributed.is_first()
        with (
            locked(self.run.folder),
            tqdm(
                total=self.run.num_steps, initial=self.step, desc=description, unit="step", disable=silent
            ) as self.bar,
            SignalWatch() as watch,
        ):
            self._forget_metrics_after(self.step)
            self._begin_interval()
            self.stopwatch.lap("start")
            part = "first step"
            while True:
                # A run that continues comes by here first, and makes what a kill kept it from writing.
                if self.step > 0 and self._due(self.settings.save_and_sample_every_n):
                    self._save()
                if self.step == self.run.num_steps:
                    return
                self._seed("step")
                yield self.step
                self.stopwatch.lap(part)
                part = "steps"
                minutes_passed = time.monotonic() - self.saved_at >= 60 * self.settings.checkpoint_every_minutes
                signum, must_save = distributed.largest(watch.received or 0, minutes_passed, timeout=self.patience)
                if signum or must_save:
                    self._save_between()
                if signum:
                    raise Interrupted(signum, f"{self.run.folder}, after step {self.step}")

    def _seed(self, what: str) -> None:
        # All that is drawn in a step depends on its number alone: nothing random need be remembered.
        torch.manual_seed(seed_of(what, self.config.seed, self.sampling_steps, index=self.step))

    def shares(self, *batch: Tensor | None) -> Iterator[list[Tensor | None]]:
        """This process's share of a global batch, of tensors [B, ...], in `accumulation_steps` pieces.

        What is None stays None. The gradients of all pieces but the last are kept; with the last one's, they are
        exchanged with the other processes.
        """
        pieces = distributed.own_pieces(self.settings.batch_size, self.settings.accumulation_steps)
        for piece in pieces:
            # A tensor, since compiled code would be compiled anew for each number
            self.network.first_example = torch.full((), piece.start, dtype=torch.int32, device=self.compute.device)
            self._seed("dropout")
            with nullcontext() if piece == pieces[-1] else distributed.keep_gradients(self.model.network):
                yield [tensor if tensor is None else tensor[piece] for tensor in batch]

    def backward(self, losses: Tensor) -> None:
        """Takes in the losses [b] of a share: their gradient, as a part of that of the mean over the global batch."""
        loss = losses.sum() / self.settings.batch_size
        self.loss += loss.detach()
        self.optimizer.backward(loss * distributed.count())  # the gradients' mean over the processes is taken

    def update(self) -> None:
        """One step of the optimizer down the gradient of the losses, and one of the EMA."""
        norm = self.optimizer.update(self.learning_rate(self.step))
        self.bar.update()
        self.sums += torch.where(norm.isfinite(), torch.stack([self.loss, norm, torch.ones_like(norm)]), 0)
        self.loss = torch.zeros_like(self.loss)
        if self._due(self.settings.log_every_n) or self._due(self.settings.save_and_sample_every_n):
            self._log()

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.run.num_steps

    def _begin_interval(self) -> None:
        # Sums of the loss, of the gradient's norm, and the number of steps that were not skipped
        self.loss, self.sums = (torch.zeros(size, device=self.compute.device) for size in ((), 3))
        self.interval_start, self.interval_step = time.perf_counter(), self.step

    def _log(self) -> None:
        """A line of metrics: means since the last, over the steps that were not skipped."""
        count = self.step - self.interval_step
        _, norm_sum, taken = self.sums.tolist()
        loss_sum, _, _ = distributed.total(self.sums)  # each process has the losses of its share
        rate = self.learning_rate(self.step - 1)
        if self.optimizer.most_skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise InputError(
                f"{self.run.folder}: the loss was not finite in {MOST_SKIPPED_IN_A_ROW} steps in a row, up to step "
                f"{self.step} or before: stopped; the last checkpoint stands. Try --restart with a smaller "
                f"learning_rate (it was {rate:g})"
            )
        metrics = {
            "step": self.step,
            "loss": loss_sum / taken if taken else None,
            "gradient_norm": norm_sum / taken if taken else None,
            "skipped_steps": count - int(taken),
            "learning_rate": rate,
            "steps_per_second": count / (time.perf_counter() - self.interval_start),
        }
        self._write_metrics(metrics)
        if taken:
            self.bar.set_postfix(loss=f"{loss_sum / taken:.4f}", refresh=False)
        self._begin_interval()

    def _write_metrics(self, metrics: dict[str, Any]) -> None:
        append_line(self.run.folder / "metrics.jsonl", json.dumps(metrics))

    @by_first
    def _forget_metrics_after(self, step: int) -> None:
        """A run that continues from a step writes the lines after it again."""
        path = self.run.folder / "metrics.jsonl"
        if path.exists():
            kept = [json.dumps(line) + "\n" for line in read_metrics(path) if line["step"] <= step]
            write_atomically(path, lambda file: file.write("".join(kept).encode()))

    def _save(self) -> None:
        self._save_state()
        path = self.run.checkpoint_path(self.step)
        if not exists(path):
            self._draw(self.run.folder / f"sample-{self.step}.png")
            self.stopwatch.lap("pictures")
            weights = self.optimizer.ema.state_dict()
            save_checkpoint(path, weights, config=self.config, step=self.step, sampling_steps=self.sampling_steps)
            tqdm.write(f"wrote {path} and its sample")
        self._log_seconds()
        self._begin_interval()

    def _save_between(self) -> None:
        """The state at any step, without a checkpoint and pictures."""
        if self.step > self.interval_step:  # the steps since the last line are not logged yet
            self._log()
        self._save_state()
        self._log_seconds()

    def _log_seconds(self) -> None:
        self.stopwatch.lap("checkpoints")
        self._write_metrics({"step": self.step, "seconds": self.stopwatch.take()})

    def _save_state(self) -> None:
        if self.saved_step == self.step:  # by the process that this one continues, or for the minutes that had passed
            return
        state = {
            "format_version": STATE_VERSION,
            "identity": self.run.identity,
            "num_steps": self.run.num_steps,
            "step": self.step,
            "compute": self.compute.as_dict(),
        } | self.optimizer.state_dict()
        write_atomically(self.run.state_path, lambda file: torch.save(state, file))
        self.saved_step, self.saved_at = self.step, time.monotonic()
        self.stopwatch.lap("checkpoints")

    def _draw(self, path: Path) -> None:
        sampling = self.config.sampling
        pictures = draw_samples(
            replace(self.model, network=self.optimizer.ema),
            self.config,
            sampling.num_samples,
            sampling_steps=self.sampling_steps or sampling.sampling_steps,
            seed=self.config.seed,
            device=self.compute.device,
        )
        save_picture(grid(pictures, self.config.network.num_classes), path)
