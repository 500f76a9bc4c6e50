"""Many processes do what one does, and outlive what one outlives; on CPUs, connected by gloo."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, call, finish, run_in_processes

from utils.system import distributed

FLAGS = ["--num_training_steps", 5, "--save_and_sample_every_n", 5, "--batch_size", 10]


@pytest.fixture(scope="module")
def lesson(tmp_path_factory) -> Path:
    """A folder with a configuration that draws all that can be drawn, and one process's training of five steps."""
    folder = tmp_path_factory.mktemp("lesson")
    text = TINY % (ROOT / "data")
    for before, now in (
        ("num_channels: 1}", "num_channels: 1, random_flip: true}"),
        ("dropout", "num_classes: 10, dropout"),
        ("training: {", "training: {class_dropout: 0.3, "),
    ):
        text = text.replace(before, now)
    (folder / "tiny.yaml").write_text(text)
    in_two = text.replace("training: {", "training: {accumulation_steps: 2, ")
    (folder / "tiny_in_two.yaml").write_text(
        in_two.replace("distillation:\n  {", "distillation:\n  {accumulation_steps: 2, ")
    )
    assert call("train.py", "--config_path", folder / "tiny.yaml", "--output_dir", folder / "one", *FLAGS) == 0
    return folder


def state_of(folder: Path) -> dict:
    return torch.load(folder / "training_state.pt", weights_only=True)["trainers"]["model"]


def losses_of(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line[key] for line in lines if "loss" in line for key in ("loss", "gradient_norm")]


def assert_same_but_for_rounding(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    assert losses_of(one) == pytest.approx(losses_of(other), rel=tolerance)
    for part in ("network", "ema"):
        mine, theirs = state_of(one)[part], state_of(other)[part]
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], atol=tolerance, rtol=0)


def test_what_processes_agree_on(tmp_path):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    code, output, errors = finish(run_in_processes(3, "tests/system/in_processes.py", cwd=tmp_path, env=environment))
    assert code == 0, errors
    assert output.split("\n") == ["all is well in 0", ""]  # the others are not heard


def test_two_processes_and_accumulation_are_one_process(lesson):
    """The same shuffle, noise, times, flips, classes, dropout, clipping, averages and pictures."""
    code, output, errors = finish(
        run_in_processes(2, "train.py", "--config_path", "tiny_in_two.yaml", "--output_dir", "two", *FLAGS, cwd=lesson)
    )
    assert code == 0, errors
    assert output.count("training on cpu in fp32, processes: 2, from step 0") == 1
    assert_same_but_for_rounding(lesson / "one", lesson / "two")
    assert (lesson / "one/sample-5.png").read_bytes() == (lesson / "two/sample-5.png").read_bytes()


def distilled(lesson: Path, suffix: str, iterations: int) -> tuple[Path, Path]:
    """The students of one process, and those of two with accumulation, by the configurations of this suffix."""
    flags = ["--teacher_model_checkpoint", lesson / "one/diffusion-5.pt", "--initial_sampling_steps", 4]
    flags += ["--distillation_iterations", iterations]
    one, two = lesson / f"one_students{suffix}", lesson / f"two_students{suffix}"
    in_two = ["--config_path", f"tiny_in_two{suffix}.yaml", *flags, "--output_dir", two.name]
    process = run_in_processes(2, "distill.py", *in_two, cwd=lesson)
    assert call("distill.py", "--config_path", lesson / f"tiny{suffix}.yaml", *flags, "--output_dir", one) == 0
    code, _, errors = finish(process)
    assert code == 0, errors
    return one, two


def test_students_of_two_processes_are_those_of_one(lesson):
    one, two = distilled(lesson, "", iterations=2)
    for student in ("1_4", "2_2"):
        assert_same_but_for_rounding(one / student, two / student, tolerance=1e-4)


def test_guidance_is_learned_by_two_processes_as_by_one(lesson):
    """What begins at zero has gradients near zero, whose rounding Adam enlarges; so the losses are less alike."""
    for name in ("tiny", "tiny_in_two"):
        text = (lesson / f"{name}.yaml").read_text()
        guided = "distillation:\n  {guidance: [1, 4], num_conversion_steps: 4, "
        (lesson / f"{name}_guided.yaml").write_text(text.replace("distillation:\n  {", guided))
    folders = distilled(lesson, "_guided", iterations=1)
    for stage in ("0_conversion", "1_4"):
        one, two = (losses_of(folder / stage) for folder in folders)
        assert one == pytest.approx(two, rel=1e-2)
        assert stage != "0_conversion" or one[:2] == pytest.approx(two[:2], rel=1e-5)


def test_pictures_are_the_same_whatever_the_number_of_processes(lesson):
    flags = [
        "--checkpoint",
        lesson / "one/diffusion-5.pt",
        "--num_samples",
        10,
        "--batch_size",
        3,
        "--sampling_steps",
        3,
    ]
    assert call("sample.py", *flags, "--output", lesson / "one.png") == 0
    code, _, errors = finish(run_in_processes(2, "sample.py", *flags, "--output", "two.png", cwd=lesson))
    assert code == 0, errors
    assert (lesson / "one.png").read_bytes() == (lesson / "two.png").read_bytes()


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the processes of torchrun in /proc")
def test_a_run_that_lost_a_process_is_started_again_and_ends_as_if_nothing_had_been(lesson):
    """Then one process takes it further, and says that there were two."""
    flags = ["--config_path", "tiny.yaml", "--num_training_steps", 60, "--save_and_sample_every_n", 10]
    undisturbed = run_in_processes(2, "train.py", *flags, "--output_dir", "undisturbed", cwd=lesson)
    assert finish(undisturbed)[0] == 0
    earlier = ["--config_path", lesson / "tiny.yaml", "--output_dir", lesson / "killed", "--seed", 1]
    assert call("train.py", *earlier, *FLAGS) == 0
    flags += ["--output_dir", "killed", "--restart"]  # deletes that other run, and not what came after it
    process = run_in_processes(2, "train.py", *flags, max_restarts=1, cwd=lesson)
    while not (lesson / "killed/diffusion-10.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    code, output, errors = finish(process)
    assert code == 0, errors
    assert output.count("training on cpu") == 2 and output.count("from step 0,") == 1
    assert "another process of this run has ended" in errors and "without --restart resumes" in errors
    one, other = state_of(lesson / "undisturbed"), state_of(lesson / "killed")
    assert all(torch.equal(one[part][name], other[part][name]) for part in ("network", "ema") for name in one[part])


def test_what_is_wrong_is_said_once(lesson):
    flags = ["--config_path", "tiny.yaml", "--output_dir", "small", "--batch_size", 1]
    code, _, errors = finish(run_in_processes(2, "train.py", *flags, cwd=lesson))
    assert code == 1  # torchrun's own
    said = [line for line in errors.splitlines() if "train.py: error:" in line]
    assert len(said) == 1 and "training.batch_size: 1 is less than 2, one image for each process" in said[0]
    assert not (lesson / "small").exists()


LEFT_OVER = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29513"}


def test_variables_left_over_from_torchrun_do_not_hang(lesson):
    start = partial(subprocess.Popen, cwd=lesson, env=os.environ | LEFT_OVER, stdout=subprocess.PIPE, text=True)
    assert "--config_path" in start([sys.executable, ROOT / "train.py", "--help"]).communicate(timeout=60)[0]
    process = start([sys.executable, ROOT / "train.py", "--config_path", "tiny.yaml"], stderr=subprocess.PIPE)
    said = process.stderr.readline()  # after 15 seconds
    assert "process 0 of 2 waits for the others, at 127.0.0.1: the environment variables RANK and WORLD_SIZE" in said
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143


def test_a_process_alone_is_rank_zero_of_one():
    assert distributed.rank() == 0 and distributed.world_size() == 1 and distributed.is_rank_zero()
    assert distributed.micro_batches(10, 3) == [slice(0, 3), slice(3, 6), slice(6, 10)]
    assert list(distributed.distributed_map(str.upper, "abc")) == ["A", "B", "C"]
    assert distributed.all_gather(7) == [7] and distributed.all_reduce_max(3, 4, timeout=distributed.STEP_TIMEOUT) == [
        3,
        4,
    ]
    assert distributed.is_first_to_print("x") and distributed.is_first_to_print("x")
