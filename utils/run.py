"""A run and its folder: what an earlier process left there, and whether it may be continued.

The folder holds `training_state.pt` (what resuming needs), `diffusion-<step>.pt`, `sample-<step>.png` and
`metrics.jsonl`. They are written in the order state, picture, checkpoint: where there is a checkpoint, all that
belongs to its step is there; where there is a state, the rest can be made from it.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from utils.config import Count, NonNegativeInt, Section, differences, explain
from utils.distributed import by_first
from utils.errors import InputError
from utils.files import LOCK_NAME, locked
from utils.torch_file import read_torch_file

STATE_NAME = "training_state.pt"
CHECKPOINT_NAME = re.compile(r"diffusion-(\d+)\.pt")
STATE_VERSION = 2
RUN_FILES = (STATE_NAME, "diffusion-*.pt", "sample-*.png", "metrics.jsonl", ".*.tmp", LOCK_NAME)


class Computed(Section):
    """How the last process computed: see utils/compute.py."""

    precision: Literal["fp32", "bf16"]
    compile: bool
    processes: Count


class Header(Section):
    """What a training state holds besides tensors."""

    identity: dict[str, Any]
    num_steps: Count
    step: NonNegativeInt
    compute: Computed

    @model_validator(mode="after")
    def is_within_the_run(self) -> "Header":
        """No more steps have been taken than there are."""
        if self.step > self.num_steps:
            raise ValueError(f"step: {self.step} of {self.num_steps}")
        return self


STATE_KEYS = Header.model_fields.keys() | {"network", "ema", "optimizer"}


@dataclass
class Run:
    """A training of `num_steps` steps in a folder.

    Attributes:
        identity: what makes this run what it is; everything must be the same to continue it.
        state: what the last process saved in the folder, None before anything has been saved.
    """

    folder: Path
    identity: dict[str, Any]
    num_steps: int
    state: dict[str, Any] | None

    @classmethod
    @by_first
    def find(
        cls, folder: Path, identity: dict[str, Any], num_steps: int, *, restart: bool = False, may_grow: bool = False
    ) -> "Run":
        """The run with what is in its folder, if that is its own; `restart` does not look.

        A finished run may be continued with more steps where `may_grow` is set.

        Raises:
            InputError: the state in the folder is that of another run, or there are checkpoints without a state.
        """
        path = folder / STATE_NAME
        if restart or not path.exists():
            for checkpoint in [] if restart else folder.glob("diffusion-*.pt"):
                raise InputError(f"{checkpoint}: in the way: a checkpoint without {STATE_NAME}; --restart deletes it")
            return cls(folder, identity, num_steps, None)
        state = read_torch_file(path, STATE_KEYS, "a training state", STATE_VERSION)
        try:
            Header.model_validate({key: state[key] for key in Header.model_fields})
        except ValidationError as error:
            raise InputError(f"{path}: damaged: {': '.join(explain(error, Header))}; --restart begins anew") from error
        for difference in differences(state["identity"], identity):
            raise InputError(f"{path}: belongs to another run: {difference}; --restart begins anew")
        grows = may_grow and state["step"] == state["num_steps"] < num_steps
        if num_steps != state["num_steps"] and not grows:
            advice = "only a finished run can be taken further" if may_grow else "--restart begins anew"
            raise InputError(
                f"{path}: number of training steps is {state['num_steps']} there ({state['step']} taken) and "
                f"{num_steps} here; {advice}"
            )
        return cls(folder, identity, num_steps, state)

    @property
    def begun_compute(self) -> dict[str, Any] | None:
        """How an earlier process of this run computed."""
        return self.state and self.state["compute"]

    @property
    def state_path(self) -> Path:
        """Where the state is saved."""
        return self.folder / STATE_NAME

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of a step is saved."""
        return self.folder / f"diffusion-{step}.pt"

    @property
    def final_checkpoint(self) -> Path:
        """Where the checkpoint of the last step is saved."""
        return self.checkpoint_path(self.num_steps)

    @property
    def finished(self) -> bool:
        """Whether the last step has been taken, and all that belongs to it has been written."""
        return self.state is not None and self.state["step"] == self.num_steps and exists(self.final_checkpoint)


@by_first
def exists(path: Path) -> bool:
    """Whether the first process sees this file."""
    return path.exists()


@by_first
def delete_run(folder: Path) -> None:
    """Deletes what a run writes, and nothing else.

    Raises:
        InputError: another process is writing there.
    """
    with locked(folder):
        for pattern in RUN_FILES:
            for path in folder.glob(pattern):
                path.unlink()


@by_first
def student_folders(folder: Path) -> list[tuple[Path, int, int]]:
    """The students' folders that are there: (path, iteration, number of sampling steps)."""
    matches = [(path, re.fullmatch(r"(\d+)_(\d+)", path.name)) for path in sorted(folder.glob("*_*"))]
    return [(path, int(match[1]), int(match[2])) for path, match in matches if match]


@by_first
def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the latest step in a run's folder, None if there is none."""
    steps = {int(match[1]): path for path in folder.glob("*.pt") if (match := CHECKPOINT_NAME.fullmatch(path.name))}
    return steps[max(steps)] if steps else None
