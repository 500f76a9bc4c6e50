"""Progressive distillation: Algorithm 2 of Salimans & Ho 2022 (https://arxiv.org/abs/2202.00512).

    python distill.py --config_path configs/ddpm_32x32_v_continuous_small.yaml \\
      --teacher_model_checkpoint output/ddpm_32x32_v_continuous_small/diffusion-3000.pt \\
      --initial_sampling_steps 512 --distillation_iterations 7

A student of N steps learns to do in one step what its teacher does in two; then it is the teacher of a student of
N/2 steps. An interrupted run continues with the same command; more --distillation_iterations go on from the last.
"""

import utils  # noqa: F401 (first: from here on Ctrl-C ends quietly)

# isort: split
import argparse
import gc
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from models.diffusion import Diffusion, conversion_loss, distillation_loss, stratified
from models.guidance import guided, random_scales, relative_to_scale
from utils import cli
from utils.checkpoint_files import load_checkpoint
from utils.checkpoints import Checkpoint
from utils.compute import DISTILLATION_PASSES, Compute
from utils.config import load_config
from utils.data.batches import ImageData
from utils.data.load import load_data
from utils.errors import InputError
from utils.files import locked
from utils.process.timing import Stopwatch
from utils.schema import Config, Distillation
from utils.training.board import require_tensorboard
from utils.training.log import table
from utils.training.loop import TrainingLoop
from utils.training.run import BESIDE, Run
from utils.training.students import CONVERSION_NAME, delete_students, require_same_students
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


def require_same_images(teacher: Checkpoint, config: Config, data: ImageData, is_student: bool) -> None:
    """Refuses to go on with other images than the student who now teaches has learned from; says so of a teacher.

    Where black and white lie is only said, too.

    Raises:
        InputError: the student has seen others.
    """
    if teacher.has_seen_other_images(data.description.data_hash):
        if is_student:
            raise InputError(f"{teacher.path}: the images have changed since it was trained on them; {BESIDE}")
        print(f"note: the images are others than those that {teacher.path} was trained on")
    before, now = (each.data.saturation_margin for each in (teacher.config, config))
    if before != now:
        print(f"note: data.saturation_margin is {now:g}, but {teacher.path} was trained with {before:g}, better kept")


def needs_conversion(teacher: Checkpoint, settings: Distillation) -> bool:
    """Whether the students must be something that the teacher is not: take the guidance scale, or predict v where it
    predicts eps.

    Raises:
        InputError: it cannot teach that.
    """
    scales, prediction = settings.guidance, settings.prediction or teacher.predicts
    if scales and teacher.guidance and scales != teacher.guidance:
        raise InputError(f"distillation.guidance: {scales}, but {teacher.path} was distilled for {teacher.guidance}")
    for scale in scales or ():
        teacher.require_guidance(scale)
    if prediction != teacher.predicts and teacher.sampling_steps:
        raise InputError(
            f"distillation.prediction: {prediction}, but {teacher.path} predicts {teacher.predicts}, and has "
            f"learned so at the times of {teacher.sampling_steps} steps only; its first teacher can teach another"
        )
    return prediction != teacher.predicts or (scales is not None and teacher.guidance is None)


def students_trainer(student: Diffusion, run: Run, config: Config, compute: Compute) -> Trainer:
    """Trains a student with a learning rate that is annealed to 0."""
    settings, n = config.distillation, run.sampling_steps

    def learning_rate(step: int) -> float:
        return settings.initial_learning_rate(n) * (1 - step / run.num_steps)

    return Trainer(student, settings, compute, learning_rate=learning_rate, seed=config.seed, sampling_steps=n)


def learn_conversion(
    teacher_checkpoint: Checkpoint, run: Run, config: Config, data: ImageData, compute: Compute, stopwatch: Stopwatch
) -> None:
    """The student learns to say v where its teacher says eps, and what it says with guidance, given the scale.

    Algorithm 1 of Meng et al. 2022: at all times, the student's v should be the teacher's. The loss is weighted as its
    teacher's was: where that one did not learn to be exact, as of v near t = 1 where it says eps, it is not imitated.
    """
    settings, weighting = config.distillation, config.weighting_of_student(run.sampling_steps)
    teacher = compute.for_inference(teacher_checkpoint.model(compute.device), settings.batch_size)
    torch.manual_seed(config.seed)  # for the layers that take the scale, which its teacher may not have
    student = teacher_checkpoint.model(compute.device, takes_guidance=run.guidance is not None)
    student = replace(student, prediction=run.prediction or student.prediction)
    trainer = students_trainer(student, run, config, compute)

    def losses(examples: range, t: Tensor, s: Tensor | None) -> Tensor:
        x, label = data.batch(examples)
        eps = trainer.noise(examples, x)
        student_s, teacher_s = guided(trainer.model, s), guided(teacher, s)
        loss = conversion_loss(student_s, teacher_s, x, eps, t, weighting, label)
        return relative_to_scale(loss, s)

    for _ in TrainingLoop(run, trainer, config, stopwatch, "conversion"):
        t = stratified(settings.batch_size)
        trainer.take_step(losses, t, random_scales(run.guidance, settings.batch_size))


def distill(
    teacher_checkpoint: Checkpoint, run: Run, config: Config, data: ImageData, compute: Compute, stopwatch: Stopwatch
) -> None:
    """One iteration of Algorithm 2: the student of `run`, of N steps, learns from a teacher of 2N steps."""
    settings, n = config.distillation, run.sampling_steps
    weighting = config.weighting_of_student(n)
    teacher = compute.for_inference(teacher_checkpoint.model(compute.device), settings.batch_size)
    student = teacher_checkpoint.model(compute.device)  # the student begins as its teacher; neither has dropout
    trainer = students_trainer(student, run, config, compute)

    def losses(examples: range, i: Tensor, s: Tensor | None) -> Tensor:
        x, label = data.batch(examples, shuffle=n)
        eps = trainer.noise(examples, x)
        student_s, teacher_s = guided(trainer.model, s), guided(teacher, s)
        loss = distillation_loss(student_s, teacher_s, x, eps, i, n, weighting, label)
        return relative_to_scale(loss, s)

    for _ in TrainingLoop(run, trainer, config, stopwatch, f"{2 * n} -> {n}"):
        i = 1 + (stratified(settings.batch_size) * n).long()  # t = i/N, i in {1, ..., N}
        trainer.take_step(losses, i, random_scales(run.guidance, settings.batch_size))


def said_by_conversion(run: Run) -> str:
    """What a student learns to say in its conversion, for the message at its beginning."""
    prediction = [run.prediction] if run.prediction else []
    guidance = ["guidance from {:g} to {:g}".format(*run.guidance)] if run.guidance else []
    return " and ".join(prediction + guidance)


def main() -> None:
    """Checks everything before anything is written; then trains one student after the other."""
    stopwatch = Stopwatch()
    arguments = parse_arguments()
    config = load_config(arguments.config_path, cli.overrides(arguments))
    settings = config.distillation
    require_image_for_each_rank(settings)
    require_tensorboard(settings)
    students = halvings(arguments.initial_sampling_steps, arguments.distillation_iterations)
    device = cli.choose_device(arguments.device)
    teacher = load_checkpoint(arguments.teacher_model_checkpoint)
    teacher.require_same_model(config, arguments.config_path)
    teacher.require_teacher_of(students[0])
    folder = Path(arguments.output_dir or Path("output", "distilled", Path(arguments.config_path).stem))
    converts = needs_conversion(teacher, settings)
    if not arguments.restart:
        require_same_students(folder, students, converts)
    stages = [(folder / f"{iteration}_{n}", n) for iteration, n in enumerate(students, start=1)]
    if converts:
        stages.insert(0, (folder / CONVERSION_NAME, None))
    passes = DISTILLATION_PASSES * settings.batch_size * sum(settings.num_training_steps(n) for _, n in stages)
    data = None  # until there is something to do
    previous = None  # all students compute as the first one did, whenever they are begun

    with ExitStack() as held:
        for stage_folder, n in stages:
            run = Run.of_student(stage_folder, config, teacher, n, restart=arguments.restart)
            previous = run.previous_compute or previous
            if run.finished:
                print(f"{run.folder}: finished, all {run.num_steps} steps")
            else:
                if data is None:
                    data = load_data(config, device)
                    teacher.require_same_classes(data.description.class_names)
                    held.enter_context(locked(folder))  # all has been checked; no other process may delete the students
                    if arguments.restart:
                        delete_students(folder)
                        cli.restart_is_done()
                run.use_data(data.description)
                require_same_images(teacher, config, data, is_student=teacher.path.is_relative_to(folder))
                compute = Compute.choose(config, device, passes=passes, training=True, previous=previous)
                previous = compute.as_dict()
                what = f"{n} steps" if n else said_by_conversion(run)
                step = run.state["step"] if run.state else 0
                print(f"distilling on {compute}, to {what}, from step {step}, writing to {run.folder}")
                learn = distill if n else learn_conversion
                learn(teacher, run, config, data, compute, stopwatch)
                gc.collect()  # a compiled network holds itself
            teacher = load_checkpoint(run.final_checkpoint)  # the student becomes the next teacher

    print(table(stage_folder for stage_folder, _ in stages))
    print(f"the student of {teacher.sampling_steps} steps is {teacher.path}, its samples lie beside it")


if __name__ == "__main__":
    cli.run(main)
