import json
import math

import pytest
from one_weight import make_loop, step_down


def test_the_average_is_warmed_up(tmp_path):
    """EMA with decay min(0.9, (1 + n) / (10 + n)), by hand."""
    loop = make_loop(tmp_path)
    trainer = loop.trainer
    expected = None
    for step in loop:
        step_down(trainer, (trainer.network.weight - 1).square())
        weight = trainer.network.weight.item()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
        assert trainer.ema.weight.item() == pytest.approx(expected, rel=1e-5)


def test_gradients_are_clipped(tmp_path):
    loop = make_loop(tmp_path, num_steps=1)
    trainer = loop.trainer
    for _ in loop:
        step_down(trainer, 1000 * trainer.network.weight)
        first_moment = trainer.adam.state_dict()["state"][0]["exp_avg"].item()
        assert first_moment == pytest.approx((1 - 0.9) * 1.0, rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path, bad):
    loop, weights = make_loop(tmp_path), []
    trainer = loop.trainer
    for step in loop:
        step_down(trainer, (trainer.network.weight - 1).square() * (bad if step in (5, 6) else 1))
        weights.append(trainer.network.weight.item())
    assert weights[4] == weights[5] == weights[6] != weights[7]
    assert all(math.isfinite(weight) for weight in weights)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    skipped = {line["step"]: line["skipped_steps"] for line in lines if "loss" in line}
    assert skipped[8] == 2 and sum(skipped.values()) == 2
    assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert trainer.adam.state_dict()["state"][0]["step"] == 38


def test_a_loss_that_is_not_finite_is_skipped_though_its_gradient_is(tmp_path):
    """Another process, which has another share, sees the gradient only; both must skip the same steps."""
    loop = make_loop(tmp_path, num_steps=3)
    trainer = loop.trainer
    for step in loop:
        weight = trainer.network.weight
        before = weight.item()
        step_down(trainer, weight + (math.inf if step == 1 else 0.0))
        assert (weight.item() == before) == (step == 1)
