"""The logs of a run: metrics.jsonl always, and those of `LOGGERS` that the configuration names (`loggers`)."""

import importlib.util
import json
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image, to_tensor

from utils.config.schema import Optimization
from utils.system.distributed import is_rank_zero, on_rank_zero
from utils.system.errors import InputError
from utils.system.files import append_line, delete_files, exists, find_files, read_if_there, write_atomically

LOG_NAME = "metrics.jsonl"


class Logger:
    """A log of a run. It is given the run's folder, and the step that the run resumes from; all ranks call it."""

    package: str | None = None  # that it needs, to import and to install
    files = ""  # the pattern of its files in the folder; --restart deletes them

    def __init__(self, folder: Path, step: int):
        self.folder, self.step = folder, step

    def add_scalars(self, step: int, scalars: dict[str, float | None]) -> None:
        """Logs the means since the last call; a loss that is not finite is None."""

    def add_images(self, step: int, grid: Tensor) -> None:
        """Logs a grid of samples, [3, H, W] in [0, 1]."""

    def close(self) -> None:
        """Writes everything that has not been written yet."""


class JsonLines(Logger):
    """metrics.jsonl: one line for each call of `add_scalars`. The samples are PNG files beside it."""

    def __init__(self, folder: Path, step: int):
        """Removes the lines after a step, which the resumed run writes again."""
        super().__init__(folder, step)
        if exists(folder / LOG_NAME):
            kept = "".join(json.dumps(line) + "\n" for line in read_log(folder) if line["step"] <= step)
            write_atomically(folder / LOG_NAME, lambda file: file.write(kept.encode()))

    def add_scalars(self, step: int, scalars: dict[str, float | None]) -> None:  # noqa: D102 (see Logger)
        append_line(self.folder / LOG_NAME, json.dumps({"step": step} | scalars))


class TensorBoard(Logger):
    """Events for TensorBoard (`tensorboard --logdir output`).

    Events cannot be removed, and a resumed run repeats steps. So each start of a run writes its events anew, from
    metrics.jsonl and the samples, which contain each step once.
    """

    package, files = "tensorboard", "events.out.tfevents.*"

    def __init__(self, folder: Path, step: int):
        super().__init__(folder, step)
        delete_files(folder, self.files)
        lines = read_log(folder)
        grids = {path.stem.removeprefix("sample-"): path for path in find_files(folder, "sample-*.png")}
        self._writer = None
        if is_rank_zero():
            from torch.utils.tensorboard import SummaryWriter  # optional, and takes seconds

            self._writer = SummaryWriter(str(folder))
            for line in lines:
                self.add_scalars(line.pop("step"), line)
            for number, path in grids.items():
                # Those without a checkpoint are drawn again.
                if number.isdecimal() and int(number) <= step and (folder / f"diffusion-{number}.pt").exists():
                    self.add_images(int(number), to_tensor(Image.open(path)))

    def add_scalars(self, step: int, scalars: dict[str, float | None]) -> None:  # noqa: D102
        for name, value in scalars.items():
            if self._writer and value is not None:
                self._writer.add_scalar(name, value, step)

    def add_images(self, step: int, grid: Tensor) -> None:  # noqa: D102
        if self._writer:
            self._writer.add_image("samples", grid, step)

    def close(self) -> None:  # noqa: D102
        if self._writer:
            self._writer.close()


class WeightsAndBiases(Logger):
    """A run of Weights & Biases, after `wandb login` or with WANDB_MODE=offline; a resumed run continues it."""

    package, files = "wandb", "wandb-id.txt"

    def __init__(self, folder: Path, step: int):
        """Raises InputError if W&B starts no run, for instance without a login."""
        super().__init__(folder, step)
        self._run = None

        @on_rank_zero
        def start() -> None:
            import wandb  # optional, and takes seconds

            known = read_if_there(folder / self.files) or uuid.uuid4().hex.encode()
            write_atomically(folder / self.files, lambda file: file.write(known))
            project = os.environ.get("WANDB_PROJECT", "progressive-distillation")
            options = {"project": project, "name": str(folder), "dir": folder}
            try:
                self._run = wandb.init(id=known.decode(), resume="allow", **options)
            except (wandb.Error, ValueError) as error:
                raise InputError(f"loggers: wandb: {error}") from error
            self._run.define_metric("*", step_metric="step")  # W&B's own steps cannot be repeated after a kill

        start()

    def add_scalars(self, step: int, scalars: dict[str, float | None]) -> None:  # noqa: D102
        if self._run:
            self._run.log({"step": step} | {name: value for name, value in scalars.items() if value is not None})

    def add_images(self, step: int, grid: Tensor) -> None:  # noqa: D102
        if self._run:
            import wandb

            self._run.log({"step": step, "samples": wandb.Image(to_pil_image(grid))})

    def close(self) -> None:  # noqa: D102
        if self._run:
            self._run.finish()


LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def require_loggers(settings: Optimization) -> None:
    """Raises InputError if there is no logger of a name in the configuration, or its package is not installed."""
    for name in settings.loggers:
        if name not in LOGGERS:
            raise InputError(f"loggers: {name}: should be among {', '.join(LOGGERS)}")
        package = LOGGERS[name].package
        if package and importlib.util.find_spec(package) is None:
            raise InputError(f"loggers: {name} needs a package: pip install {package}")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; an incomplete line, after a power failure, is dropped."""
    lines = []
    for text in (read_if_there(folder / LOG_NAME) or b"").splitlines():
        with suppress(ValueError, KeyError, TypeError):
            line = json.loads(text)
            line["step"] + 0  # every line has one
            lines.append(line)
    return lines
