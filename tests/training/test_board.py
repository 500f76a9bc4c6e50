import json
import sys

import one_weight
import pytest
from one_weight import CONFIG, make_loop, take_steps
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from utils.errors import InputError
from utils.training.board import SCALARS, require_tensorboard

from utils.training.run import delete_run


@pytest.fixture(autouse=True)
def with_board(monkeypatch):
    training = CONFIG.training.model_copy(update={"tensorboard": True})
    monkeypatch.setattr(one_weight, "CONFIG", CONFIG.model_copy(update={"training": training}))


def require_board_like_log(folder, pictures):
    """TensorBoard's own reader finds each line of the log once, and each picture."""
    found = EventAccumulator(str(folder)).Reload()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for name in SCALARS:
        expected = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        events = [(event.step, event.value) for event in found.Scalars(name)]
        assert [step for step, _ in events] == [step for step, _ in expected]
        assert [value for _, value in events] == pytest.approx([value for _, value in expected], rel=1e-6)
    assert [event.step for event in found.Images("samples")] == pictures
    return [step for step, _ in expected]


def test_the_board_shows_what_the_log_says_also_after_a_kill(tmp_path):
    loop = make_loop(tmp_path)
    for step in loop:
        one_weight.step_down(loop.trainer, (loop.trainer.network.weight - 1).square())
        if step == 17:  # the state is that of step 10, the log has lines of 12 and 16
            break
    loop.board.close()
    (tmp_path / "diffusion-10.pt").unlink()  # as if it had been killed between the picture and the checkpoint
    take_steps(make_loop(tmp_path))
    assert require_board_like_log(tmp_path, [10, 20, 30, 40])[:6] == [4, 8, 10, 12, 16, 20]
    delete_run(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_board_that_is_wanted_later_has_all_from_the_beginning(tmp_path, monkeypatch):
    with monkeypatch.context() as without:
        without.setattr(one_weight, "CONFIG", CONFIG)
        loop = make_loop(tmp_path)
        for step in loop:
            one_weight.step_down(loop.trainer, (loop.trainer.network.weight - 1).square())
            if step == 24:
                break
    assert not list(tmp_path.glob("events.*"))
    take_steps(make_loop(tmp_path))
    require_board_like_log(tmp_path, [10, 20, 30, 40])


def test_without_the_package_one_line_says_so(monkeypatch):
    require_tensorboard(one_weight.CONFIG.training)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match="needs the package tensorboard: pip install tensorboard"):
        require_tensorboard(one_weight.CONFIG.training)
    require_tensorboard(CONFIG.training)
