"""A run: the training steps of a stage, and what happens between them (logs, checkpoints, samples, signals)."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from models.diffusion import Diffusion
from utils.checkpoints.checkpoint import save_checkpoint
from utils.checkpoints.compute import Compute
from utils.checkpoints.sampling import draw_samples
from utils.data.images import ImageData
from utils.system import distributed
from utils.system.errors import InputError
from utils.system.files import exists
from utils.system.grids import grid, save_png
from utils.system.seeds import normal_noise
from utils.system.signals import Interrupted, SignalWatch
from utils.training.loggers import LOGGERS, JsonLines, Logger
from utils.training.stage import Stage
from utils.training.state import STATE_NAME, damaged, write_state
from utils.training.trainer import Trainer

MOST_SKIPPED_IN_A_ROW = 10


class Run:
    """The training of a stage, on this rank's shard of the data."""

    def __init__(self, stage: Stage, state: dict[str, Any] | None, data: ImageData, compute: Compute):
        """Resumes from a state of `read_state`, if there is one."""
        self.stage, self.folder, self.data = stage, stage.folder, data
        self.compute, self.device = compute, compute.device
        self._identity = stage.identity()
        self.trainers: dict[str, Trainer] = {}  # by name; checkpoints hold the EMA of the one named "model"
        self.step = self._saved_step = state["step"] if state else 0
        self._states = state["trainers"] if state else {}
        self._recorded: dict[str, Tensor] = {}  # sums since the last line of the log

    def teacher(self) -> Diffusion:
        """The model that teaches: the stage's teacher, or else its parent, for batches of the size of a micro-batch."""
        settings = self.stage.settings
        size = settings.batch_size // (settings.accumulation_steps * distributed.world_size())
        return self.compute.for_inference((self.stage.teacher or self.stage.parent).model(self.device), size)

    def add_trainer(
        self, name: str, model: Diffusion, learning_rate: Callable[[int], float] | None = None, updates: int = 1
    ) -> Trainer:
        """Trains a model under a name, from its saved state if there is one. Raises InputError if that does not fit.

        The learning rate is the stage's by default; `updates` is the number of updates in each step of the run.
        """
        stage, rate = self.stage, learning_rate or self.stage.learning_rate
        options = {"learning_rate": lambda update: rate(update // updates), "seed_of": stage.seed_of}
        options["warm_up_ema"] = stage.kind != "matched"
        self.trainers[name] = trainer = Trainer(model, stage.settings, self.compute, **options)
        if self.step:
            try:
                trainer.load_state_dict(self._states.pop(name, None), self.step * updates)
            except ValueError as error:
                raise damaged(self.folder / STATE_NAME, f"{name}: {error}") from error
        return trainer

    def batch(self, part: slice, number: int | None = None) -> tuple[Tensor, Tensor | None, Tensor]:
        """A slice of a global batch: x in [-1, 1], label (or None) and eps. `number`: which; the step's by default.

        Examples are numbered through the run, and the noise of each depends on its number alone.
        """
        examples = self._examples(part, number)
        x, label = self.data.batch(examples, order=self.stage.num_sampling_steps or 0)
        return x, label, self.noise("noise", x, part, number)

    def noise(self, purpose: str, x: Tensor, part: slice, number: int | None = None) -> Tensor:
        """Standard normal noise like x, the slice of a global batch."""
        return normal_noise([self.stage.seed_of(purpose, example) for example in self._examples(part, number)], x)

    def _examples(self, part: slice, number: int | None) -> range:
        first = (self.step if number is None else number) * self.stage.settings.batch_size
        return range(first + part.start, first + part.stop)

    def record(self, name: str, values: Tensor) -> None:
        """Logs a value of each example in a micro-batch, [b]: its mean over the global batch and the steps."""
        total = values.detach().sum()[None] / self.stage.settings.batch_size
        self._recorded[name] = self._recorded.get(name, 0) + total

    def steps(self) -> Iterator[int]:
        """The numbers of the remaining steps. Seeds PyTorch before each; between them, logs, saves and samples.

        At SIGINT or SIGTERM it saves and raises Interrupted.
        """
        settings, names = self.stage.settings, self.stage.settings.loggers
        with (
            tqdm(total=self.stage.num_training_steps, initial=self.step, desc=self.stage.title, unit="step") as bar,
            SignalWatch(patient=distributed.world_size() > 1) as self._watch,
            ExitStack() as opened,
        ):
            self._loggers: list[Logger] = [
                opened.enter_context(closing(logger(self.folder, self.step)))
                for logger in [JsonLines, *(LOGGERS[name] for name in names)]
            ]
            self._saved_at = time.monotonic()
            self._start_interval()
            while True:
                # A resumed run starts here, and first writes a checkpoint or grid that is missing.
                if self.step > 0 and self._is_due(settings.save_and_sample_every_n):
                    self._save_checkpoint()
                    self._stop_at_signal()
                if self.step == self.stage.num_training_steps:
                    return
                torch.manual_seed(self.stage.seed_of("step", self.step))
                yield self.step
                self.step += 1
                bar.update()
                is_due = self._is_due(settings.log_every_n) or self._is_due(settings.save_and_sample_every_n)
                if is_due or self.step % MOST_SKIPPED_IN_A_ROW == 0:  # not at every step: it waits for a GPU
                    self._require_finite()
                if is_due:
                    bar.set_postfix(loss=self._log(), refresh=False)
                self._stop_at_signal(save_after_minutes=settings.checkpoint_every_minutes)

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.stage.num_training_steps

    def _stop_at_signal(self, save_after_minutes: float | None = None) -> None:
        """Stops after saving if any rank has received a signal; with `save_after_minutes`, saves if it is time."""
        minutes = (time.monotonic() - self._saved_at) / 60
        is_time = save_after_minutes is not None and minutes >= save_after_minutes
        timeout = max(trainer.timeout for trainer in self.trainers.values())
        signum, is_time = distributed.all_reduce_max(self._watch.received or 0, is_time, timeout=timeout)
        if signum or is_time:
            if self.step > self._interval_step:
                self._log()
            self._save_state()
        if signum:
            raise Interrupted(signum, f"{self.folder}, after step {self.step}")

    def _require_finite(self) -> None:
        """Raises InputError if too many steps were skipped."""
        for name, trainer in self.trainers.items():
            if trainer.most_skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
                rate = "learning_rate" if name == "model" else f"{name}_learning_rate"
                raise InputError(
                    f"{self.folder}: the loss was not finite in {MOST_SKIPPED_IN_A_ROW} updates in a row, up to step "
                    f"{self.step} or before: stopped; the last checkpoint is unchanged. Try --restart with a smaller "
                    f"{rate} (it was {trainer.learning_rate(trainer.step - 1):g})"
                )

    def _start_interval(self) -> None:
        self._interval_start, self._interval_step = time.perf_counter(), self.step

    def _log(self) -> str:
        """Logs the means since the last call; returns the loss."""
        count, scalars, losses = self.step - self._interval_step, {}, []
        for name, trainer in self.trainers.items():
            loss, norm, skipped = trainer.take_metrics()
            rate = trainer.learning_rate(trainer.step - 1)
            found = {"loss": loss, "gradient_norm": norm, "skipped_steps": skipped, "learning_rate": rate}
            prefix = "" if name == "model" else f"{name}/"
            scalars |= {prefix + key: value for key, value in found.items()}
            losses.append("not finite" if loss is None else f"{loss:.4f}")
        for name, total in self._recorded.items():
            mean = distributed.all_reduce_sum(total)[0] / count
            scalars[name] = mean if math.isfinite(mean) else None
        self._recorded = {}
        scalars["steps_per_second"] = count / (time.perf_counter() - self._interval_start)
        for logger in self._loggers:
            logger.add_scalars(self.step, scalars)
        self._start_interval()
        return " ".join(losses)

    def _save_checkpoint(self) -> None:
        """Saves the state, a grid of samples and a checkpoint, in this order."""
        self._save_state()
        path = self.folder / f"diffusion-{self.step}.pt"
        if not exists(path):
            metadata = self.stage.metadata(self.step, self.data.description)
            self._draw(metadata.default_guidance, metadata.class_names)
            save_checkpoint(path, metadata, self.trainers["model"].ema.state_dict())
            tqdm.write(f"wrote {path} and its samples")
        self._start_interval()

    def _save_state(self) -> None:
        if self._saved_step == self.step:
            return
        state = {"identity": self._identity | {"data_hash": self.data.description.data_hash}}
        state |= {"num_training_steps": self.stage.num_training_steps, "step": self.step}
        state["compute"] = self.compute.as_dict()
        state["trainers"] = {name: trainer.state_dict() for name, trainer in self.trainers.items()}
        write_state(self.folder, **state)
        self._saved_step, self._saved_at = self.step, time.monotonic()

    def _draw(self, guidance: float, class_names: list[str]) -> None:
        """Writes a grid of samples, always from the same noise."""
        config, trainer, sampling = self.stage.config, self.trainers["model"], self.stage.sampling
        if self.stage.num_sampling_steps is None:
            sampling = config.sampling.of_teacher(config.sampling.sampling_steps)

        def check() -> None:  # the state is already saved
            if self._watch.received:
                raise Interrupted(self._watch.received, f"{self.folder}, after step {self.step}")

        model, count = replace(trainer.model, network=trainer.ema), config.sampling.num_samples
        options = {"sampling": sampling, "guidance": guidance, "seed": config.seed, "device": self.device}
        samples = draw_samples(model, config, count, check=check, **options)
        image = grid(samples, class_names)
        save_png(image, self.folder / f"sample-{self.step}.png")
        for logger in self._loggers:
            logger.add_images(self.step, image)
