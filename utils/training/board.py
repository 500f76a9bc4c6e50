"""The board: the log and the pictures of a run as TensorBoard events, in its folder.

    pip install tensorboard
    tensorboard --logdir output

Events cannot be taken back, and a run that was killed takes steps again. So whenever it starts, its events are made
anew from the log and the pictures, which hold each step once.
"""

import importlib.util
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from utils.errors import InputError
from utils.files import delete_files
from utils.schema import Optimization
from utils.training.log import EVENTS, read_log
from utils.training.run import checkpoints_of

SCALARS = ("loss", "gradient_norm", "learning_rate", "steps_per_second")


def require_tensorboard(settings: Optimization) -> None:
    """Refuses to begin a run that is to be seen on the board without what writes it.

    Raises:
        InputError: the package is missing.
    """
    if settings.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError("tensorboard: true needs the package tensorboard: pip install tensorboard")


class Board:
    """The events of a run in a folder, which one process writes; one that is not wanted does nothing."""

    def __init__(self, folder: Path, *, wanted: bool, writes: bool):
        """Writes what the run has logged and drawn until now, in place of any earlier events; called by all ranks."""
        self._writer = None
        if not wanted:
            return
        delete_files(folder, EVENTS)
        lines, checkpoints = read_log(folder), checkpoints_of(folder)
        if not writes:
            return
        from torch.utils.tensorboard import SummaryWriter  # optional; and it takes seconds to import

        self._writer = SummaryWriter(str(folder))
        for line in lines:
            self.add_line(line)
        for step in checkpoints:  # a picture without its checkpoint will be drawn again
            picture = folder / f"sample-{step}.png"
            if picture.exists():
                self.add_picture(step, to_tensor(Image.open(picture)))

    def add_line(self, line: dict[str, Any]) -> None:
        """Adds the numbers of a line of metrics.jsonl; a loss that was not finite is left out."""
        for name in SCALARS:
            if self._writer and line.get(name) is not None:
                self._writer.add_scalar(name, line[name], line["step"])

    def add_picture(self, step: int, picture: Tensor) -> None:
        """Adds a grid of samples, [3, H, W] in [0, 1]."""
        if self._writer:
            self._writer.add_image("samples", picture, step)

    def close(self) -> None:
        """Writes what has not been written yet."""
        if self._writer:
            self._writer.close()
