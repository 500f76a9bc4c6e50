import json
import math
import signal

import pytest
import torch
from torch import nn

import train
from models.diffusion import Diffusion
from models.noise_schedule import CosineSchedule
from utils.compute import Compute
from utils.config import Config, Training
from utils.errors import InputError
from utils.files import locked
from utils.interruption import Interrupted
from utils.run import Run, delete_run
from utils.timing import Stopwatch
from utils.training import Trainer

CONFIG = Config.model_validate(
    {
        "data": {"name": "MNIST", "image_size": 2, "num_channels": 1},
        "network": {"features": 2, "multipliers": [1], "attention_resolutions": []},
        "training": {"num_training_steps": 40, "ema_decay": 0.9, "log_every_n": 4, "save_and_sample_every_n": 10},
        "sampling": {"num_samples": 1, "sampling_steps": 1},
    }
)


class Scalar(nn.Module):
    """A network of one weight, so that what is done to it can be followed by hand."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, z, logsnr, label=None):
        return self.weight * z


def make_trainer(folder, *, num_steps=40, identity=None) -> Trainer:
    return Trainer(
        Diffusion(Scalar(), CosineSchedule(), "v"),
        CONFIG,
        CONFIG.training,
        Run.find(folder, identity or {"a": 1}, num_steps),
        learning_rate=lambda step: 0.1,
        sampling_steps=None,
        compute=Compute(torch.device("cpu"), "fp32", compile=False),
        stopwatch=Stopwatch(),
    )


def step_down(trainer: Trainer, loss: torch.Tensor) -> None:
    """A step down the gradient of a loss that is the same for all images."""
    for (losses,) in trainer.shares(loss.expand(trainer.settings.batch_size)):
        trainer.backward(losses)
    trainer.update()


def take_steps(trainer: Trainer, target: float = 1.0) -> None:
    for _ in trainer.steps("test"):
        step_down(trainer, (trainer.model.network.weight - target).square())


def test_the_average_is_warmed_up(tmp_path):
    """EMA with decay min(0.9, (1 + n) / (10 + n)), by hand."""
    trainer = make_trainer(tmp_path)
    expected = None
    for step in trainer.steps("test"):
        step_down(trainer, (trainer.model.network.weight - 1).square())
        weight = trainer.model.network.weight.item()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
        assert trainer.optimizer.ema.weight.item() == pytest.approx(expected, rel=1e-5)


def test_gradients_are_clipped(tmp_path):
    trainer = make_trainer(tmp_path, num_steps=1)
    for _ in trainer.steps("test"):
        step_down(trainer, 1000 * trainer.model.network.weight)
        first_moment = trainer.optimizer.adam.state_dict()["state"][0]["exp_avg"].item()
        assert first_moment == pytest.approx((1 - 0.9) * 1.0, rel=1e-4)


def test_what_a_run_writes(tmp_path):
    take_steps(make_trainer(tmp_path, num_steps=25))
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


def test_a_run_that_was_cut_off_forgets_the_lines_it_will_write_again(tmp_path):
    take_steps(make_trainer(tmp_path, num_steps=20))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 24, "loss": 1.0}\n{"step": 28, "lo')
    (tmp_path / "diffusion-20.pt").unlink()
    take_steps(make_trainer(tmp_path, num_steps=20))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 20
    assert (tmp_path / "diffusion-20.pt").exists()


def test_a_state_of_another_run_is_refused_by_name(tmp_path):
    take_steps(make_trainer(tmp_path, num_steps=10, identity={"training": {"batch_size": 3}, "seed": 0}))
    with pytest.raises(InputError, match=r"training_state.pt: belongs to another run: training.batch_size is 3 there"):
        Run.find(tmp_path, {"training": {"batch_size": 4}, "seed": 0}, 10)
    assert Run.find(tmp_path, {"training": {"batch_size": 3}, "seed": 0}, 10).state["step"] == 10


def test_only_a_finished_run_may_grow(tmp_path):
    take_steps(make_trainer(tmp_path, num_steps=10))
    assert Run.find(tmp_path, {"a": 1}, 20, may_grow=True).state["step"] == 10
    for num_steps, may_grow in ((20, False), (5, True)):
        with pytest.raises(InputError, match=rf"10 there \(10 taken\) and {num_steps} here"):
            Run.find(tmp_path, {"a": 1}, num_steps, may_grow=may_grow)
    state = torch.load(tmp_path / "training_state.pt", weights_only=True)
    torch.save(state | {"num_steps": 30}, tmp_path / "training_state.pt")
    with pytest.raises(InputError, match="only a finished run can be taken further"):
        Run.find(tmp_path, {"a": 1}, 40, may_grow=True)


def test_broken_states_are_refused(tmp_path):
    take_steps(make_trainer(tmp_path, num_steps=10))
    path = tmp_path / "training_state.pt"
    state = torch.load(path, weights_only=True)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"training_state.pt: truncated or damaged, or not a training state"):
        Run.find(tmp_path, {"a": 1}, 10)
    torch.save(state | {"network": {}}, path)
    with pytest.raises(InputError, match=r"training_state.pt: damaged"):
        make_trainer(tmp_path, num_steps=10)
    path.unlink()
    with pytest.raises(InputError, match=r"diffusion-10.pt: in the way: a checkpoint without training_state.pt"):
        Run.find(tmp_path, {"a": 1}, 10)


def test_deleting_a_run_deletes_nothing_else(tmp_path):
    take_steps(make_trainer(tmp_path, num_steps=10))
    (tmp_path / "notes.txt").write_text("mine")
    delete_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path, bad):
    trainer, weights = make_trainer(tmp_path), []
    for step in trainer.steps("test"):
        step_down(trainer, (trainer.model.network.weight - 1).square() * (bad if step in (5, 6) else 1))
        weights.append(trainer.model.network.weight.item())
    assert weights[4] == weights[5] == weights[6] != weights[7]
    assert all(math.isfinite(weight) for weight in weights)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    skipped = {line["step"]: line["skipped_steps"] for line in lines if "loss" in line}
    assert skipped[8] == 2 and sum(skipped.values()) == 2
    assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert trainer.optimizer.adam.state_dict()["state"][0]["step"] == 38


def test_a_loss_that_is_not_finite_is_skipped_though_its_gradient_is(tmp_path):
    """Another process, which has another share, sees the gradient only; both must skip the same steps."""
    trainer = make_trainer(tmp_path, num_steps=3)
    for step in trainer.steps("test"):
        weight = trainer.model.network.weight
        before = weight.item()
        step_down(trainer, weight + (math.inf if step == 1 else 0.0))
        assert (weight.item() == before) == (step == 1)


def test_ten_skipped_steps_in_a_row_stop_the_run_and_the_last_checkpoint_stands(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(InputError, match="the loss was not finite in 10 steps in a row"):
        for step in trainer.steps("test"):
            step_down(trainer, (trainer.model.network.weight - 1).square() * (math.nan if 13 <= step < 23 else 1))
    state = Run.find(tmp_path, {"a": 1}, 40).state
    assert state["step"] == 20 and torch.isfinite(state["network"]["weight"])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_finishes_the_step_and_saves(tmp_path, signum):
    trainer, before = make_trainer(tmp_path / "stopped"), signal.getsignal(signum)
    with pytest.raises(Interrupted, match="stopped, after step 14") as stopped:
        for step in trainer.steps("test"):
            if step == 13:
                signal.raise_signal(signum)
            step_down(trainer, (trainer.model.network.weight - 1).square())
    assert stopped.value.exit_code == 128 + signum
    assert signal.getsignal(signum) == before
    assert Run.find(tmp_path / "stopped", {"a": 1}, 40).state["step"] == 14
    take_steps(make_trainer(tmp_path / "stopped"))
    take_steps(make_trainer(tmp_path / "undisturbed"))
    one, other = (torch.load(tmp_path / x / "training_state.pt", weights_only=True) for x in ("stopped", "undisturbed"))
    assert torch.equal(one["network"]["weight"], other["network"]["weight"])


def test_a_state_is_saved_every_so_many_minutes(tmp_path, monkeypatch):
    trainer, saved = make_trainer(tmp_path), []
    clock = iter(range(0, 100_000, 90))  # a minute and a half from look to look
    monkeypatch.setattr("utils.training.time.monotonic", lambda: next(clock))
    trainer.saved_at = 0
    for step in trainer.steps("test"):
        step_down(trainer, (trainer.model.network.weight - 1).square())
        if (tmp_path / "training_state.pt").exists():
            saved.append(torch.load(tmp_path / "training_state.pt", weights_only=True)["step"])
        if step == 30:
            break
    assert CONFIG.training.checkpoint_every_minutes == 10
    assert sorted(set(saved)) == [8, 10, 17, 20, 27, 30]  # a look a step, and one at each save


def test_two_processes_do_not_write_the_same_run(tmp_path):
    with locked(tmp_path):
        with pytest.raises(InputError, match="another process is writing there"):
            take_steps(make_trainer(tmp_path))
        with pytest.raises(InputError, match="another process is writing there"):
            delete_run(tmp_path)
    take_steps(make_trainer(tmp_path, num_steps=10))


def test_learning_rates():
    settings = Training(num_training_steps=100, learning_rate=1.0, warmup_steps=9)
    assert [train.learning_rate(settings, step) for step in (0, 4, 9, 99)] == [0.1, 0.5, 1.0, 1.0]
    settings = Training(num_training_steps=100, learning_rate=2.0, learning_rate_decay="linear")
    assert [train.learning_rate(settings, step) for step in (0, 50, 100)] == [2.0, 1.0, 0.0]
    settings = Training(num_training_steps=100, learning_rate=2.0, learning_rate_decay="cosine")
    assert [train.learning_rate(settings, step) for step in (0, 50, 100)] == pytest.approx([2.0, 1.0, 0.0])
