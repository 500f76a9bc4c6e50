from pathlib import Path

import pytest
import torch
from one_weight import make_loop, take_steps

from utils.errors import InputError
from utils.training.run import Run, delete_run


def test_a_state_of_another_run_is_refused_by_name(tmp_path):
    take_steps(make_loop(tmp_path, num_steps=10, identity={"training": {"batch_size": 3}, "seed": 0}))
    with pytest.raises(InputError, match=r"training_state.pt: belongs to another run: training.batch_size is 3 there"):
        Run.open(tmp_path, {"training": {"batch_size": 4}, "seed": 0}, 10)
    assert Run.open(tmp_path, {"training": {"batch_size": 3}, "seed": 0}, 10).state["step"] == 10


def test_only_a_finished_run_may_grow(tmp_path):
    take_steps(make_loop(tmp_path, num_steps=10))
    assert Run.open(tmp_path, {"a": 1}, 20, may_grow=True).state["step"] == 10
    for num_steps, may_grow in ((20, False), (5, True)):
        with pytest.raises(InputError, match=rf"10 there \(10 taken\) and {num_steps} here"):
            Run.open(tmp_path, {"a": 1}, num_steps, may_grow=may_grow)
    state = torch.load(tmp_path / "training_state.pt", weights_only=True)
    torch.save(state | {"num_steps": 30}, tmp_path / "training_state.pt")
    with pytest.raises(InputError, match="only a finished run can be taken further"):
        Run.open(tmp_path, {"a": 1}, 40, may_grow=True)


def test_broken_states_are_refused(tmp_path):
    take_steps(make_loop(tmp_path, num_steps=10))
    path = tmp_path / "training_state.pt"
    state = torch.load(path, weights_only=True)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"training_state.pt: truncated or damaged, or not a training state"):
        Run.open(tmp_path, {"a": 1}, 10)
    torch.save(state | {"network": {}}, path)
    with pytest.raises(InputError, match=r"training_state.pt: damaged"):
        make_loop(tmp_path, num_steps=10)
    path.unlink()
    with pytest.raises(InputError, match=r"diffusion-10.pt: in the way: a checkpoint without training_state.pt"):
        Run.open(tmp_path, {"a": 1}, 10)


def test_deleting_a_run_deletes_nothing_else(tmp_path):
    take_steps(make_loop(tmp_path, num_steps=10))
    (tmp_path / "notes.txt").write_text("mine")
    delete_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_state_is_deleted_first_and_the_lock_last(tmp_path, monkeypatch):
    """A state without its checkpoints would be continued; another run may take the lock once it is gone."""
    take_steps(make_loop(tmp_path, num_steps=10))
    unlink, deleted = Path.unlink, []
    monkeypatch.setattr(Path, "unlink", lambda path: deleted.append(path.name) or unlink(path))
    delete_run(tmp_path)
    deleted.remove(".writable.tmp")
    assert deleted[0] == "training_state.pt" and deleted[-1] == ".lock" and len(deleted) == 5
