import json
import math
import signal

import pytest
import torch
from one_weight import CONFIG, make_loop, step_down, take_steps
from utils.errors import InputError
from utils.files import locked
from utils.process.interruption import Interrupted
from utils.training.loop import TrainingLoop

from utils.training.run import Run, delete_run


def test_what_a_run_writes(tmp_path):
    take_steps(make_loop(tmp_path, num_steps=25))
    names = sorted(path.name for path in tmp_path.iterdir())
    steps = (10, 20, 25)
    expected = [f"diffusion-{s}.pt" for s in steps] + [f"sample-{s}.png" for s in steps]
    assert names == sorted([*expected, ".lock", "metrics.jsonl", "training_state.pt"])
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in written if "loss" in line]
    assert [line["step"] for line in lines] == [4, 8, 10, 12, 16, 20, 24, 25]
    assert [line["step"] for line in written if "seconds" in line] == list(steps)
    assert lines[0]["loss"] > lines[-1]["loss"] > 0
    assert lines[0].keys() == {
        "step",
        "loss",
        "gradient_norm",
        "skipped_steps",
        "learning_rate",
        "steps_per_second",
    }


def test_ten_skipped_steps_in_a_row_stop_the_run_and_the_last_checkpoint_stands(tmp_path):
    loop = make_loop(tmp_path)
    trainer = loop.trainer
    with pytest.raises(InputError, match="the loss was not finite in 10 steps in a row"):
        for step in loop:
            step_down(trainer, (trainer.network.weight - 1).square() * (math.nan if 13 <= step < 23 else 1))
    state = Run.open(tmp_path, {"a": 1}, 40).state
    assert state["step"] == 20 and torch.isfinite(state["network"]["weight"])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_finishes_the_step_and_saves(tmp_path, signum):
    loop, before = make_loop(tmp_path / "stopped"), signal.getsignal(signum)
    trainer = loop.trainer
    with pytest.raises(Interrupted, match="stopped, after step 14") as stopped:
        for step in loop:
            if step == 13:
                signal.raise_signal(signum)
            step_down(trainer, (trainer.network.weight - 1).square())
    assert stopped.value.exit_code == 128 + signum
    assert signal.getsignal(signum) == before
    assert Run.open(tmp_path / "stopped", {"a": 1}, 40).state["step"] == 14
    take_steps(make_loop(tmp_path / "stopped"))
    take_steps(make_loop(tmp_path / "undisturbed"))
    one, other = (torch.load(tmp_path / x / "training_state.pt", weights_only=True) for x in ("stopped", "undisturbed"))
    assert torch.equal(one["network"]["weight"], other["network"]["weight"])


def test_a_state_is_saved_every_so_many_minutes(tmp_path, monkeypatch):
    loop, saved = make_loop(tmp_path), []
    trainer = loop.trainer
    clock = iter(range(0, 100_000, 90))  # a minute and a half from look to look
    monkeypatch.setattr("utils.training.loop.time.monotonic", lambda: next(clock))
    loop.saved_at = 0
    for step in loop:
        step_down(trainer, (trainer.network.weight - 1).square())
        if (tmp_path / "training_state.pt").exists():
            saved.append(torch.load(tmp_path / "training_state.pt", weights_only=True)["step"])
        if step == 30:
            break
    assert CONFIG.training.checkpoint_every_minutes == 10
    assert sorted(set(saved)) == [8, 10, 17, 20, 27, 30]  # a look a step, and one at each save


def test_two_processes_do_not_write_the_same_run(tmp_path):
    with locked(tmp_path):
        with pytest.raises(InputError, match="another process is writing there"):
            take_steps(make_loop(tmp_path))
        with pytest.raises(InputError, match="another process is writing there"):
            delete_run(tmp_path)
    take_steps(make_loop(tmp_path, num_steps=10))


@pytest.mark.parametrize(("signum", "at_step"), [(signal.SIGINT, 10), (signal.SIGTERM, 40)])
def test_told_to_stop_while_it_draws_it_does_not_finish_the_drawing(tmp_path, monkeypatch, signum, at_step):
    """Nor does a distillation go on with the next student, after the last step of this one."""
    loop, evaluations = make_loop(tmp_path), []
    draw = TrainingLoop._draw

    def told(self):
        if self.trainer.step == at_step:
            signal.raise_signal(signum)
        draw(self)
        evaluations.append(self.trainer.step)

    monkeypatch.setattr(TrainingLoop, "_draw", told)
    with pytest.raises(Interrupted, match=f"after step {at_step}") as stopped:
        take_steps(loop)
    assert stopped.value.exit_code == 128 + signum and at_step not in evaluations
    assert Run.open(tmp_path, {"a": 1}, 40).state["step"] == at_step
    monkeypatch.undo()
    take_steps(make_loop(tmp_path))
    assert (tmp_path / "diffusion-40.pt").exists()
