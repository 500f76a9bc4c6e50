from pathlib import Path

import pytest
import torch
from one_weight import make_run, make_stage, take_steps

from utils.config.schema import Config
from utils.system.errors import InputError
from utils.training.stage import teacher_stage
from utils.training.state import delete_run, read_state, write_state


def test_only_a_finished_run_may_grow(tmp_path):
    take_steps(make_run(tmp_path, num_steps=10))
    assert read_state(make_stage(tmp_path, num_steps=20))["step"] == 10
    with pytest.raises(InputError, match=r"10 training steps \(10 taken\), and 5 are requested; only more steps"):
        read_state(make_stage(tmp_path, num_steps=5))
    state = torch.load(tmp_path / "training_state.pt", weights_only=True)
    torch.save(state | {"num_training_steps": 30}, tmp_path / "training_state.pt")
    with pytest.raises(InputError, match="30 finishes it, then it can get more"):
        read_state(make_stage(tmp_path, num_steps=40))


def test_broken_states_and_those_of_earlier_formats_are_refused(tmp_path):
    take_steps(make_run(tmp_path, num_steps=10))
    path, stage = tmp_path / "training_state.pt", make_stage(tmp_path, num_steps=10)
    state = torch.load(path, weights_only=True)
    torch.save(state | {"format_version": 3}, path)
    with pytest.raises(InputError, match=r"training_state.pt: has format version 3; this code reads 7 only"):
        read_state(stage)
    trainer = state["trainers"]["model"]
    for wrong in ({}, {"model": trainer | {"network": {}}}, {"model": {"network": trainer["network"]}}):
        torch.save(state | {"trainers": wrong}, path)
        with pytest.raises(InputError, match=r"training_state.pt: damaged: model: "):
            make_run(tmp_path, num_steps=10)
    torch.save(state | {"identity": state["identity"] | {"seed": torch.zeros(2)}}, path)
    with pytest.raises(InputError, match=r"training_state.pt: damaged: identity.seed"):
        read_state(stage)
    torch.save(state | {"trainers": []}, path)
    with pytest.raises(InputError, match=r"training_state.pt: damaged: trainers: "):
        read_state(stage)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"training_state.pt: truncated or damaged, or not a training state"):
        read_state(stage)
    path.unlink()
    with pytest.raises(InputError, match=r"diffusion-10.pt: in the way: a checkpoint without training_state.pt"):
        read_state(stage)


def test_deleting_a_run_deletes_nothing_else_and_the_state_first(tmp_path, monkeypatch):
    """A state without its checkpoints would be resumed."""
    take_steps(make_run(tmp_path, num_steps=10))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".mine.tmp").write_text("mine, too")
    (tmp_path / ".diffusion-10.pt.0123abcd.tmp").write_text("left by a kill")
    unlink, deleted = Path.unlink, []
    monkeypatch.setattr(Path, "unlink", lambda path: deleted.append(path.name) or unlink(path))
    delete_run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.tmp", "notes.txt"]
    assert deleted[0] == "training_state.pt" and len(deleted) == 5


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
        ({"training": {"learning_rate": 1e-3}}, "training.learning_rate is 0.0002, not 0.001"),
        ({"data": CONFIG["data"] | {"random_flip": True}}, "data.random_flip is False, not True"),
        ({"precision": "bf16"}, "precision is auto, not bf16"),
    ],
)
def test_what_changes_the_weights_is_compared_and_nothing_else(tmp_path, changes, refused):
    before, now = (teacher_stage(Config.model_validate(CONFIG | each), tmp_path, None) for each in ({}, changes))
    compute = {"precision": "fp32", "compile": False}
    state = {"identity": before.identity(), "num_training_steps": before.num_training_steps, "step": 10}
    state["compute"] = compute
    write_state(tmp_path, **state, trainers={})
    if refused:
        with pytest.raises(InputError, match=f"another run: {refused}; the same value resumes it, another"):
            read_state(now)
    else:
        assert read_state(now)["step"] == 10
