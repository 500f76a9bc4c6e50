"""What a distillation will train."""

from pathlib import Path

import pytest
from conftest import ROOT

from utils.checkpoints.checkpoint import load_checkpoint
from utils.config.schema import Config, Distillation
from utils.training.stage import distillation_stages, plan_of

BY_STUDENT = Distillation.model_validate(
    {"num_training_steps_per_iteration": {"default": 20, 16: 100, 8: 400}, "learning_rate": {"default": 2e-6, 8: 1e-3}}
)


@pytest.mark.parametrize(
    ("students", "plan"),
    [
        ([32, 16, 8], "32: 20 steps at 2e-06; 16: 100 steps at 2e-06; 8: 400 steps at 0.001"),
        ([512, 256], "512, 256: 20 steps at 2e-06"),
        (
            [24, 12],
            "24, 12: 20 steps at 2e-06; note: the configuration names 16, 8 sampling steps, which no student takes",
        ),
    ],
)
def test_the_plan_says_what_each_student_gets_and_which_keys_are_no_students(students, plan):
    assert plan_of(BY_STUDENT, students) == f"training steps and learning rate by sampling steps: {plan}"


@pytest.mark.parametrize(("guidance", "samplers"), [(None, "ancestral ancestral ddim"), ([1.0, 2.0], "ddim ddim ddim")])
def test_students_are_sampled_by_what_suits_them(guidance, samplers):
    teacher = load_checkpoint(ROOT / "pretrained/mnist-teacher.safetensors")
    settings = {"training": {"class_dropout": 0.1}, "distillation": {"guidance": guidance}}
    config = Config.model_validate(teacher.config.model_dump() | settings)
    teacher = teacher.model_copy(update={"config": config})
    *_, sixteen, eight, four = distillation_stages(config, Path("here"), teacher, [16, 8, 4])
    assert [stage.sampling.sampler for stage in (sixteen, eight, four)] == samplers.split()
