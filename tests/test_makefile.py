import re
import subprocess

import pytest
from conftest import ROOT

from utils.config.reading import load_config


def makefile_variable(name: str) -> str:
    """The value of a variable as make itself sees it."""
    line = f"print: ; @echo $({name})"
    command = ["make", "--no-print-directory", "-f", "Makefile", "--eval", line, "print"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(("prefix", "count"), [("", 6), ("FASHION_", 3)])
def test_a_lesson_expects_what_its_configuration_makes(prefix, count):
    config = load_config(ROOT / makefile_variable(f"{prefix}CONFIG"))
    assert makefile_variable(f"{prefix}TEACHER").endswith(f"/diffusion-{config.training.num_training_steps}.pt")
    recipes = (ROOT / "Makefile").read_text()
    students = re.findall(rf"\({prefix}STUDENTS\)/(\d+)_(\d+)/diffusion-(\d+)\.pt", recipes)
    assert len(students) == count
    for iteration, sampling_steps, step in students:
        assert int(sampling_steps) == 1024 // 2 ** int(iteration)
        assert int(step) == config.distillation.of_student(int(sampling_steps))[0]
