"""The loop of a run, and what happens between its steps: the log, checkpoints, pictures, and signals to stop."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace

from tqdm import tqdm

from utils.checkpoint_files import save_checkpoint
from utils.checkpoints import class_names_of, possible_guidance
from utils.errors import InputError
from utils.files import locked
from utils.pictures import grid, save_picture
from utils.process import distributed
from utils.process.interruption import Interrupted, SignalWatch
from utils.process.timing import Stopwatch
from utils.sampling import draw_samples
from utils.schema import Config
from utils.training.board import Board
from utils.training.log import forget_after, log
from utils.training.run import Run, damaged
from utils.training.trainer import Trainer

MOST_SKIPPED_IN_A_ROW = 10


class TrainingLoop:
    """Iterates over the numbers of the steps that a run has left; each is to be taken by `trainer.take_step`."""

    def __init__(self, run: Run, trainer: Trainer, config: Config, stopwatch: Stopwatch, description: str):
        """
        Args:
            run: the folder, and the state to continue from, which is taken out of it and given to the trainer.

        Raises:
            InputError: the state does not fit the trainer's network.
        """
        self.run, self.trainer, self.config = run, trainer, config
        self.stopwatch, self.description = stopwatch, description
        self.saved_step, self.saved_at = None, time.monotonic()
        if run.state:
            try:
                trainer.load_state_dict(run.state, run.state["step"])
            except ValueError as error:
                raise damaged(run.state_path, str(error)) from error
            self.saved_step = trainer.step
            run.state = None  # it may be large

    def __iter__(self) -> Iterator[int]:
        """Before each step, seeds PyTorch with its number; between steps, saves and logs as the settings say."""
        settings, trainer = self.trainer.settings, self.trainer
        with (
            locked(self.run.folder),
            tqdm(total=self.run.num_steps, initial=trainer.step, desc=self.description, unit="step") as progress,
            SignalWatch(patient=distributed.world_size() > 1) as self.watch,
            ExitStack() as held,
        ):
            forget_after(self.run.folder, trainer.step)
            writes = distributed.is_rank_zero()
            self.board = held.enter_context(closing(Board(self.run.folder, wanted=settings.tensorboard, writes=writes)))
            self._begin_interval()
            self.stopwatch.lap("start")
            part = "first step"
            while True:
                # A run that continues comes by here first, and makes what a kill kept it from writing.
                if trainer.step > 0 and self._is_due(settings.save_and_sample_every_n):
                    self._save_all()
                    signum, _ = self._agree(must_save=False)
                    self._stop_if(signum)
                if trainer.step == self.run.num_steps:
                    return
                trainer.seed_for("step")
                yield trainer.step
                progress.update()
                if self._is_due(settings.log_every_n) or self._is_due(settings.save_and_sample_every_n):
                    progress.set_postfix(loss=self._log(), refresh=False)
                self.stopwatch.lap(part)
                part = "steps"
                minutes_passed = time.monotonic() - self.saved_at >= 60 * settings.checkpoint_every_minutes
                signum, must_save = self._agree(must_save=minutes_passed)
                if signum or must_save:
                    self._save_state_only()
                self._stop_if(signum)

    def _agree(self, *, must_save: bool) -> list[int]:
        """The signal that any rank has received, 0 if none has, and whether one must save."""
        return distributed.all_reduce_max(self.watch.received or 0, must_save, timeout=self.trainer.timeout)

    def _stop_if(self, signum: int | None) -> None:
        if signum:
            raise Interrupted(signum, f"{self.run.folder}, after step {self.trainer.step}")

    def _is_due(self, every: int) -> bool:
        return self.trainer.step % every == 0 or self.trainer.step == self.run.num_steps

    def _begin_interval(self) -> None:
        self.interval_start, self.interval_step = time.perf_counter(), self.trainer.step

    def _log(self) -> str:
        """Logs the means since the last line, and returns the loss as text for the progress bar.

        Raises:
            InputError: too many steps in a row were skipped.
        """
        trainer, count = self.trainer, self.trainer.step - self.interval_step
        loss, norm, taken = trainer.take_metrics()
        rate = trainer.learning_rate(trainer.step - 1)
        if trainer.most_skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise InputError(
                f"{self.run.folder}: the loss was not finite in {MOST_SKIPPED_IN_A_ROW} steps in a row, up to step "
                f"{trainer.step} or before: stopped; the last checkpoint stands. Try --restart with a smaller "
                f"learning_rate (it was {rate:g})"
            )
        line = {
            "step": trainer.step,
            "loss": loss,
            "gradient_norm": norm,
            "skipped_steps": count - taken,
            "learning_rate": rate,
            "steps_per_second": count / (time.perf_counter() - self.interval_start),
        }
        log(self.run.folder, line)
        self.board.add_line(line)
        self._begin_interval()
        return "not finite" if loss is None else f"{loss:.4f}"

    def _save_all(self) -> None:
        """Saves the state, a picture and a checkpoint, in this order."""
        run, step = self.run, self.trainer.step
        self._save_state()
        if not run.has_checkpoint(step):
            try:
                self._draw()
            except Interrupted:
                if distributed.world_size() == 1:  # the others are still drawing
                    self._log_seconds()
                raise
            path, weights = run.checkpoint_path(step), self.trainer.ema.state_dict()
            of_run = {name: getattr(run, name) for name in ("sampling_steps", "prediction", "guidance", "trained_on")}
            save_checkpoint(path, weights, config=self.config, step=step, **of_run)
            tqdm.write(f"wrote {path} and its sample")
        self._log_seconds()
        self._begin_interval()

    def _save_state_only(self) -> None:
        """Saves the state after any step, without a picture and a checkpoint."""
        if self.trainer.step > self.interval_step:  # the steps since the last line are not logged yet
            self._log()
        self._save_state()
        self._log_seconds()

    def _save_state(self) -> None:
        if self.saved_step == self.trainer.step:  # by the process that this one continues, or since minutes had passed
            return
        self.run.save_state(self.trainer.step, self.trainer.compute.as_dict(), self.trainer.state_dict())
        self.saved_step, self.saved_at = self.trainer.step, time.monotonic()
        self.stopwatch.lap("checkpoints")

    def _draw(self) -> None:
        run, sampling = self.run, self.config.sampling
        scale = possible_guidance(self.config, run.undistilled, run.guidance, sampling.guidance)
        pictures = draw_samples(
            replace(self.trainer.model, network=self.trainer.ema),
            self.config,
            sampling.num_samples,
            guidance=scale,
            sampling_steps=run.sampling_steps or sampling.sampling_steps,
            seed=self.config.seed,
            device=self.trainer.compute.device,
            check=lambda: self._stop_if(self.watch.received),  # the state has been saved
        )
        path = run.folder / f"sample-{self.trainer.step}.png"
        picture = grid(pictures, class_names_of(self.config, run.trained_on))
        save_picture(picture, path)
        self.board.add_picture(self.trainer.step, picture)
        self.stopwatch.lap("pictures")

    def _log_seconds(self) -> None:
        self.stopwatch.lap("checkpoints")
        log(self.run.folder, {"step": self.trainer.step, "seconds": self.stopwatch.take()})
