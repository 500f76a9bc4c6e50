"""A session: one command that trains. It opens the runs of its stages, and checks everything before it writes."""

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from utils.checkpoints.checkpoint import Checkpoint, build_model
from utils.checkpoints.compute import PASSES, Compute, choose_device
from utils.data.datasets import load_data
from utils.data.images import ImageData
from utils.system import cli, distributed
from utils.system.errors import InputError, first_of
from utils.system.files import delete_files, exists, locked, prepare_folder, remove_if_empty
from utils.training.loggers import require_loggers
from utils.training.run import Run
from utils.training.stage import Stage, require_same_stages, stage_folders
from utils.training.state import ELSEWHERE, STATE_NAME, TEMPORARY_FILES, delete_run, read_state


class Session(ExitStack):
    """Context manager for a command that trains one or more stages with the same data.

    The first unfinished run loads the data, locks the folder, and carries out --restart.
    """

    def __init__(self, arguments: argparse.Namespace, folder: Path, stages: list[Stage]):
        """Raises InputError if the settings need something that is missing, or the folder has another distillation."""
        super().__init__()
        self.folder, self.restart, self.config = folder, arguments.restart, stages[0].config
        settings = stages[0].settings
        _require_image_for_each_rank(stages[0])
        require_loggers(settings)
        self.device = choose_device(arguments.device)
        self.is_distillation = stages[0].kind in ("converted", "student")
        if self.is_distillation and not self.restart:
            require_same_stages(folder, stages)
        self.passes = PASSES[settings.section] * settings.batch_size * sum(stage.num_training_steps for stage in stages)
        self._data: ImageData | None = None
        self._compute = None  # of an earlier run: all students compute as the first one did

    def open(self, stage: Stage) -> Run | None:
        """The run of a stage, resumed if its folder contains one; None if it is finished."""
        state = None if self.restart else read_state(stage)
        self._compute = state["compute"] if state else self._compute
        if state and state["step"] == stage.num_training_steps and exists(stage.final_checkpoint):
            print(f"{stage.folder}: finished, all {stage.num_training_steps} training steps")
            return None
        data = self._data or load_data(self.config, self.device)
        self._require_same_images(stage, state, data)
        build_model(self.config, torch.device("meta"), takes_guidance=stage.guidance is not None)  # or refuses
        compute = Compute.choose(self.config, self.device, passes=self.passes, training=True, previous=self._compute)
        run = Run(stage, state, data, compute)
        if self._data is None:
            self._begin(stage)
        prepare_folder(stage.folder)
        delete_files(stage.folder, *TEMPORARY_FILES)
        self._data, self._compute = data, compute.as_dict()
        print(f"{stage.title} on {compute}, from step {run.step}, {len(data)} images, writing to {stage.folder}")
        return run

    def _begin(self, stage: Stage) -> None:
        """All checks are done: locks the folder, and carries out --restart."""
        self.enter_context(locked(self.folder))
        if self.restart:
            earlier = stage_folders(self.folder) if self.is_distillation else [self.folder]
            for needed in stage.sources:
                if needed.path.resolve().parent in [path.resolve() for path in earlier]:
                    what = f"{needed.path}, which this run starts from"
                    raise InputError(f"--restart: would delete {what}; use another --output_dir")
            for path in earlier:
                delete_run(path)
                remove_if_empty(path)
            cli.restart_is_done()

    def _require_same_images(self, stage: Stage, state: dict[str, Any] | None, data: ImageData) -> None:
        """Raises InputError if the images or classes differ from those of the run, or of a student that now teaches.

        Prints a note if the images of a teacher from elsewhere, or its saturation margin, differ.
        """
        data_hash = data.description.data_hash
        if state and state["identity"].get("data_hash") != data_hash:
            raise InputError(
                f"{stage.folder / STATE_NAME}: the images or their classes have changed: a file or a folder was added "
                f"or removed, or pixels changed; {ELSEWHERE}"
            )
        for source in stage.sources:
            self._compare_images(stage, source, data)

    def _compare_images(self, stage: Stage, teacher: Checkpoint, data: ImageData) -> None:
        before, now = (config.data.saturation_margin for config in (teacher.config, self.config))
        if before != now:
            print(f"note: data.saturation_margin is {now:g}, but {teacher.path} was trained with {before:g}: keep it")
        if stage.kind == "teacher":
            return
        teacher.require_same_classes(names := data.description.class_names)
        if names and teacher.config.network.num_classes and not teacher.known_class_names:
            listed = first_of([f"{number} is {name}" for number, name in enumerate(names)])
            what = "does not name its classes; they are taken to be those of the data (or of data.class_names)"
            print(f"note: {teacher.path} {what}: {listed}")
        if teacher.differs_in_images(data.description.data_hash):
            if teacher.path.is_relative_to(self.folder):
                raise InputError(f"{teacher.path}: the images have changed since it was trained on them; {ELSEWHERE}")
            print(f"note: the images differ from those that {teacher.path} was trained on")


def _require_image_for_each_rank(stage: Stage) -> None:
    settings = stage.settings
    needed = distributed.world_size() * settings.accumulation_steps
    if settings.batch_size < needed:
        why = "one image for each process and accumulation step"
        raise InputError(f"{settings.section}.batch_size: {settings.batch_size} is less than {needed}, {why}")
