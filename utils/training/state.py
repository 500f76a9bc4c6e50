"""training_state.pt: everything needed to resume a run, and whether a run may be resumed.

A run's folder contains `training_state.pt`, `diffusion-<step>.pt`, `sample-<step>.png`, `metrics.jsonl` and perhaps
further logs. State, samples and checkpoint are written in this order: a checkpoint implies that everything of its step
is there, and a state suffices to make the rest.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError, model_validator
from typing_extensions import TypeAliasType

from utils.checkpoints.tensor_files import read_torch_file
from utils.config.reading import differences, explain, flatten
from utils.config.schema import Count, NonNegativeInt, Section
from utils.system.errors import InputError
from utils.system.files import delete_files, exists, find_files, write_atomically
from utils.training.loggers import LOG_NAME, LOGGERS
from utils.training.stage import ELSEWHERE, KEEP, Stage

STATE_NAME, FORMAT_VERSION = "training_state.pt", 7
# In the order of deletion: a state without its checkpoints would be resumed, so it goes first.
RUN_FILES = (STATE_NAME, "diffusion-*.pt", "sample-*.png", LOG_NAME)
TEMPORARY_FILES = tuple(f".{name}.????????.tmp" for name in RUN_FILES)  # that a kill may leave

# Keys that do not change the weights: a run is resumed even if they differ. Paths only appear in messages.
WITHOUT_EFFECT = {"compile", "data_hash", "parent_path", "teacher_path"}
WITHOUT_EFFECT |= {f"data.{key}" for key in ("root", "test_root", "background", "most_broken", "class_names")}
WITHOUT_EFFECT |= {
    f"{section}.{key}"
    for section in ("training", "distillation", "matching")
    for key in ("accumulation_steps", "save_and_sample_every_n", "checkpoint_every_minutes", "log_every_n", "loggers")
}


class Computed(Section):
    """How the last process computed: see utils/checkpoints/compute.py."""

    precision: Literal["fp32", "bf16"]
    compile: bool


# A value of a configuration, or a section of them.
Plain = TypeAliasType("Plain", "str | int | float | bool | list[Plain] | dict[str | int, Plain] | None")


class State(Section):
    """The contents of a training state."""

    identity: dict[str, Plain]
    num_training_steps: Count
    step: NonNegativeInt
    compute: Computed
    trainers: dict[str, Any]  # their states, by name

    @model_validator(mode="after")
    def _is_within_the_run(self) -> "State":
        if self.step > self.num_training_steps:
            raise ValueError(f"step: {self.step} of {self.num_training_steps}")
        return self


def read_state(stage: Stage) -> dict[str, Any] | None:
    """The state in the folder of a stage, if there is one. Raises InputError if it is damaged, or of another run."""
    path = stage.folder / STATE_NAME
    if not exists(path):
        for checkpoint in find_files(stage.folder, "diffusion-*.pt"):
            raise InputError(
                f"{checkpoint}: in the way: a checkpoint without {STATE_NAME}, so its run cannot be resumed; "
                "another --output_dir keeps it (train.py can start from its weights), --restart deletes it"
            )
        return None
    state = read_torch_file(path, FORMAT_VERSION, State.model_fields.keys(), "a training state")
    try:
        State.model_validate(state)
    except ValidationError as error:
        raise damaged(path, ": ".join(explain(error, State))) from error
    _require_same_run(path, state["identity"], stage.identity())
    _require_num_steps(path, state, stage)
    return state


def write_state(folder: Path, **state: Any) -> None:
    """Writes what resuming after a step needs: the fields of a `State`."""
    content = {"format_version": FORMAT_VERSION} | state
    write_atomically(folder / STATE_NAME, lambda file: torch.save(content, file))


def damaged(path: Path, problem: str) -> InputError:
    """The error for a training state that cannot be used."""
    return InputError(
        f"{path}: damaged: {problem}; the checkpoints beside it may be whole: another --output_dir keeps them, "
        "--restart deletes them and starts again"
    )


def delete_run(folder: Path) -> None:
    """Deletes the files of a run, and nothing else."""
    delete_files(folder, *RUN_FILES, *TEMPORARY_FILES, *(logger.files for logger in LOGGERS.values() if logger.files))


def _require_same_run(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name, verb in (("parent", "started from"), ("teacher", "matches")):
        if before.get(name) != now.get(name):
            first, second = (str(each.get(f"{name}_path", "random weights"))[:200] for each in (before, now))
            what = f"{first} has changed since" if first == second else f"it {verb} {first}, not {second}"
            raise InputError(f"{path}: belongs to another run: {what}; {ELSEWHERE}")
    before, now = ({key: value for key, value in flatten(each) if key not in WITHOUT_EFFECT} for each in (before, now))
    for difference in differences(before, now):
        raise InputError(f"{path}: belongs to another run: {difference}; {KEEP}")


def _require_num_steps(path: Path, state: dict[str, Any], stage: Stage) -> None:
    """Raises InputError for another number of steps, except for more steps of a finished teacher."""
    before, taken, now = state["num_training_steps"], state["step"], stage.num_training_steps
    may_grow = stage.kind == "teacher"
    if now == before or (may_grow and taken == before < now):
        return
    advice = KEEP
    if may_grow:
        advice = "only more steps continue it" if taken == before else f"{before} finishes it, then it can get more"
        advice = f"{advice}; another --output_dir starts another run"
    raise InputError(f"{path}: this run has {before} training steps ({taken} taken), and {now} are requested; {advice}")
