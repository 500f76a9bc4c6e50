"""Progressive distillation: Algorithm 2 of Salimans & Ho 2022 (https://arxiv.org/abs/2202.00512).

    python distill.py --config_path configs/ddpm_32x32_v_continuous_small.yaml \\
      --teacher_model_checkpoint output/ddpm_32x32_v_continuous_small/diffusion-5000.pt \\
      --initial_sampling_steps 512 --distillation_iterations 7

A student of N steps learns to do in one step what its teacher does in two; then it is the teacher of a student of
N/2 steps. An interrupted run continues with the same command; more --distillation_iterations go on from the last.
"""

import utils  # noqa: F401 (first: from here on Ctrl-C ends quietly)

# isort: split
import argparse
from pathlib import Path

from torch import Tensor

from models.diffusion import distillation_loss, stratified
from utils import cli
from utils.checkpoints import Checkpoint, load_checkpoint
from utils.compute import DISTILLATION_PASSES, Compute
from utils.config import Config, load_config
from utils.data.batches import ImageData
from utils.data.load import load_data
from utils.errors import InputError
from utils.files import prepare_folder
from utils.process.timing import Stopwatch
from utils.training.log import table
from utils.training.loop import TrainingLoop
from utils.training.run import Run, delete_students, require_same_students
from utils.training.trainer import Trainer, require_image_for_each_rank


def parse_arguments() -> argparse.Namespace:
    """Parses the command line; flags that override the configuration are None where they are left out."""
    parser = cli.Parser(description=__doc__)
    parser.add_run_arguments("distillation", output_dir="output/distilled/<name of the config>")
    parser.add_argument(
        "--teacher_model_checkpoint",
        required=True,
        metavar="CHECKPOINT",
        help="the diffusion-<step>.pt that teaches the first student; required",
    )
    parser.add_count("--initial_sampling_steps", "steps of the first student; its teacher takes twice as many", 512)
    parser.add_count("--distillation_iterations", "how often the number of steps is halved, from twice the initial", 7)
    key = "distillation.num_training_steps_per_iteration"
    parser.add_override("--num_training_steps_per_iteration", key, int, "steps of the optimizer for each student")
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


def distill(
    teacher_checkpoint: Checkpoint, run: Run, config: Config, data: ImageData, compute: Compute, stopwatch: Stopwatch
) -> None:
    """One iteration of Algorithm 2: the student of `run`, of N steps, learns from a teacher of 2N steps."""
    settings, n = config.distillation, run.sampling_steps
    teacher = compute.for_inference(teacher_checkpoint.model(compute.device), settings.batch_size)
    student = teacher_checkpoint.model(compute.device)  # the student begins as its teacher; neither has dropout

    def learning_rate(step: int) -> float:
        return settings.initial_learning_rate(n) * (1 - step / run.num_steps)  # annealed to 0

    trainer = Trainer(student, settings, compute, learning_rate=learning_rate, seed=config.seed, sampling_steps=n)

    def losses(examples: range, i: Tensor) -> Tensor:
        x, label = data.batch(examples, shuffle=n)
        eps = trainer.noise(examples, x)
        return distillation_loss(trainer.model, teacher, x, eps, i, n, settings.loss_weighting, label)

    for _ in TrainingLoop(run, trainer, config, stopwatch, f"{2 * n} -> {n}"):
        i = 1 + (stratified(settings.batch_size) * n).long()  # t = i/N, i in {1, ..., N}
        trainer.take_step(losses, i)


def main() -> None:
    """Checks everything before anything is written; then trains one student after the other."""
    stopwatch = Stopwatch()
    arguments = parse_arguments()
    config = load_config(arguments.config_path, cli.overrides(arguments))
    settings = config.distillation
    require_image_for_each_rank(settings)
    students = halvings(arguments.initial_sampling_steps, arguments.distillation_iterations)
    device = cli.choose_device(arguments.device)
    teacher = load_checkpoint(arguments.teacher_model_checkpoint)
    teacher.require_same_model(config, arguments.config_path)
    teacher.require_teacher_of(students[0])
    folder = Path(arguments.output_dir or Path("output", "distilled", Path(arguments.config_path).stem))
    if not arguments.restart:
        require_same_students(folder, students)
    folders = [folder / f"{iteration}_{sampling_steps}" for iteration, sampling_steps in enumerate(students, start=1)]
    passes = DISTILLATION_PASSES * settings.batch_size * sum(map(settings.num_training_steps, students))
    data = None  # until there is something to do

    for student_folder, sampling_steps in zip(folders, students, strict=True):
        run = Run.of_student(student_folder, config, teacher, sampling_steps, restart=arguments.restart)
        if run.finished:
            print(f"{run.folder}: finished, all {run.num_steps} steps")
        else:
            if data is None:
                data = load_data(config, device)
                teacher.require_same_classes(data.description.class_names)
                prepare_folder(folder)  # everything has been checked
                if arguments.restart:
                    delete_students(folder)
                    cli.restart_is_done()
            run.require_data(data.description)
            if teacher.trained_on and teacher.trained_on.data_hash != data.description.data_hash:
                print(f"note: the images are others than those that {teacher.path} was trained on")
            compute = Compute.choose(config, device, passes=passes, training=True, previous=run.previous_compute)
            print(f"distilling on {compute}, to {sampling_steps} steps, writing to {run.folder}")
            distill(teacher, run, config, data, compute, stopwatch)
        teacher = load_checkpoint(run.final_checkpoint)  # the student becomes the next teacher

    print(table(folders))
    print(f"the student of {teacher.sampling_steps} steps is {teacher.path}, its samples lie beside it")


if __name__ == "__main__":
    cli.run(main)
