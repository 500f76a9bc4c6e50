import json
import math
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from one_weight import make_run, make_stage, step_down, take_steps

from utils.checkpoints.compute import Compute
from utils.system.errors import InputError
from utils.system.signals import Interrupted
from utils.training.run import Run
from utils.training.state import read_state


def test_what_a_run_writes(tmp_path):
    take_steps(make_run(tmp_path, num_steps=25))
    names = sorted(path.name for path in tmp_path.iterdir())
    steps = (10, 20, 25)
    expected = [f"diffusion-{s}.pt" for s in steps] + [f"sample-{s}.png" for s in steps]
    assert names == sorted([*expected, "metrics.jsonl", "training_state.pt"])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 10, 12, 16, 20, 24, 25]
    assert lines[0]["loss"] > lines[-1]["loss"] > 0
    numbers = {"loss", "gradient_norm", "skipped_steps", "learning_rate", "steps_per_second"}
    assert lines[0].keys() == {"step"} | numbers


def test_two_networks_are_saved_logged_and_resumed_like_one(tmp_path):
    names = ("model", "auxiliary")
    run = make_run(tmp_path / "stopped", names=names)
    for step in run.steps():
        step_down(run.trainers["model"], (run.trainers["model"].network.weight - 1).square())
        step_down(run.trainers["auxiliary"], (run.trainers["auxiliary"].network.weight + 2).square())
        if step == 25:
            break
    states = []
    for folder in ("stopped", "undisturbed"):
        run = make_run(tmp_path / folder, names=names)
        assert run.step == (20 if folder == "stopped" else 0)
        for _ in run.steps():
            step_down(run.trainers["model"], (run.trainers["model"].network.weight - 1).square())
            step_down(run.trainers["auxiliary"], (run.trainers["auxiliary"].network.weight + 2).square())
        states.append(read_state(make_stage(tmp_path / folder))["trainers"])
        lines = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["loss"] < 0.1 and lines[-1]["auxiliary/loss"] < 0.5 and len(lines) == 12
    for name, sign in (("model", 1), ("auxiliary", -1)):
        one, other = (state[name]["network"]["weight"] for state in states)
        assert torch.equal(one, other) and one.sign() == sign
    with pytest.raises(InputError, match="damaged: other: not the state of a trainer"):
        make_run(tmp_path / "stopped", names=("other",))


def test_ten_skipped_steps_in_a_row_stop_the_run_and_the_last_checkpoint_stands(tmp_path):
    run = make_run(tmp_path)
    trainer = run.trainers["model"]
    with pytest.raises(InputError, match="the loss was not finite in 10 updates in a row"):
        for step in run.steps():
            step_down(trainer, (trainer.network.weight - 1).square() * (math.nan if 13 <= step < 23 else 1))
    state = read_state(make_stage(tmp_path))
    assert state["step"] == 20 and torch.isfinite(state["trainers"]["model"]["network"]["weight"])


def test_skipped_steps_stop_a_run_that_is_hardly_ever_logged(tmp_path):
    run, taken = make_run(tmp_path, log_every_n=1000, save_and_sample_every_n=1000), []
    with pytest.raises(InputError, match="the loss was not finite in 10 updates in a row, up to step 20 or before"):
        for step in run.steps():
            taken.append(step)
            step_down(run.trainers["model"], run.trainers["model"].network.weight * (math.nan if step >= 4 else 1))
    assert len(taken) == 20


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_finishes_the_step_and_saves(tmp_path, signum):
    run, before = make_run(tmp_path / "stopped"), signal.getsignal(signum)
    trainer = run.trainers["model"]
    with pytest.raises(Interrupted, match="stopped, after step 14") as stopped:
        for step in run.steps():
            if step == 13:
                signal.raise_signal(signum)
            step_down(trainer, (trainer.network.weight - 1).square())
    assert stopped.value.exit_code == 128 + signum
    assert signal.getsignal(signum) == before
    assert read_state(make_stage(tmp_path / "stopped"))["step"] == 14
    weights = []
    for name in ("stopped", "undisturbed"):
        take_steps(make_run(tmp_path / name))
        state = read_state(make_stage(tmp_path / name))
        weights.append(state["trainers"]["model"]["network"]["weight"])
    assert torch.equal(*weights)


def test_a_state_is_saved_every_so_many_minutes(tmp_path, monkeypatch):
    run, saved = make_run(tmp_path), []
    trainer = run.trainers["model"]
    clock = iter(range(0, 100_000, 90))  # a minute and a half from look to look
    monkeypatch.setattr("utils.training.run.time.monotonic", lambda: next(clock))
    for step in run.steps():
        step_down(trainer, (trainer.network.weight - 1).square())
        if (tmp_path / "training_state.pt").exists():
            saved.append(read_state(make_stage(tmp_path))["step"])
        if step == 30:
            break
    assert run.stage.settings.checkpoint_every_minutes == 10
    assert sorted(set(saved)) == [7, 10, 16, 20, 26, 30]  # a look a step, and one at each save


@pytest.mark.parametrize(("signum", "at_step"), [(signal.SIGINT, 10), (signal.SIGTERM, 40)])
def test_told_to_stop_while_it_draws_it_does_not_finish_the_drawing(tmp_path, monkeypatch, signum, at_step):
    """Nor does a distillation go on with the next student, after the last step of this one."""
    run, drawn = make_run(tmp_path), []
    draw = Run._draw

    def told(self, *arguments):
        if self.step == at_step:
            signal.raise_signal(signum)
        draw(self, *arguments)
        drawn.append(self.step)

    monkeypatch.setattr(Run, "_draw", told)
    with pytest.raises(Interrupted, match=f"after step {at_step}") as stopped:
        take_steps(run)
    assert stopped.value.exit_code == 128 + signum and at_step not in drawn
    assert read_state(make_stage(tmp_path))["step"] == at_step
    monkeypatch.undo()
    take_steps(make_run(tmp_path))
    assert (tmp_path / "diffusion-40.pt").exists()


def test_skipped_steps_at_the_end_stop_a_run_of_any_length(tmp_path):
    run = make_run(tmp_path, num_steps=19, log_every_n=1000, save_and_sample_every_n=1000)
    trainer = run.trainers["model"]
    with pytest.raises(InputError, match="the loss was not finite in 10 updates in a row"):
        for step in run.steps():
            step_down(trainer, (trainer.network.weight - 1).square() * (math.nan if step >= 5 else 1))
    assert not list(tmp_path.glob("diffusion-*.pt"))


def test_the_teacher_is_compiled_for_the_batches_that_it_gets(tmp_path, monkeypatch):
    run, sizes = make_run(tmp_path, batch_size=12, accumulation_steps=3), []
    run.stage = replace(run.stage, parent=SimpleNamespace(model=lambda device: None))
    monkeypatch.setattr(Compute, "for_inference", lambda self, model, batch_size: sizes.append(batch_size))
    run.teacher()
    assert sizes == [4]
