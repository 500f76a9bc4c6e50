"""Progressive distillation: Algorithm 2 of Salimans & Ho 2022 (https://arxiv.org/abs/2202.00512).

    python distill.py --config_path configs/ddpm_32x32_v_continuous_small.yaml \\
      --teacher_model_checkpoint output/ddpm_32x32_v_continuous_small/diffusion-5000.pt \\
      --initial_sampling_steps 512 --distillation_iterations 7

A student of N steps learns to do in one step what its teacher does in two; then it is the teacher of a student of
N/2 steps. An interrupted run continues with the same command; more --distillation_iterations go on from the last.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from models.diffusion import distillation_loss, stratified
from utils import cli
from utils.checkpoints import Checkpoint, fingerprint, load_checkpoint
from utils.compute import DISTILLATION, Compute
from utils.config import Config, load_config
from utils.data import ImageData, load_data
from utils.distributed import by_first
from utils.errors import InputError
from utils.files import prepare_folder
from utils.run import Run, delete_run, student_folders
from utils.timing import Stopwatch, table
from utils.training import Trainer, require_enough_images


def parse_arguments() -> argparse.Namespace:
    """The flags; those of the configuration are None where they are left out."""
    parser = cli.Parser(description=__doc__)
    parser.add_run_arguments("distillation", output_dir="output/distilled/<name of the config>")
    parser.add_argument(
        "--teacher_model_checkpoint",
        required=True,
        metavar="CHECKPOINT",
        help="the diffusion-<step>.pt that teaches the first student; required",
    )
    parser.add_argument(
        "--initial_sampling_steps",
        type=cli.positive_int,
        default=512,
        metavar="N",
        help="steps of the first student; its teacher takes twice as many (default: 512)",
    )
    parser.add_argument(
        "--distillation_iterations",
        type=cli.positive_int,
        default=7,
        metavar="N",
        help="how often the number of steps is halved, from twice the initial (default: 7)",
    )
    parser.add_override(
        "--num_training_steps_per_iteration",
        "distillation.num_training_steps_per_iteration",
        int,
        "steps of the optimizer for every student",
    )
    return parser.parse_args()


def halvings(initial_sampling_steps: int, iterations: int) -> list[int]:
    """The number of steps of each student: N, N/2, N/4, ...

    Raises:
        InputError: N cannot be halved that often.
    """
    if initial_sampling_steps % 2 ** (iterations - 1):
        possible = (initial_sampling_steps & -initial_sampling_steps).bit_length()
        raise InputError(
            f"--initial_sampling_steps {initial_sampling_steps}: cannot be halved for {iterations} "
            f"--distillation_iterations, at most for {possible}"
        )
    return [initial_sampling_steps // 2**k for k in range(iterations)]


def check_teacher(teacher: Checkpoint, config: Config, config_path: str, initial_sampling_steps: int) -> None:
    """Refuses a teacher that the students could not take over from."""
    teacher.require_same_model(config, config_path)
    if teacher.sampling_steps not in (None, 2 * initial_sampling_steps):
        raise InputError(
            f"--initial_sampling_steps {initial_sampling_steps}: {teacher.path} was distilled for "
            f"{teacher.sampling_steps} steps, so its first student takes half of them"
        )


def check_folder(folder: Path, students: list[int]) -> None:
    """Refuses to continue in a folder with students of other numbers of steps."""
    for path, iteration, steps in student_folders(folder):
        if iteration <= len(students) and steps != students[iteration - 1]:
            raise InputError(
                f"{path}: another run's student: --initial_sampling_steps was {steps * 2 ** (iteration - 1)} there and "
                f"is {students[0]} here; --restart begins anew"
            )


def identify(config: Config, teacher: Checkpoint, sampling_steps: int) -> dict[str, Any]:
    """All that the training of one student depends on, but its length."""
    apart = {"num_training_steps_per_iteration", "learning_rate", "accumulation_steps"}
    identity = config.model_dump(exclude={"data": {"test_root"}, "training": True, "distillation": apart})
    identity["distillation"]["learning_rate"] = config.distillation.initial_learning_rate(sampling_steps)
    return identity | {"teacher_model_checkpoint": fingerprint(teacher.path), "sampling_steps": sampling_steps}


@by_first
def delete_students(folder: Path) -> None:
    """Deletes an earlier distillation, and nothing else."""
    for path, _, _ in student_folders(folder):
        delete_run(path)
        if not any(path.iterdir()):
            path.rmdir()


def prepare(folder: Path, config: Config, device: torch.device, restart: bool) -> ImageData:
    """The data, and a folder without an earlier distillation if that is wanted; when all else has been checked."""
    data = load_data(config, device)
    prepare_folder(folder)
    if restart:
        delete_students(folder)
    return data


def distill(
    teacher_checkpoint: Checkpoint,
    sampling_steps: int,
    config: Config,
    data: ImageData,
    run: Run,
    compute: Compute,
    stopwatch: Stopwatch,
) -> None:
    """One iteration of Algorithm 2: a student of `sampling_steps` (N) steps learns from a teacher of 2N."""
    settings, learning_rate = config.distillation, config.distillation.initial_learning_rate(sampling_steps)
    teacher = compute.for_inference(teacher_checkpoint.model(compute.device), settings.batch_size)
    student = teacher_checkpoint.model(compute.device)  # the student begins as its teacher; neither has dropout
    trainer = Trainer(
        student,
        config,
        settings,
        run,
        learning_rate=lambda step: learning_rate * (1 - step / run.num_steps),  # annealed to 0
        sampling_steps=sampling_steps,
        compute=compute,
        stopwatch=stopwatch,
    )
    for step in trainer.steps(f"{2 * sampling_steps} -> {sampling_steps}"):
        images, labels = data.batch(step, settings.batch_size, order=sampling_steps)
        indices = 1 + (stratified(len(images)) * sampling_steps).long()  # t = i/N, i in {1, ..., N}
        noise = torch.randn_like(images)
        for x, eps, i, label in trainer.shares(images, noise, indices, labels):
            loss = distillation_loss(trainer.model, teacher, x, eps, i, sampling_steps, settings.loss_weighting, label)
            trainer.backward(loss)
        trainer.update()


def main() -> None:
    """Everything is checked first; then one student after the other."""
    stopwatch = Stopwatch()
    arguments = parse_arguments()
    config = load_config(arguments.config_path, cli.overrides(arguments))
    settings = config.distillation
    require_enough_images(settings)
    students = halvings(arguments.initial_sampling_steps, arguments.distillation_iterations)
    device = cli.choose_device(arguments.device)
    teacher = load_checkpoint(arguments.teacher_model_checkpoint)
    check_teacher(teacher, config, arguments.config_path, students[0])
    folder = Path(arguments.output_dir or Path("output", "distilled", Path(arguments.config_path).stem))
    if not arguments.restart:
        check_folder(folder, students)
    passes = DISTILLATION * settings.batch_size * sum(map(settings.num_training_steps, students))
    data = None  # until there is something to do

    for iteration, sampling_steps in enumerate(students, start=1):
        run = Run.find(
            folder / f"{iteration}_{sampling_steps}",
            identify(config, teacher, sampling_steps),
            settings.num_training_steps(sampling_steps),
            restart=arguments.restart,
        )
        if run.finished:
            print(f"{run.folder}: finished, all {run.num_steps} steps")
        else:
            data = data or prepare(folder, config, device, arguments.restart)
            compute = Compute.choose(config, device, passes=passes, training=True, begun=run.begun_compute)
            print(f"distilling on {compute}, to {sampling_steps} steps, writing to {run.folder}")
            distill(teacher, sampling_steps, config, data, run, compute, stopwatch)
        teacher = load_checkpoint(run.final_checkpoint)  # the student becomes the next teacher

    print(table(folder / f"{iteration}_{steps}" for iteration, steps in enumerate(students, start=1)))
    print(f"the student of {teacher.sampling_steps} steps is {teacher.path}, its samples lie beside it")


if __name__ == "__main__":
    cli.run(main)
