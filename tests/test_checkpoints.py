import os
import pickle

import pytest
import torch
from utils.checkpoint_files import FORMAT_VERSION, load_checkpoint, save_checkpoint
from utils.errors import InputError
from utils.schema import Config

from models.blocks import Dropout
from models.diffusion import Diffusion
from utils.checkpoints import TrainedOn, build_model

CPU = torch.device("cpu")
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
    save_checkpoint(path, model.network.state_dict(), config=CONFIG, step=7, sampling_steps=16, trained_on=trained_on)
    return path


def test_what_is_saved_is_what_is_loaded(path, model):
    checkpoint = load_checkpoint(path)
    assert (checkpoint.config, checkpoint.step, checkpoint.sampling_steps) == (CONFIG, 7, 16)
    assert checkpoint.trained_on == TrainedOn(data_hash="abc", class_names=["ant", "bee"])
    z, logsnr = torch.randn(2, 1, 8, 8), torch.randn(2)
    again = checkpoint.model(CPU)
    assert torch.equal(again.network.eval()(z, logsnr), model.network.eval()(z, logsnr))
    assert (again.schedule, again.prediction) == (model.schedule, model.prediction)
    assert os.listdir(path.parent) == [path.name]


def test_an_undistilled_model_is_sampled_with_1024_steps(path, model):
    assert load_checkpoint(path).default_sampling_steps == 16
    save_checkpoint(path, model.network.state_dict(), config=CONFIG, step=7, sampling_steps=None)
    assert load_checkpoint(path).default_sampling_steps == 1024


def test_a_student_has_no_dropout(path):
    assert CONFIG.network.dropout > 0
    dropouts = [m.probability for m in load_checkpoint(path).model(CPU).network.modules() if isinstance(m, Dropout)]
    assert dropouts and not any(dropouts)


def changed(path, **changes) -> None:
    content = torch.load(path, weights_only=True)
    torch.save(content | changes, path)


def test_other_format_version(path):
    changed(path, format_version=FORMAT_VERSION + 1)
    with pytest.raises(
        InputError, match=rf"format version {FORMAT_VERSION + 1}; this code reads 1 and 2 and {FORMAT_VERSION}"
    ):
        load_checkpoint(path)


def without_new_keys(path) -> dict:
    """The content of a checkpoint as it was written before networks had types, and students another prediction."""
    content = torch.load(path, weights_only=True)
    for section, key in (("network", "type"), ("diffusion", "betas"), ("distillation", "prediction")):
        del content["config"][section][key]
    del content["prediction"]
    return content


def test_a_checkpoint_of_the_second_version_is_read(path):
    before = load_checkpoint(path)
    torch.save(without_new_keys(path) | {"format_version": 2}, path)
    after = load_checkpoint(path)
    assert after.config == before.config and (after.prediction, after.predicts) == (None, "v")


def test_a_checkpoint_of_the_first_version_is_read(path):
    content = without_new_keys(path)
    del content["trained_on"], content["guidance"], content["config"]["training"]["class_dropout"]
    torch.save(content | {"format_version": 1}, path)
    checkpoint = load_checkpoint(path)
    assert checkpoint.config.training.class_dropout == 0  # it has never seen an image without its class
    assert checkpoint.step == 7 and checkpoint.trained_on is None
    checkpoint.require_same_classes(["cat"])  # which nothing is known of


def test_other_classes_are_named(path):
    checkpoint = load_checkpoint(path)
    checkpoint.require_same_classes(["ant", "bee"])
    checkpoint.require_same_classes([])  # a folder without subfolders, for a network that is not told the class
    for names, message in (
        (["ant", "cat", "bee"], "class 1 is bee in it and cat here"),
        (["ant", "bee", "cat"], "class 2 is missing in it and cat here"),
        (["ant"], "class 1 is bee in it and missing here"),
    ):
        with pytest.raises(InputError, match=f"diffusion-7.pt: knows other classes than the data: {message}"):
            checkpoint.require_same_classes(names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": "7"}, "its metadata are not valid: step: should be a valid integer, not '7'"),
        ({"sampling_steps": 0}, "its metadata are not valid: sampling_steps: should be greater than 0, not 0"),
        ({"sampling_steps": 2.0}, "its metadata are not valid: sampling_steps: should be a valid integer"),
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
    with pytest.raises(InputError, match=rf"another model than x.yaml describes: {section}.{key} is .* {value} here"):
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
