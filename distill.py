"""Progressive distillation: Algorithm 2 of Salimans & Ho 2022 (https://arxiv.org/abs/2202.00512).

    python distill.py --config_path configs/ddpm_32x32_v_continuous_small.yaml \\
      --teacher_model_checkpoint output/ddpm_32x32_v_continuous_small/diffusion-3600.pt \\
      --initial_sampling_steps 512 --distillation_iterations 10

An N-step student learns to do in one step what its teacher does in two; then it becomes the teacher of an N/2-step
student. The same command resumes an interrupted run; a larger --distillation_iterations adds students.
"""

import argparse
import gc
from dataclasses import replace
from pathlib import Path

from models.diffusion import conversion_loss, distillation_loss, stratified
from models.guidance import guided, random_scales, relative_to_scale
from utils.checkpoints.checkpoint import load_checkpoint
from utils.config.reading import load_config
from utils.config.schema import MOST_STEPS
from utils.system import cli
from utils.system.errors import InputError
from utils.training.run import Run
from utils.training.session import Session
from utils.training.stage import distillation_stages, plan_of


def parse_arguments() -> argparse.Namespace:
    """Parses the command line; flags that override the configuration are None if they are not given."""
    parser = cli.Parser(description=__doc__)
    parser.add_run_arguments("distillation", output_dir="output/distilled/<name of the config>")
    parser.add_argument(
        "--teacher_model_checkpoint",
        required=True,
        metavar="CHECKPOINT",
        help="the diffusion-<step>.pt that teaches the first student; required",
    )
    parser.add_count("--initial_sampling_steps", "steps of the first student; its teacher takes twice as many", 512)
    parser.add_count("--distillation_iterations", "number of students, each with half the steps of the one before", 7)
    key = "distillation.num_training_steps_per_iteration"
    parser.add_override("--num_training_steps_per_iteration", key, "optimizer steps for each student")
    return parser.parse_args()


def halvings(initial_sampling_steps: int, iterations: int) -> list[int]:
    """The number of sampling steps of each student: N, N/2, N/4, ... Raises InputError if these are not integers."""
    if initial_sampling_steps > MOST_STEPS // 2:
        raise InputError(f"--initial_sampling_steps {initial_sampling_steps}: should be at most {MOST_STEPS // 2}")
    if initial_sampling_steps % 2 ** (iterations - 1):
        possible = (initial_sampling_steps & -initial_sampling_steps).bit_length()
        raise InputError(
            f"--initial_sampling_steps {initial_sampling_steps}: allows at most {possible} --distillation_iterations; "
            f"{iterations} need a multiple of {2 ** (iterations - 1)}"
        )
    return [initial_sampling_steps // 2**k for k in range(iterations)]


def distill(run: Run) -> None:
    """One iteration of Algorithm 2: an N-step student learns from a 2N-step teacher.

    Where the network takes the guidance scale s, both get the same s (Meng et al. 2022, Algorithm 2).
    """
    stage, batch_size = run.stage, run.stage.settings.batch_size
    n = stage.sampling.steps
    teacher = run.teacher()
    student = run.add_trainer("model", stage.initial_model(run.device))  # starts with the teacher's weights
    for _ in run.steps():  # between steps: logs, saves, and stops if interrupted
        i = 1 + (stratified(batch_size) * n).long()  # t = i/N, i in {1, ..., N}
        s = random_scales(stage.guidance, batch_size)
        for part in student.micro_batches():  # this rank's shard of the global batch, in slices
            x, label, eps = run.batch(part)
            s_part = None if s is None else s[part]
            models = guided(student.model, s_part), guided(teacher, s_part)
            loss = distillation_loss(*models, x, eps, i[part], n, stage.loss_weighting, label)
            student.backward(relative_to_scale(loss, s_part))
        student.update()  # clips the gradients, updates weights (with a learning rate that falls to 0) and EMA


def convert(run: Run) -> None:
    """Before the first halving: trains a student to predict v, or to take the guidance scale, if its teacher does not.

    Algorithm 1 of Meng et al. 2022: at all times, not only at t = i/N, the student learns to predict the teacher's v.
    """
    stage, batch_size = run.stage, run.stage.settings.batch_size
    clip = stage.parent.sampling.clip
    teacher = run.teacher()
    student = run.add_trainer("model", stage.initial_model(run.device))
    for _ in run.steps():
        t, s = stratified(batch_size), random_scales(stage.guidance, batch_size)
        for part in student.micro_batches():
            x, label, eps = run.batch(part)
            s_part = None if s is None else s[part]
            models = guided(student.model, s_part), guided(teacher, s_part)
            loss = conversion_loss(*models, x, eps, t[part], stage.loss_weighting, label, clip)
            student.backward(relative_to_scale(loss, s_part))
        student.update()


def main() -> None:
    """Checks everything before anything is written; then trains one student after another."""
    arguments = parse_arguments()
    config = load_config(arguments.config_path, cli.overrides(arguments))
    students = halvings(arguments.initial_sampling_steps, arguments.distillation_iterations)
    teacher = load_checkpoint(arguments.teacher_model_checkpoint)
    teacher.require_same_model(config, arguments.config_path)
    teacher.require_teacher_of(students[0])
    folder = Path(arguments.output_dir or Path("output", "distilled", Path(arguments.config_path).stem))
    stages = distillation_stages(config, folder, teacher, students)
    print(plan_of(config.distillation, students))
    with Session(arguments, folder, stages) as session:
        for stage in stages:
            run = session.open(replace(stage, parent=teacher))
            if run:
                train = distill if stage.kind == "student" else convert
                train(run)
            teacher = load_checkpoint(stage.final_checkpoint)  # the student becomes the next teacher
            del run
            gc.collect()  # a compiled network is part of a reference cycle
    print(f"the {teacher.sampling.steps}-step student is saved as {teacher.path}, with its samples beside it")


if __name__ == "__main__":
    cli.run(main)
