"""What stands around the loss that a script computes: optimizer, EMA, log, pictures and checkpoints."""

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
from utils.checkpoints import FORMAT_VERSION, save_checkpoint
from utils.config import Config, Optimization
from utils.errors import InputError
from utils.files import prepare_folder, write_atomically
from utils.pictures import grid, save_picture
from utils.randomness import seed_of
from utils.run import Run
from utils.sampling import draw_samples


class Trainer:
    """Takes the steps of one run: `for step in trainer.steps(): ...; trainer.update(loss)`."""

    def __init__(
        self,
        model: Diffusion,
        config: Config,
        settings: Optimization,
        run: Run,
        *,
        learning_rate: Callable[[int], float],
        sampling_steps: int | None,
        device: torch.device,
    ):
        """
        Args:
            model: the model to train, in place; its EMA is what is saved, sampled and taught with.
            run: the folder, and the state to continue from.
            learning_rate: the learning rate at each step.
            sampling_steps: what the model is distilled for, None for an undistilled model.
        """
        self.model, self.config, self.settings, self.run = model, config, settings, run
        self.learning_rate, self.sampling_steps, self.device = learning_rate, sampling_steps, device
        betas = (0.9, settings.adam_beta2)
        self.optimizer = torch.optim.Adam(model.network.parameters(), lr=learning_rate(0), betas=betas, fused=True)
        self.ema = AveragedModel(model.network, multi_avg_fn=self._average)
        self.ema.eval()
        self.step = 0
        prepare_folder(run.folder)
        if run.state:
            self._continue_from(run.state)
        self._forget_metrics_after(self.step)

    def _continue_from(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        try:
            self.model.network.load_state_dict(state["network"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self.run.state_path}: damaged; --restart begins anew") from error

    def _average(self, averaged: list[Tensor], current: list[Tensor], _: Tensor) -> None:
        # Warmed up: without it, the average is the first, random weights for thousands of steps.
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        get_ema_multi_avg_fn(decay)(averaged, current, None)

    def steps(self, description: str) -> Iterator[int]:
        """Counts the steps that are left to take; between them, saves and samples as often as the settings say."""
        self.model.network.train()
        with tqdm(total=self.run.num_steps, initial=self.step, desc=description, unit="step") as self.bar:
            self._begin_interval()
            while True:
                # A run that continues comes by here first, and makes what a kill kept it from writing.
                if self.step > 0 and self._due(self.settings.save_and_sample_every_n):
                    self._save()
                if self.step == self.run.num_steps:
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
        if self._due(self.settings.log_every_n) or self._due(self.settings.save_and_sample_every_n):
            self._log()

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.run.num_steps

    def _begin_interval(self) -> None:
        self.loss_sum = torch.zeros((), device=self.device)
        self.norm_sum = torch.zeros((), device=self.device)
        self.interval_start, self.interval_step = time.perf_counter(), self.step

    def _log(self) -> None:
        """A line of metrics, means since the last; every save comes just after one, so no bad state is saved."""
        count = self.step - self.interval_step
        loss, norm = float(self.loss_sum) / count, float(self.norm_sum) / count
        rate = self.learning_rate(self.step - 1)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise InputError(
                f"{self.run.folder}: the loss is not finite in the steps up to {self.step}: stopped; the last "
                f"checkpoint stands. Try --restart with a smaller learning_rate (it was {rate:g})"
            )
        metrics = {
            "step": self.step,
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": rate,
            "steps_per_second": count / (time.perf_counter() - self.interval_start),
        }
        with open(self.run.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(metrics) + "\n")
        self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        self._begin_interval()

    def _forget_metrics_after(self, step: int) -> None:
        """A run that continues from a step writes the lines after it again."""
        path = self.run.folder / "metrics.jsonl"
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_atomically(path, lambda file: file.write("".join(kept).encode()))

    def _save(self) -> None:
        if not (self.run.state and self.run.state["step"] == self.step):  # a run that continues has it already
            self._save_state()
        path = self.run.checkpoint_path(self.step)
        if not path.exists():
            self._draw(self.run.folder / f"sample-{self.step}.png")
            weights = self.ema.module.state_dict()
            save_checkpoint(path, weights, config=self.config, step=self.step, sampling_steps=self.sampling_steps)
            tqdm.write(f"wrote {path} and its sample")
        self._begin_interval()

    def _save_state(self) -> None:
        state = {
            "format_version": FORMAT_VERSION,
            "identity": self.run.identity,
            "num_steps": self.run.num_steps,
            "step": self.step,
            "network": self.model.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        write_atomically(self.run.state_path, lambda file: torch.save(state, file))

    def _draw(self, path: Path) -> None:
        sampling = self.config.sampling
        pictures = draw_samples(
            replace(self.model, network=self.ema.module),
            self.config,
            range(sampling.num_samples),
            sampling_steps=self.sampling_steps or sampling.sampling_steps,
            seed=self.config.seed,
            device=self.device,
        )
        save_picture(grid(pictures, self.config.network.num_classes), path)
