"""Runs that are killed at random moments, again and again, and end bit for bit as one that was left alone."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, call, run_in_processes

EVERY = {"--save_and_sample_every_n": 15}
TRAINING = {"--num_training_steps": 900} | EVERY
DISTILLATION = {"--initial_sampling_steps": 8, "--distillation_iterations": 3} | EVERY
DISTILLATION |= {"--teacher_model_checkpoint": "teacher/diffusion-6.pt", "--num_training_steps_per_iteration": 250}


@pytest.fixture
def lesson(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    text = TINY % (ROOT / "data")
    for before, now in (
        ("dropout", "num_classes: 10, dropout"),
        ("training: {", "training: {class_dropout: 0.3, "),
        ("distillation:\n  {", "distillation:\n  {guidance: [1, 4], num_conversion_steps: 250, "),
    ):
        text = text.replace(before, now)
    Path("tiny.yaml").write_text(text)
    assert call("train.py", "--config_path", "tiny.yaml", "--output_dir", "teacher") == 0
    return tmp_path


def flags(options: dict, folder: str) -> list[object]:
    pairs = {"--config_path": "tiny.yaml", "--output_dir": folder} | options
    return [part for pair in pairs.items() for part in pair]


def killed_until_done(command: list[object], draw: random.Random) -> int:
    """Starts a command until it ends by itself; how often it was killed."""
    kills = 0
    while True:
        process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            _, said = process.communicate(timeout=draw.uniform(2.5, 7))  # half of it passes before the first step
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
        else:
            assert process.returncode == 0, said
            return kills


def workers_killed_until_done(process: subprocess.Popen, draw: random.Random) -> int:
    """Kills one or all of torchrun's processes, which it starts again; how often."""
    kills = 0
    while True:
        try:
            _, said = process.communicate(timeout=draw.uniform(5, 11))
        except subprocess.TimeoutExpired:
            workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for worker in draw.sample(workers, draw.randint(1, len(workers))):
                os.kill(int(worker), 9)
            kills += bool(workers)
        else:
            assert process.returncode == 0, said
            return kills


def tensors_of(value: object, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {name: value}
    parts = value.items() if isinstance(value, dict) else ()
    return {key: tensor for k, part in parts for key, tensor in tensors_of(part, f"{name}.{k}").items()}


def assert_same(one: Path, other: Path) -> None:
    """Every checkpoint, every training state and every picture below the folders, bit for bit."""
    names = sorted(path.relative_to(one) for pattern in ("*.pt", "*.png") for path in one.rglob(pattern))
    assert names == sorted(path.relative_to(other) for pattern in ("*.pt", "*.png") for path in other.rglob(pattern))
    assert len(names) > 50
    for name in names:
        if name.suffix == ".png":
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
            continue
        mine, theirs = (tensors_of(torch.load(folder / name, weights_only=True)) for folder in (one, other))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine), name


def kill(enough: int, run: Callable[[str, random.Random], int]) -> None:
    """Runs, each in a folder of its own, until there have been enough kills; each must end like `undisturbed`."""
    kills, rounds, draw, start = 0, 0, random.Random(0), time.time()
    while kills < enough:
        kills += run(f"killed_{rounds}", draw)
        assert_same(Path("undisturbed"), Path(f"killed_{rounds}"))
        rounds += 1
    print(f"{kills} kills in {rounds} runs, {time.time() - start:.0f} s: all ended bit for bit as the undisturbed")


@pytest.mark.parametrize(("script", "options"), [("train.py", TRAINING), ("distill.py", DISTILLATION)])
def test_thirty_kills(lesson, script, options):
    assert call(script, *flags(options, "undisturbed")) == 0
    kill(30, lambda folder, draw: killed_until_done([sys.executable, ROOT / script, *flags(options, folder)], draw))


def test_ten_kills_under_torchrun(lesson):
    process = run_in_processes(2, "train.py", *flags(TRAINING, "undisturbed"))
    assert process.wait() == 0

    def run(folder: str, draw: random.Random) -> int:
        return workers_killed_until_done(
            run_in_processes(2, "train.py", *flags(TRAINING, folder), max_restarts=100), draw
        )

    kill(10, run)
