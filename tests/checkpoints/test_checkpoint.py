import os
import pickle
import zipfile

import pytest
import torch
from conftest import save_model

from models.blocks import Dropout
from models.diffusion import Diffusion
from models.samplers import SAMPLERS
from utils.checkpoints.checkpoint import FORMAT_VERSION, TrainedOn, build_model, load_checkpoint
from utils.config.schema import Config, SamplerSettings
from utils.system.errors import InputError

CPU = torch.device("cpu")
NAMES = [repr(name) for name in SAMPLERS]
ANY_SAMPLER = f"{', '.join(NAMES[:-1])} or {NAMES[-1]}"
CONFIG = Config.model_validate(
    {
        "data": {"name": "MNIST", "image_size": 8, "num_channels": 1},
        "network": {"features": 8, "multipliers": [1, 2], "num_residual_blocks": 1, "attention_resolutions": []},
        "distillation": {"num_training_steps_per_iteration": {"default": 3, 8: 5}},
    }
)


@pytest.fixture
def model() -> Diffusion:
    model = build_model(CONFIG, CPU)
    for parameter in model.network.parameters():
        torch.nn.init.normal_(parameter)
    return model


@pytest.fixture
def path(tmp_path, model):
    path = tmp_path / "diffusion-7.pt"
    trained_on = TrainedOn(data_hash="abc", class_names=["ant", "bee"])
    save_model(path, model.network.state_dict(), config=CONFIG, step=7, sampling_steps=16, trained_on=trained_on)
    return path


def test_what_is_saved_is_what_is_loaded(path, model):
    checkpoint = load_checkpoint(path)
    assert (checkpoint.config, checkpoint.step, checkpoint.kind) == (CONFIG, 7, "student")
    assert checkpoint.sampling == SamplerSettings(steps=16, sampler="ddim", clip=False)
    assert checkpoint.trained_on == TrainedOn(data_hash="abc", class_names=["ant", "bee"])
    z, logsnr = torch.randn(2, 1, 8, 8), torch.randn(2)
    again = checkpoint.model(CPU)
    assert torch.equal(again.network.eval()(z, logsnr), model.network.eval()(z, logsnr))
    assert (again.schedule, again.prediction) == (model.schedule, model.prediction)
    assert os.listdir(path.parent) == [path.name]


def test_a_teacher_is_sampled_with_1024_steps_as_its_configuration_says(path, model):
    sampling = CONFIG.sampling.model_copy(update={"sampler": "ancestral", "clip": True, "variance": 0.3})
    config = CONFIG.model_copy(update={"sampling": sampling})
    save_model(path, model.network.state_dict(), config=config, step=7)
    expected = SamplerSettings(steps=1024, sampler="ancestral", variance=0.3, clip=True)
    assert load_checkpoint(path).sampling == expected


def test_a_student_has_no_dropout(path):
    assert CONFIG.network.dropout > 0
    dropouts = [m.probability for m in load_checkpoint(path).model(CPU).network.modules() if isinstance(m, Dropout)]
    assert dropouts and not any(dropouts)


def changed(path, **changes) -> None:
    content = torch.load(path, weights_only=True)
    torch.save(content | changes, path)


@pytest.mark.parametrize("version", [FORMAT_VERSION - 1, FORMAT_VERSION + 1])
def test_other_format_versions(path, version):
    changed(path, format_version=version)
    with pytest.raises(InputError, match=rf"has format version {version}; this code reads {FORMAT_VERSION} only"):
        load_checkpoint(path)


def test_other_classes_are_named(path):
    checkpoint = load_checkpoint(path)
    checkpoint.require_same_classes(["ant", "bee"])
    checkpoint.require_same_classes([])  # a folder without subfolders, for an unconditional network
    for names, message in (
        (["ant", "cat", "bee"], "class 1 is bee, and that of the data is cat"),
        (["ant", "bee", "cat"], "class 2 is missing, and that of the data is cat"),
        (["ant"], "class 1 is bee, and that of the data is missing"),
    ):
        with pytest.raises(InputError, match=f"diffusion-7.pt: its {message}"):
            checkpoint.require_same_classes(names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": "7"}, "its metadata are not valid: step: should be a valid integer, not '7'"),
        ({"sampling": {"steps": 0}}, "its metadata are not valid: sampling.steps: should be greater than 0, not 0"),
        ({"sampling": {"steps": 10**8}}, "sampling.steps: should be less than or equal to 65536, not 100000000"),
        ({"sampling": {"steps": 2.0}}, "its metadata are not valid: sampling.steps: should be a valid integer"),
        ({"sampling": {"steps": 2, "sampler": "x"}}, f"sampling.sampler: should be {ANY_SAMPLER}, not 'x'"),
        ({"kind": "teachr"}, "kind: should be 'teacher', 'converted', 'student' or 'matched', not 'teachr'"),
        ({"config": {"data": {"name": "MNIST"}}}, "are not valid: config.data.image_size: missing"),
        ({"weights": [1]}, "its weights do not fit its own configuration: no weights"),
        ({"weights": {"a": 1}}, "its weights do not fit its own configuration: embed_time.0.weight is missing"),
        ({"trained_on": {"data_hash": "a"}}, "its metadata are not valid: trained_on.class_names: missing"),
        ({"new": 1}, "not a checkpoint of this project"),
    ],
)
def test_contents_of_another_kind(path, changes, message):
    changed(path, **changes)
    with pytest.raises(InputError, match=message):
        load_checkpoint(path)


def test_weights_of_another_architecture(path):
    weights = load_checkpoint(path).weights
    for other, message in (
        (dict(list(weights.items())[1:]), r"embed_time.0.weight is missing"),
        (weights | {"extra": torch.zeros(1)}, r"extra is unexpected"),
        ({name: torch.zeros(1) for name in weights}, r"embed_time.0.weight is \(1,\) and should be \(32, 8\)"),
        (weights | {"skip.bias": torch.zeros(1, dtype=torch.long)}, r"skip.bias is of torch.int64"),
    ):
        changed(path, weights=other)
        with pytest.raises(InputError, match=f"its weights do not fit its own configuration: {message}"):
            load_checkpoint(path)


def test_broken_files(path, tmp_path):
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:10], b"", b"hello", pickle.dumps({"step": 1})):
        path.write_bytes(content)
        with pytest.raises(InputError, match="truncated or damaged, or not a checkpoint of this project"):
            load_checkpoint(path)
    torch.save({"weights": 1}, path)
    with pytest.raises(InputError, match="not a checkpoint of this project"):
        load_checkpoint(path)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_checkpoint(tmp_path / "nowhere.pt")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_checkpoint(tmp_path)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    torch.save({"format_version": FORMAT_VERSION, "weights": Malicious(str(tmp_path / "executed"))}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="truncated or damaged, or not a checkpoint"):
        load_checkpoint(tmp_path / "x.pt")
    assert os.listdir(tmp_path) == ["x.pt"]


class Large:
    def __reduce__(self):
        return bytearray, (2**31,)


def test_nothing_is_allocated_that_torch_save_would_not_write(path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("should have been refused before it is read"))
    whole = path.read_bytes()
    torch.save({"format_version": FORMAT_VERSION, "weights": Large()}, path)
    with pytest.raises(InputError, match="truncated or damaged, or not a checkpoint"):
        load_checkpoint(path)
    path.write_bytes(whole)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(archive.namelist()[0].replace("data.pkl", "DATA.PKL"), b"x")
    with pytest.raises(InputError, match="truncated or damaged, or not a checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("diffusion", "prediction", "eps"),
        ("diffusion", "schedule", "linear"),
        ("diffusion", "logsnr_min", -15.0),
        ("network", "features", 16),
        ("data", "num_channels", 3),
    ],
)
def test_another_model_is_refused_by_name(path, section, key, value):
    other = CONFIG.model_dump()
    other[section][key] = value
    with pytest.raises(InputError, match=rf"not the model that x.yaml describes: {section}.{key} is .*, not {value}"):
        load_checkpoint(path).require_same_model(Config.model_validate(other), "x.yaml")


def test_what_does_not_change_the_model_is_not_refused(path):
    other = CONFIG.model_dump()
    other["network"]["dropout"], other["training"]["batch_size"] = 0.5, 3
    load_checkpoint(path).require_same_model(Config.model_validate(other), "x.yaml")


def test_the_sha256_is_of_the_content(path):
    before = load_checkpoint(path).sha256
    path.rename(path.with_name("moved.pt"))
    assert load_checkpoint(path.with_name("moved.pt")).sha256 == before
    changed(path.with_name("moved.pt"), step=8)
    assert load_checkpoint(path.with_name("moved.pt")).sha256 != before
