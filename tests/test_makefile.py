import math
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from utils.config.reading import load_config


def makefile_variable(name: str, lesson: str) -> str:
    """The value of a variable as make itself sees it."""
    rule = f"print: ; @echo $({name})\n"
    command = ["make", "--no-print-directory", "-f", "Makefile", "-f", "-", f"LESSON={lesson}", "print"]
    return subprocess.run(command, cwd=ROOT, input=rule, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("lesson", ["digits", "fashion", "faces"])
def test_a_lesson_expects_what_its_configuration_makes(lesson):
    config = load_config(ROOT / makefile_variable("CONFIG", lesson))
    assert makefile_variable("TEACHER", lesson).endswith(f"/diffusion-{config.training.num_training_steps}.pt")
    matched = makefile_variable("ALL_MATCHED", lesson).split()
    assert len(matched) == 4
    for n, path in zip((8, 4, 2, 1), matched, strict=True):
        student = makefile_variable(f"STUDENT_{n}", lesson)
        steps = config.distillation.of_student(n)[0]
        assert student.endswith(f"/{10 - int(math.log2(n))}_{n}/diffusion-{steps}.pt")
        assert path.endswith(f"/{n}/diffusion-{config.matching.of_student(n)['num_training_steps']}.pt")
    if config.distillation.guidance:
        conversion = f"/0_conversion/diffusion-{config.distillation.num_conversion_steps}.pt"
        assert makefile_variable("MATCHED_TEACHER", lesson).endswith(conversion)


def test_pytorch_without_cuda_is_one_variable():
    command = ["make", "-n", "-W", "requirements.txt", "TORCH=cpu", makefile_variable("INSTALLED", "digits")]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "pip install --quiet torch torchvision --index-url" in printed and "/whl/cpu" in printed


def old_python(folder: Path) -> Path:
    """A program that claims to be Python 3.10, and only writes down its arguments."""
    path = folder / "python3.10"
    path.write_text(
        f"""#!/bin/sh
if [ "$1" = -c ]; then exec {sys.executable} -c "import sys; sys.version_info = (3, 10, 4)
$2"; fi
echo "$@" >> {folder}/calls
mkdir -p .venv/bin .venv/lib/python3.10
ln -sf "$0" .venv/bin/python
"""
    )
    path.chmod(0o755)
    return path


def test_an_old_python_is_refused_before_anything_is_installed_and_a_new_one_starts_anew(tmp_path):
    for name in ("Makefile", "requirements.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    python = old_python(tmp_path)

    def make(makefile: str = "Makefile") -> subprocess.CompletedProcess:
        command = ["make", "-f", makefile, f"PYTHON={python}", ".venv/installed-3.10"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    refused = make()
    assert refused.returncode != 0 and "needs Python 3.11 or newer" in refused.stderr
    assert not (tmp_path / "calls").exists() and not (tmp_path / ".venv").exists()
    (tmp_path / "any").write_text((tmp_path / "Makefile").read_text().replace("(3, 11)", "(3, 10)"))
    (tmp_path / ".venv/lib/python3.9").mkdir(parents=True)  # an environment of another Python
    assert make("any").returncode == 0
    assert (tmp_path / "calls").read_text().splitlines()[0] == "-m venv --clear .venv"


def test_a_script_says_which_python_it_needs(tmp_path):
    code = "import sys; sys.version_info = (3, 10, 4); sys.argv = ['train.py']; import utils"
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 2 and finished.stderr.startswith("train.py: error: needs Python 3.11 or newer")
