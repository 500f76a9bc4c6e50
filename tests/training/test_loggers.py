import json
import sys
from contextlib import closing

import pytest
from one_weight import CONFIG, make_run, step_down, take_steps
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.system.errors import InputError
from utils.training.loggers import require_loggers
from utils.training.state import delete_run

TENSORBOARD = {"loggers": ["tensorboard"]}


def require_events_like_log(folder, grids):
    """TensorBoard's own reader finds each line of the log once, and each grid."""
    found = EventAccumulator(str(folder)).Reload()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "gradient_norm", "skipped_steps", "learning_rate", "steps_per_second"):
        expected = [(line["step"], line[name]) for line in lines]
        events = [(event.step, event.value) for event in found.Scalars(name)]
        assert [step for step, _ in events] == [step for step, _ in expected]
        assert [value for _, value in events] == pytest.approx([value for _, value in expected], rel=1e-6)
    assert [event.step for event in found.Images("samples")] == grids
    return [step for step, _ in expected]


def steps_until(run, last):
    with closing(run.steps()) as steps:
        for step in steps:
            step_down(run.trainers["model"], (run.trainers["model"].network.weight - 1).square())
            if step == last:
                return


def test_tensorboard_has_the_log_once_also_after_a_kill(tmp_path):
    steps_until(make_run(tmp_path, **TENSORBOARD), 17)  # the state is that of step 10, the log has lines of 12 and 16
    (tmp_path / "diffusion-10.pt").unlink()  # as if it had been killed between the grid and the checkpoint
    (tmp_path / "sample-final.png").touch()  # a user's
    take_steps(make_run(tmp_path, **TENSORBOARD))
    assert require_events_like_log(tmp_path, [10, 20, 30, 40])[:6] == [4, 8, 10, 12, 16, 20]
    delete_run(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_logger_that_is_added_later_has_everything_from_the_beginning(tmp_path):
    steps_until(make_run(tmp_path), 24)
    assert not list(tmp_path.glob("events.*"))
    take_steps(make_run(tmp_path, **TENSORBOARD))
    require_events_like_log(tmp_path, [10, 20, 30, 40])


def test_a_resumed_run_removes_the_lines_that_it_writes_again(tmp_path):
    take_steps(make_run(tmp_path, num_steps=20))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 24, "loss": 1.0}\n{"step": 28, "lo')
    (tmp_path / "diffusion-20.pt").unlink()
    take_steps(make_run(tmp_path, num_steps=20))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 20
    assert (tmp_path / "diffusion-20.pt").exists()


def test_unknown_loggers_and_missing_packages_are_one_line(monkeypatch):
    settings = CONFIG.training.model_copy(update=TENSORBOARD)
    require_loggers(settings)
    with pytest.raises(InputError, match="loggers: tensorbord: should be among tensorboard"):
        require_loggers(CONFIG.training.model_copy(update={"loggers": ["tensorbord"]}))
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match="loggers: tensorboard needs a package: pip install tensorboard"):
        require_loggers(settings)
    require_loggers(CONFIG.training)
