import gc
import json
import math
import weakref
from types import SimpleNamespace

import pytest
import torch
from one_weight import make_run, make_trainer, step_down, take_steps

from utils.training.trainer import ema_decay

ZEROS, FULL = torch.zeros, torch.full


def test_the_average_is_warmed_up(tmp_path):
    """A half-life of at most a tenth of the steps so far, by hand; later, the decay of the configuration."""
    run = make_run(tmp_path)
    trainer, expected = run.trainers["model"], 0.0
    for step in run.steps():
        step_down(trainer, (trainer.network.weight - 1).square())
        weight = trainer.network.weight.item()
        decay = min(0.9, 2 ** (-10 / (step + 1)))
        expected = decay * expected + (1 - decay) * weight
        assert trainer.ema.weight.item() == pytest.approx(expected, rel=1e-5)
    assert ema_decay(0.9999, 9_999) == pytest.approx(0.5 ** (1 / 1000))  # after 10,000 steps a half-life of 1,000
    assert ema_decay(0.999, 9_999) == 0.999 and ema_decay(0.0, 5) == 0.0


def test_a_rank_draws_what_it_computes_with_and_nothing_else(tmp_path, monkeypatch):
    """The second of two, in two micro-batches: its half of the examples, which are numbered through the run."""
    run, seen = make_run(tmp_path, batch_size=8, accumulation_steps=2), []
    run.data.batch = lambda examples, order: seen.append(examples) or (torch.zeros(len(examples), 1, 2, 2), None)
    _, _, whole = run.batch(slice(0, 16))
    monkeypatch.setattr("utils.system.distributed.world_size", lambda: 2)
    monkeypatch.setattr("utils.system.distributed.rank", lambda: 1)
    drawn, trainer = [], run.trainers["model"]
    for run.step in range(2):
        for part in trainer.micro_batches():
            _, _, eps = run.batch(part)
            drawn.append((part.start, part.stop, eps))
            trainer.backward(trainer.network.weight.expand(len(eps)))
    assert seen[1:] == [range(4, 6), range(6, 8), range(12, 14), range(14, 16)]
    assert [(start, stop) for start, stop, _ in drawn] == 2 * [(4, 6), (6, 8)]
    for examples, (_, _, eps) in zip(seen[1:], drawn, strict=True):
        assert torch.equal(eps, whole[examples.start : examples.stop])


def test_a_trainer_that_is_done_leaves_the_memory_at_once(tmp_path):
    """Not when Python next looks for circles: ten students, each with Adam and an average, would pile up."""
    gc.disable()
    try:
        run = make_run(tmp_path, num_steps=10)
        parts = [weakref.ref(getattr(run.trainers["model"], name)) for name in ("network", "ema")]
        take_steps(run)
        del run
        assert [part() for part in parts] == [None, None]
    finally:
        gc.enable()


def test_where_the_optimizer_does_not_look_a_step_that_is_not_finite_is_not_taken(monkeypatch):
    """Apple's fused Adam does not; the device is not at hand, so the name of this one is changed."""
    trainer = make_trainer()
    trainer.optimizers[0].step = lambda: pytest.fail("taken")
    trainer.compute = SimpleNamespace(device=SimpleNamespace(type="mps"))
    monkeypatch.setattr("utils.training.trainer.torch.zeros", lambda *size, **_: ZEROS(*size))
    monkeypatch.setattr("utils.training.trainer.torch.full", lambda size, value, **_: FULL(size, value))
    step_down(trainer, trainer.network.weight * math.nan)
    assert trainer.step == 1 and trainer.network.weight.item() == 0


def test_gradients_are_clipped(tmp_path):
    run = make_run(tmp_path, num_steps=1)
    trainer = run.trainers["model"]
    for _ in run.steps():
        step_down(trainer, 1000 * trainer.network.weight)
        first_moment = trainer.optimizers[0].state_dict()["state"][0]["exp_avg"].item()
        assert first_moment == pytest.approx((1 - 0.9) * 1.0, rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path, bad):
    run, weights = make_run(tmp_path), []
    trainer = run.trainers["model"]
    for step in run.steps():
        step_down(trainer, (trainer.network.weight - 1).square() * (bad if step in (5, 6) else 1))
        weights.append(trainer.network.weight.item())
    assert weights[4] == weights[5] == weights[6] != weights[7]
    assert all(math.isfinite(weight) for weight in weights)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    skipped = {line["step"]: line["skipped_steps"] for line in lines}
    assert skipped[8] == 2 and sum(skipped.values()) == 2
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert trainer.optimizers[0].state_dict()["state"][0]["step"] == 38


def test_a_loss_that_is_not_finite_is_skipped_though_its_gradient_is(tmp_path):
    """Another process, which has another share, sees the gradient only; both must skip the same steps."""
    run = make_run(tmp_path, num_steps=3)
    trainer = run.trainers["model"]
    for step in run.steps():
        weight = trainer.network.weight
        before = weight.item()
        step_down(trainer, weight + (math.inf if step == 1 else 0.0))
        assert (weight.item() == before) == (step == 1)
