"""One run in one folder: optimizer, EMA, log, pictures and checkpoints around the loss that a script computes.

The folder holds `training_state.pt` (what resuming needs), `diffusion-<step>.pt`, `sample-<step>.png` and
`metrics.jsonl`. They are written in the order state, picture, checkpoint: where there is a checkpoint, all that
belongs to its step is there; where there is a state, the rest can be made from it.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from models.diffusion import Diffusion
from utils.checkpoints import FORMAT_VERSION, UNDISTILLED_SAMPLING_STEPS, read_file, save_checkpoint
from utils.config import Config, Optimization, differences
from utils.errors import InputError
from utils.files import prepare_folder, write_atomically
from utils.pictures import grid, save_picture
from utils.randomness import seed_of
from utils.sampling import draw_samples

STATE_NAME = "training_state.pt"
STATE_KEYS = {"run", "num_steps", "step", "network", "ema", "optimizer"}
RUN_FILES = (STATE_NAME, "diffusion-*.pt", "sample-*.png", "metrics.jsonl", ".*.tmp")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where a run keeps the checkpoint of a step."""
    return folder / f"diffusion-{step}.pt"


def find_state(folder: Path, run: dict[str, Any], num_steps: int, *, may_grow: bool = False) -> dict[str, Any] | None:
    """The state of an earlier run in the folder, if it is this run's; None where nothing has been saved.

    Args:
        run: what makes this run what it is; everything must be the same in the state.
        num_steps: how long this run is. A finished shorter one may be taken further where `may_grow` is set.

    Raises:
        InputError: the state is that of another run, or there are checkpoints without a state.
    """
    path = folder / STATE_NAME
    if not path.exists():
        for checkpoint in folder.glob("diffusion-*.pt"):
            raise InputError(f"{checkpoint}: in the way: a checkpoint without {STATE_NAME}; --restart deletes it")
        return None
    state = read_file(path, STATE_KEYS, "a training state")
    for difference in differences(state["run"], run):
        raise InputError(f"{path}: belongs to another run: {difference}; --restart begins anew")
    grows = may_grow and state["step"] == state["num_steps"] < num_steps
    if num_steps != state["num_steps"] and not grows:
        raise InputError(
            f"{path}: number of training steps is {state['num_steps']} there ({state['step']} taken) and {num_steps} "
            f"here; {'only a finished run can be taken further' if may_grow else '--restart begins anew'}"
        )
    return state


def is_finished(folder: Path, state: dict[str, Any] | None, num_steps: int) -> bool:
    """Whether the run has taken its last step and written all that belongs to it."""
    return state is not None and state["step"] == num_steps and checkpoint_path(folder, num_steps).exists()


def delete_run(folder: Path) -> None:
    """Deletes what a run writes, and nothing else."""
    for pattern in RUN_FILES:
        for path in folder.glob(pattern):
            path.unlink()


class Trainer:
    """Takes the steps of one run: `for step in trainer.steps(): ...; trainer.update(loss)`."""

    def __init__(
        self,
        model: Diffusion,
        config: Config,
        settings: Optimization,
        *,
        folder: Path,
        run: dict[str, Any],
        state: dict[str, Any] | None,
        num_steps: int,
        learning_rate: Callable[[int], float],
        sampling_steps: int | None,
        device: torch.device,
    ):
        """
        Args:
            model: the model to train, in place; its EMA is what is saved, sampled and taught with.
            state: what `find_state` returned for this `folder`, `run` and `num_steps`.
            learning_rate: the learning rate at each step.
            sampling_steps: what the model is distilled for, None for an undistilled model.
        """
        self.model, self.config, self.settings = model, config, settings
        self.folder, self.run, self.num_steps = folder, run, num_steps
        self.learning_rate, self.sampling_steps, self.device = learning_rate, sampling_steps, device
        self.optimizer = torch.optim.Adam(model.network.parameters(), lr=settings.learning_rate, fused=True)
        self.ema = AveragedModel(model.network, multi_avg_fn=self._average)
        self.ema.eval()
        self.step = 0
        prepare_folder(folder)
        if state:
            self.step = state["step"]
            model.network.load_state_dict(state["network"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
        self._forget_metrics_after(self.step)

    def _average(self, averaged: list[Tensor], current: list[Tensor], _: Tensor) -> None:
        # Warmed up: without it, the average is the first, random weights for thousands of steps.
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        get_ema_multi_avg_fn(decay)(averaged, current, None)

    def steps(self, description: str) -> Iterator[int]:
        """Counts the steps that are left to take; between them, saves and samples as often as the settings say."""
        self.model.network.train()
        with tqdm(total=self.num_steps, initial=self.step, desc=description, unit="step") as self.bar:
            self._begin_interval()
            while True:
                # A run that continues comes by here first, and makes what a kill kept it from writing.
                due = self.step > 0 and self.step % self.settings.save_and_sample_every_n == 0
                if due or self.step == self.num_steps:
                    self._save()
                if self.step == self.num_steps:
                    return
                # All that is drawn in a step depends on its number alone: nothing random need be remembered.
                torch.manual_seed(seed_of("step", self.config.seed, self.sampling_steps, index=self.step))
                yield self.step

    def update(self, loss: Tensor) -> None:
        """One step of the optimizer down the gradient of the loss, and one of the EMA."""
        self.optimizer.zero_grad()
        loss.backward()
        norm = clip_grad_norm_(self.model.network.parameters(), self.settings.gradient_clipping)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.optimizer.step()
        self.ema.update_parameters(self.model.network)
        self.step += 1
        self.bar.update()
        self.loss_sum += loss.detach()
        self.norm_sum += norm
        settings = self.settings
        if self.step == self.num_steps or not (
            self.step % settings.log_every_n and self.step % settings.save_and_sample_every_n
        ):
            self._log()

    def _begin_interval(self) -> None:
        self.loss_sum = torch.zeros((), device=self.device)
        self.norm_sum = torch.zeros((), device=self.device)
        self.interval_start, self.interval_step = time.perf_counter(), self.step

    def _log(self) -> None:
        """A line of metrics, means since the last; every save comes just after one, so no bad state is saved."""
        count = self.step - self.interval_step
        loss, norm = float(self.loss_sum) / count, float(self.norm_sum) / count
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise InputError(
                f"{self.folder}: the loss is not finite in the steps up to {self.step}: stopped; the last checkpoint "
                f"stands. Try --restart with a smaller learning_rate (now {self.settings.learning_rate})"
            )
        metrics = {
            "step": self.step,
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": self.learning_rate(self.step - 1),
            "steps_per_second": count / (time.perf_counter() - self.interval_start),
        }
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(metrics) + "\n")
        self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        self._begin_interval()

    def _forget_metrics_after(self, step: int) -> None:
        """A run that continues from a step writes the lines after it again."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_atomically(path, lambda file: file.write("".join(kept).encode()))

    def _save(self) -> None:
        state = {
            "format_version": FORMAT_VERSION,
            "run": self.run,
            "num_steps": self.num_steps,
            "step": self.step,
            "network": self.model.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        write_atomically(self.folder / STATE_NAME, lambda file: torch.save(state, file))
        path = checkpoint_path(self.folder, self.step)
        if not path.exists():
            self._draw(self.folder / f"sample-{self.step}.png")
            weights = self.ema.module.state_dict()
            save_checkpoint(path, weights, config=self.config, step=self.step, sampling_steps=self.sampling_steps)
            tqdm.write(f"wrote {path} and its sample")
        self._begin_interval()

    def _draw(self, path: Path) -> None:
        sampling = self.config.sampling
        pictures = draw_samples(
            replace(self.model, network=self.ema.module),
            self.config,
            range(sampling.num_samples),
            sampling_steps=self.sampling_steps or min(sampling.sampling_steps, UNDISTILLED_SAMPLING_STEPS),
            seed=self.config.seed,
            device=self.device,
        )
        save_picture(grid(pictures), path)
