"""Moment matching: Algorithm 2 of Salimans et al. 2024 (https://arxiv.org/abs/2406.04103), for students of few steps.

    python match.py --config_path configs/ddpm_32x32_v_continuous_small.yaml \\
      --teacher_model_checkpoint output/ddpm_32x32_v_continuous_small/diffusion-3600.pt \\
      --student_checkpoint output/distilled/ddpm_32x32_v_continuous_small/9_2/diffusion-220.pt

A student of progressive distillation imitates single samples of its teacher. Here it is trained further, for the
ancestral sampler: among its predictions that lead to the same noisier image, the mean should be what the teacher
predicts from that image. If distill.py made 0_conversion/, its checkpoint is the teacher to match. The same command
resumes an interrupted run.
"""

import argparse
from pathlib import Path

import torch

from models.diffusion import stratified
from models.guidance import guided, random_scales, relative_to_scale
from models.moment_matching import auxiliary_loss, difference, sampled_step, student_loss
from utils.checkpoints.checkpoint import load_checkpoint
from utils.config.reading import load_config
from utils.system import cli
from utils.system.errors import InputError, counted
from utils.training.run import Run
from utils.training.session import Session
from utils.training.stage import MATCHING_LAST_RATE, annealed, matching_stage

MOST_STEPS = 500  # with many more, the last would start below the smallest time that the teacher was trained at


def parse_arguments() -> argparse.Namespace:
    """Parses the command line; flags that override the configuration are None if they are not given."""
    parser = cli.Parser(description=__doc__)
    parser.add_run_arguments("matching", output_dir="output/matched/<name of the config>/<steps>")
    help = "the diffusion-<step>.pt to match: of distill.py's 0_conversion/, if there is one, or of train.py; required"
    parser.add_argument("--teacher_model_checkpoint", required=True, metavar="CHECKPOINT", help=help)
    help = "the student of distill.py to start from (default: the teacher itself)"
    parser.add_argument("--student_checkpoint", metavar="CHECKPOINT", help=help)
    parser.add_count("--sampling_steps", "sampling steps of the student (default: those of --student_checkpoint)")
    parser.add_override("--num_training_steps", "matching.num_training_steps", "updates of the student")
    parser.add_override("--learning_rate", "matching.learning_rate", "of the student, at its first step", type=float)
    parser.add_override("--ema_decay", "matching.ema_decay", "decay of the EMA; 0.98 suits 100 steps", type=float)
    return parser.parse_args()


def match(run: Run) -> None:
    """Algorithm 2: in each step, one or more updates of the auxiliary network, then one of the student.

    Where the networks take the guidance scale, all three get the same.
    """
    stage, batch_size = run.stage, run.stage.settings.batch_size
    n, own = stage.sampling.steps, stage.settings.of_student(stage.sampling.steps)
    updates = own["auxiliary_updates"]
    rate = annealed(own["auxiliary_learning_rate"], stage.num_training_steps, MATCHING_LAST_RATE)
    teacher = run.teacher()
    student = run.add_trainer("model", stage.initial_model(run.device))
    auxiliary = run.add_trainer("auxiliary", stage.teacher.model(run.device), rate, updates)
    for step in run.steps():  # between steps: logs, saves, and stops if interrupted
        draws = [(stratified(batch_size), random_scales(stage.guidance, batch_size)) for _ in range(updates + 1)]
        for update, (u, scale) in enumerate(draws):
            trained = auxiliary if update < updates else student
            number = step * (updates + 1) + update  # of the batch: each update has its own
            for part in trained.micro_batches():
                x, label, eps = run.batch(part, number)
                noise, scale_part = run.noise("noise of z_s", x, part, number), None if scale is None else scale[part]
                models = [guided(model, scale_part) for model in (student.model, auxiliary.model, teacher)]
                with torch.set_grad_enabled(trained is student):
                    sampled = sampled_step(models[0], x, eps, noise, u[part], n, label)
                if trained is auxiliary:
                    loss = auxiliary_loss(*models[1:], sampled, label)
                else:
                    mismatch = difference(*models[1:], sampled, label)
                    run.record("x_auxiliary - x_teacher", mismatch.square().mean(dim=(1, 2, 3)).sqrt())
                    loss = student_loss(sampled, mismatch, teacher.schedule.angle(sampled.s))
                trained.backward(relative_to_scale(loss, scale_part))
            trained.update()


def main() -> None:
    """Checks everything before anything is written; then trains the student."""
    arguments = parse_arguments()
    config = load_config(arguments.config_path, cli.overrides(arguments))
    teacher = load_checkpoint(arguments.teacher_model_checkpoint)
    student = load_checkpoint(arguments.student_checkpoint) if arguments.student_checkpoint else teacher
    steps = arguments.sampling_steps or (student.sampling.steps if student.is_student else None)
    if steps is None:
        raise InputError("--sampling_steps: missing; needed where the student starts as its teacher")
    if steps > MOST_STEPS:
        raise InputError(f"{counted(steps, 'sampling step')}: should be at most {MOST_STEPS}")
    for checkpoint in (teacher, student):
        checkpoint.require_same_model(config, arguments.config_path)
    folder = Path(arguments.output_dir or Path("output", "matched", Path(arguments.config_path).stem, str(steps)))
    stage = matching_stage(config, folder, teacher, student, steps)
    with Session(arguments, folder, [stage]) as session:
        run = session.open(stage)
        if run:
            match(run)
    print(f"the {steps}-step student is saved as {stage.final_checkpoint}, with its samples beside it")


if __name__ == "__main__":
    cli.run(main)
