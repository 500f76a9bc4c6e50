from pathlib import Path

import pytest
import torch
from one_weight import make_loop, take_steps
from utils.errors import InputError
from utils.schema import Config

from utils.checkpoints import TrainedOn
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
        with pytest.raises(InputError, match=rf"10 training steps \(10 taken\), and is now asked for {num_steps}"):
            Run.open(tmp_path, {"a": 1}, num_steps, may_grow=may_grow)
    state = torch.load(tmp_path / "training_state.pt", weights_only=True)
    torch.save(state | {"num_steps": 30}, tmp_path / "training_state.pt")
    with pytest.raises(InputError, match="30 finishes it, then it can be taken further"):
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


CONFIG = {
    "data": {"name": "MNIST", "image_size": 8, "num_channels": 1},
    "network": {"features": 2, "multipliers": [1], "attention_resolutions": []},
}


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"compile": False, "sampling": {"num_samples": 3}, "distillation": {"batch_size": 3}}, False),
        ({"data": CONFIG["data"] | {"root": "elsewhere", "test_root": "there"}}, False),
        ({"training": {"save_and_sample_every_n": 7, "log_every_n": 3, "accumulation_steps": 2}}, False),
        ({"training": {"learning_rate": 1e-3}}, "training.learning_rate is 0.0002 there and 0.001 here"),
        ({"data": CONFIG["data"] | {"random_flip": True}}, "data.random_flip is False there and True here"),
        ({"precision": "bf16"}, "precision is auto there and bf16 here"),
    ],
)
def test_what_changes_the_weights_is_compared_and_nothing_else(tmp_path, changes, refused):
    before, now = Config.model_validate(CONFIG), Config.model_validate(CONFIG | changes)
    run = Run.of_training(tmp_path, before, None, restart=False)
    num_steps = before.training.num_training_steps
    take_steps(make_loop(tmp_path, num_steps=10, identity=run.identity))
    state = torch.load(tmp_path / "training_state.pt", weights_only=True)
    torch.save(state | {"num_steps": num_steps}, tmp_path / "training_state.pt")
    if refused:
        with pytest.raises(InputError, match=f"another run: {refused}; the same value continues it, another"):
            Run.of_training(tmp_path, now, None, restart=False)
    else:
        assert Run.of_training(tmp_path, now, None, restart=False).state["step"] == 10


THESE = TrainedOn(data_hash="these", class_names=["a"])


def test_other_images_are_another_run(tmp_path):
    loop = make_loop(tmp_path, num_steps=10)
    loop.run.use_data(THESE)
    take_steps(loop)
    assert torch.load(tmp_path / "diffusion-10.pt", weights_only=True)["trained_on"] == THESE.model_dump()
    Run.open(tmp_path, {"a": 1}, 20, may_grow=True).use_data(THESE)
    with pytest.raises(InputError, match="the images or their classes have changed since"):
        Run.open(tmp_path, {"a": 1}, 20, may_grow=True).use_data(THESE.model_copy(update={"data_hash": "those"}))


def test_another_teacher_is_called_by_its_path(tmp_path):
    identity = {"teacher_model_checkpoint": "hash", "teacher_path": "a/diffusion-1.pt"}
    take_steps(make_loop(tmp_path, num_steps=10, identity=identity))
    assert Run.open(tmp_path, identity | {"teacher_path": "moved.pt"}, 10).state["step"] == 10
    with pytest.raises(InputError, match=r"its teacher was a/diffusion-1.pt, with other contents than b.pt has now"):
        Run.open(tmp_path, {"teacher_model_checkpoint": "other", "teacher_path": "b.pt"}, 10)
