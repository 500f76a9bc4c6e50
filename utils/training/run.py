"""A run, one training in one folder: what identifies it, and whether it is finished or may be continued.

The folder holds `training_state.pt` (what continuing needs), `diffusion-<step>.pt`, `sample-<step>.png`,
`metrics.jsonl` and, where wanted, TensorBoard events. They are written in the order state, picture, checkpoint: where
there is a checkpoint, all that belongs to its step is there; where there is a state, the rest can be made from it.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError, model_validator

from models.diffusion import Prediction
from utils.checkpoints import Checkpoint, TrainedOn
from utils.config import differences, explain, flatten
from utils.errors import InputError
from utils.files import delete_files, exists, find_files, locked, read_torch_file, write_atomically
from utils.files.disk import LOCK_NAME
from utils.schema import Config
from utils.sections import Count, NonNegativeInt, Section
from utils.training.log import EVENTS, LOG_NAME

STATE_NAME = "training_state.pt"
STATE_VERSION = 3
# In the order of deletion: a state without its checkpoints would be continued, so it goes first.
RUN_FILES = (STATE_NAME, "diffusion-*.pt", "sample-*.png", LOG_NAME, EVENTS, ".*.tmp")

# What was done before there was a setting: a run of that time goes on if it is set so.
BEFORE_THERE_WAS = {
    "training.class_dropout": 0.0,
    "training.weight_decay": 0.0,
    "training.optimizer": "adam",
    "distillation.optimizer": "adam",
    "distillation.weight_decay": 0.0,
    "network.resample_blocks": False,
    "network.type": "unet",
    "data.saturation_margin": 0.0,
    "diffusion.betas": None,
    "distillation.prediction": None,
}
# Keys that do not change the weights: the run goes on when they differ. The paths only name a file in a message.
WITHOUT_EFFECT = {
    "compile",
    "data.root",
    "data.test_root",
    "data.background",
    "data.most_broken",
    "data_hash",
    "teacher_path",
}
WITHOUT_EFFECT |= {
    f"{section}.{key}"
    for section in ("training", "distillation")
    for key in (
        "accumulation_steps",
        "save_and_sample_every_n",
        "checkpoint_every_minutes",
        "log_every_n",
        "tensorboard",
    )
}
BESIDE = "another --output_dir begins another run beside it, --restart deletes it"
KEEP = f"the same value continues it, {BESIDE}"


class Computed(Section):
    """How the last process computed: see utils/compute.py."""

    precision: Literal["fp32", "bf16"]
    compile: bool
    processes: Count


class Header(Section):
    """The contents of a training state besides tensors."""

    identity: dict[str, Any]
    num_steps: Count
    step: NonNegativeInt
    compute: Computed

    @model_validator(mode="after")
    def is_within_the_run(self) -> "Header":
        """Refuses more steps taken than there are."""
        if self.step > self.num_steps:
            raise ValueError(f"step: {self.step} of {self.num_steps}")
        return self


STATE_KEYS = Header.model_fields.keys() | {"network", "ema", "optimizer"}


@dataclass
class Run:
    """A training of `num_steps` steps in a folder.

    Attributes:
        identity: the settings that must be the same for the run to be continued.
        state: what the last process saved in the folder, None before anything has been saved.
        sampling_steps, prediction, guidance: what the model is distilled for: see `Checkpoint`.
        trained_on: the images, None until `use_data` has been called.
    """

    folder: Path
    identity: dict[str, Any]
    num_steps: int
    state: dict[str, Any] | None
    sampling_steps: int | None
    prediction: Prediction | None = None
    guidance: list[float] | None = None
    trained_on: TrainedOn | None = None

    @property
    def undistilled(self) -> bool:
        """Whether its model is trained on images alone, and not by a teacher."""
        return (self.sampling_steps, self.prediction, self.guidance) == (None, None, None)

    @classmethod
    def of_training(cls, folder: Path, config: Config, initial: Checkpoint | None, *, restart: bool) -> "Run":
        """The run of train.py that begins with the weights of `initial`, or with random ones; see `open`."""
        without_effect = {"num_training_steps"} | (set() if config.network.num_classes else {"class_dropout"})
        unused = {"distillation": True, "sampling": True, "training": without_effect}
        identity = config.model_dump(exclude=unused)
        identity["load_model_weights_from_checkpoint"] = initial.sha256 if initial else None
        return cls.open(folder, identity, config.training.num_training_steps, restart=restart, may_grow=True)

    @classmethod
    def of_student(
        cls, folder: Path, config: Config, teacher: Checkpoint, sampling_steps: int | None, *, restart: bool
    ) -> "Run":
        """The run of distill.py for the student of so many sampling steps, or, with None, for the conversion.

        See `open`.
        """
        settings = config.distillation
        apart = {
            "num_training_steps_per_iteration",
            "learning_rate",
            "num_conversion_steps",
            "conversion_learning_rate",
        }
        identity = config.model_dump(exclude={"sampling": True, "training": True, "distillation": apart})
        identity["distillation"]["learning_rate"] = settings.initial_learning_rate(sampling_steps)
        identity |= {"teacher_model_checkpoint": teacher.sha256, "teacher_path": str(teacher.path)}
        identity["sampling_steps"] = sampling_steps
        identity["distillation"]["loss_weighting"] = config.weighting_of_student(sampling_steps)
        num_steps = settings.num_training_steps(sampling_steps)
        run = cls.open(folder, identity, num_steps, sampling_steps=sampling_steps, restart=restart)
        run.guidance = teacher.guidance or settings.guidance
        run.prediction = settings.prediction or teacher.prediction
        return run

    @classmethod
    def open(
        cls,
        folder: Path,
        identity: dict[str, Any],
        num_steps: int,
        *,
        sampling_steps: int | None = None,
        restart: bool = False,
        may_grow: bool = False,
    ) -> "Run":
        """The run, with the state that its folder holds; `restart` ignores what is there.

        A finished run may be continued with more steps where `may_grow` is set.

        Raises:
            InputError: the state in the folder is that of another run, or there are checkpoints without a state.
        """
        path = folder / STATE_NAME
        if restart or not exists(path):
            for checkpoint in [] if restart else find_files(folder, "diffusion-*.pt"):
                raise InputError(
                    f"{checkpoint}: in the way: a checkpoint without {STATE_NAME}, so its run cannot be continued; "
                    "another --output_dir leaves it alone (train.py can begin with its weights), --restart deletes it"
                )
            return cls(folder, identity, num_steps, None, sampling_steps)
        state = read_torch_file(path, {STATE_VERSION: STATE_KEYS}, "a training state")
        try:
            Header.model_validate({key: state[key] for key in Header.model_fields})
        except ValidationError as error:
            raise damaged(path, ": ".join(explain(error, Header))) from error
        there, here = (
            {key: value for key, value in flatten(one) if key not in WITHOUT_EFFECT}
            for one in (state["identity"], identity)
        )
        there = {key: value for key, value in BEFORE_THERE_WAS.items() if key in here} | there
        if there.get("teacher_model_checkpoint") != here.get("teacher_model_checkpoint"):
            before = str(state["identity"].get("teacher_path", "another file"))[:200]
            raise InputError(
                f"{path}: belongs to another run: its teacher was {before}, with other contents than "
                f"{identity.get('teacher_path')} has now; {BESIDE}"
            )
        for difference in differences(there, here):
            raise InputError(f"{path}: belongs to another run: {difference}; {KEEP}")
        _require_num_steps(path, state, num_steps, may_grow)
        return cls(folder, identity, num_steps, state, sampling_steps)

    def use_data(self, data: TrainedOn) -> None:
        """Refuses other images or classes than those that the run began with; its checkpoints will name them.

        Raises:
            InputError: they are others.
        """
        before = self.state and self.state["identity"].get("data_hash")
        if before not in (None, data.data_hash):
            raise InputError(
                f"{self.state_path}: the images or their classes have changed since: a picture or a folder more or "
                f"less, or other pixels; {BESIDE}"
            )
        self.identity["data_hash"] = data.data_hash
        self.trained_on = data

    @property
    def previous_compute(self) -> dict[str, Any] | None:
        """How the process that saved the state computed."""
        return self.state and self.state["compute"]

    @property
    def state_path(self) -> Path:
        """Where the training state is saved."""
        return self.folder / STATE_NAME

    def save_state(self, step: int, compute: dict[str, Any], tensors: dict[str, dict]) -> None:
        """Writes what continuing after this step needs."""
        header = {"identity": self.identity, "num_steps": self.num_steps, "step": step, "compute": compute}
        state = {"format_version": STATE_VERSION} | header | tensors
        write_atomically(self.state_path, lambda file: torch.save(state, file))

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of a step is saved."""
        return self.folder / f"diffusion-{step}.pt"

    def has_checkpoint(self, step: int) -> bool:
        """Whether the checkpoint of a step has been saved."""
        return exists(self.checkpoint_path(step))

    @property
    def final_checkpoint(self) -> Path:
        """Where the checkpoint of the last step is saved."""
        return self.checkpoint_path(self.num_steps)

    @property
    def finished(self) -> bool:
        """Whether the last step has been taken, and all that belongs to it has been written."""
        return self.state is not None and self.state["step"] == self.num_steps and self.has_checkpoint(self.num_steps)


def checkpoints_of(folder: Path) -> dict[int, Path]:
    """The checkpoints in a run's folder by their steps, the earliest first."""
    matches = [(path, re.fullmatch(r"diffusion-(\d+)\.pt", path.name)) for path in find_files(folder, "diffusion-*.pt")]
    return dict(sorted((int(match[1]), path) for path, match in matches if match))


def damaged(path: Path, problem: str) -> InputError:
    """The error of a training state that cannot be used."""
    return InputError(
        f"{path}: damaged: {problem}; the checkpoints beside it may be whole: another --output_dir leaves them alone, "
        "--restart deletes them and begins anew"
    )


def _require_num_steps(path: Path, state: dict[str, Any], num_steps: int, may_grow: bool) -> None:
    """Refuses another number of steps than a run began with, but for more steps of a finished one that `may_grow`."""
    there, taken = state["num_steps"], state["step"]
    if num_steps == there or (may_grow and taken == there < num_steps):
        return
    if not may_grow:
        advice = KEEP
    elif taken == there:
        advice = f"it is finished, and can only be given more: {there} or above; {BESIDE}"
    else:
        advice = f"{there} finishes it, then it can be taken further; another --output_dir begins another run"
    raise InputError(
        f"{path}: this run has {there} training steps ({taken} taken), and is now asked for {num_steps}; {advice}"
    )


def delete_run(folder: Path) -> None:
    """Deletes the files of a run, and nothing else.

    Raises:
        InputError: another process is writing there.
    """
    with locked(folder):
        delete_files(folder, *RUN_FILES)
        if os.name == "posix":  # while it is locked, or another process could take it in between
            delete_files(folder, LOCK_NAME)
    if os.name != "posix":  # which knows no locks here, and does not let an open file go
        delete_files(folder, LOCK_NAME)
