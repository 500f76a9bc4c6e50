"""The students of a distillation: a folder for each, in the folder of all."""

import re
from pathlib import Path

from utils.errors import InputError
from utils.files import exists, find_files, remove_if_empty
from utils.training.run import BESIDE, KEEP, checkpoints_of, delete_run

CONVERSION_NAME = "0_conversion"  # the folder of the stage before the halvings


def student_folders(folder: Path) -> list[tuple[Path, int, int]]:
    """The students' folders that are there: (path, iteration, number of sampling steps)."""
    matches = [(path, re.fullmatch(r"(\d+)_(\d+)", path.name)) for path in find_files(folder, "*_*")]
    return [(path, int(match[1]), int(match[2])) for path, match in matches if match]


def require_same_students(folder: Path, students: list[int], converts: bool) -> None:
    """Refuses a folder with students of other numbers of steps than these, the first iteration's first.

    Or with a conversion before them where none is wanted, or without.

    Raises:
        InputError: naming the student and both initial numbers of steps.
    """
    converted = exists(folder / CONVERSION_NAME)
    if converted != converts and (converted or student_folders(folder)):
        there, here = ("with", "none") if converted else ("without", "one")
        raise InputError(
            f"{folder}: another distillation's: it was {there} a conversion, and distillation.guidance and .prediction "
            f"ask for {here} here; {BESIDE}"
        )
    for path, iteration, steps in student_folders(folder):
        if iteration <= len(students) and steps != students[iteration - 1]:
            raise InputError(
                f"{path}: another run's student: --initial_sampling_steps was {steps * 2 ** (iteration - 1)} there and "
                f"is {students[0]} here; {KEEP}"
            )


def delete_students(folder: Path) -> None:
    """Deletes an earlier distillation, and nothing else."""
    conversion = [folder / CONVERSION_NAME] if exists(folder / CONVERSION_NAME) else []
    for path in [path for path, _, _ in student_folders(folder)] + conversion:
        delete_run(path)
        remove_if_empty(path)


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the latest step in a run's folder, None if there is none."""
    checkpoints = checkpoints_of(folder)
    return checkpoints[max(checkpoints)] if checkpoints else None
