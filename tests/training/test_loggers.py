import json
import struct
import sys
from contextlib import closing

import pytest
import wandb
from one_weight import CONFIG, make_run, step_down, take_steps
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

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


def records(content: bytes):
    """The records of a W&B file, a LevelDB log: blocks of 32 KiB, of pieces with a checksum, a length and a kind."""
    at, record = 7, b""  # after the file's own header
    while at + 7 <= len(content):
        left = 2**15 - at % 2**15
        length, kind = struct.unpack_from("<HB", content, at + 4) if left >= 7 else (left - 7, 0)
        record += content[at + 7 : at + 7 + length] if kind else b""
        if kind in (1, 4):  # whole, last
            yield record
            record = b""
        at += 7 + length


def test_weights_and_biases_continue_one_run_after_a_kill(tmp_path, monkeypatch):
    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("DATA_DIR", str(tmp_path / "data"))):
        monkeypatch.setenv(f"WANDB_{name}", value)
    folder = tmp_path / "run"
    folder.mkdir()
    steps_until(make_run(folder, loggers=["wandb"]), 17)
    take_steps(make_run(folder, loggers=["wandb"]))
    identity = (folder / "wandb-id.txt").read_text()
    logged, grids = [], set()
    for path in sorted(folder.glob(f"wandb/offline-run-*/run-{identity}.wandb")):
        for content in records(path.read_bytes()):
            record = Record()
            record.ParseFromString(content)
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            if "loss" in items:
                logged.append((items["step"], items["loss"]))
            elif "samples" in items:
                grids.add(items["step"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(logged)) == [(line["step"], line["loss"]) for line in lines] and grids == {10, 20, 30, 40}
    assert len(logged) == len(lines) + 2  # steps 12 and 16 again, with the same losses
    delete_run(folder)
    assert not (folder / "wandb-id.txt").exists()


def test_weights_and_biases_without_a_login_are_one_line(tmp_path, monkeypatch):
    def without_login(**_):
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", without_login)
    with pytest.raises(InputError, match=r"loggers: wandb: No API key configured. Use `wandb login`"):
        steps_until(make_run(tmp_path, loggers=["wandb"]), 2)


def test_unknown_loggers_and_missing_packages_are_one_line(monkeypatch):
    settings = CONFIG.training.model_copy(update=TENSORBOARD)
    require_loggers(settings)
    with pytest.raises(InputError, match="loggers: tensorbord: should be among tensorboard, wandb"):
        require_loggers(CONFIG.training.model_copy(update={"loggers": ["tensorbord"]}))
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match="loggers: tensorboard needs a package: pip install tensorboard"):
        require_loggers(settings)
    require_loggers(CONFIG.training)
