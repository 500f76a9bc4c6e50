"""Checkpoints as safetensors files."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, call, save_model
from safetensors.torch import load_file, save_file

from utils.checkpoints.checkpoint import Metadata, TrainedOn, build_model, load_checkpoint
from utils.config.schema import Config

CONFIG = Config.model_validate(
    {
        "data": {"name": "MNIST", "image_size": 16, "num_channels": 1},
        "network": {"features": 8, "multipliers": [1, 2], "attention_resolutions": [], "num_classes": 3},
        "distillation": {"learning_rate": {"default": 1e-3, 8: 2e-3}, "guidance": [1.0, 4.0]},
    }
)


@pytest.fixture
def student(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    weights = build_model(CONFIG, torch.device("cpu"), takes_guidance=True).network.state_dict()
    trained_on = TrainedOn(data_hash="x", class_names=["hat", "boot", "Fuß"])
    of_run = {"sampling_steps": 8, "prediction": "v", "guidance": [1.0, 4.0], "trained_on": trained_on}
    save_model(Path("student.pt"), weights, config=CONFIG, step=7, **of_run)
    return Path("student.pt")


def test_all_of_a_checkpoint_is_in_it_and_sample_reads_it(student, capsys):
    assert call("convert.py", "--checkpoint", student, "--to_safetensors", "student.safetensors") == 0
    before, after = load_checkpoint(student), load_checkpoint("student.safetensors")
    for name in Metadata.model_fields:
        assert getattr(before, name) == getattr(after, name), name
    assert before.weights.keys() == after.weights.keys()
    assert all(torch.equal(after.weights[name], weight) for name, weight in before.weights.items())
    flags = ["--num_samples", 3, "--class", "Fuß", "--guidance", 2, "--precision", "fp32"]
    assert call("sample.py", "--checkpoint", student, *flags, "--output", "a.png") == 0
    assert call("sample.py", "--checkpoint", "student.safetensors", *flags, "--output", "b.png") == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_half_precision_halves_the_file_and_rounds_the_weights(student):
    for name, flags in (("full", ()), ("half", ("--half",))):
        assert call("convert.py", "--checkpoint", student, "--to_safetensors", f"{name}.safetensors", *flags) == 0
    before, after = load_checkpoint(student), load_checkpoint("half.safetensors")
    assert all(torch.equal(after.weights[name], weight.half().float()) for name, weight in before.weights.items())
    full, half = (Path(f"{name}.safetensors").stat().st_size for name in ("full", "half"))
    saved = sum(2 * weight.numel() for weight in before.weights.values())
    assert saved <= full - half < saved + 1000  # the header is a little shorter, too


@pytest.mark.parametrize(("name", "steps"), [("teacher", 1024), ("student-4", 4), ("student-2", 2), ("student-1", 1)])
def test_pretrained_models_are_in_the_repository(name, steps):
    checkpoint = load_checkpoint(ROOT / f"pretrained/mnist-{name}.safetensors")
    assert (checkpoint.kind, checkpoint.sampling.steps) == (name.split("-")[0], steps)


def rewrite(path: Path, **changes: object) -> None:
    """The file, with other metadata."""
    metadata = json.loads(load_metadata(path)) | changes
    save_file(load_file(path), path, {"progressive_distillation": json.dumps(metadata)})


def load_metadata(path: Path) -> str:
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header["__metadata__"]["progressive_distillation"]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", "No such file"),
        ("truncated", "truncated or damaged"),
        ("huge", "claims to have"),
        ("text", "not a safetensors file"),
        ("foreign", "not a checkpoint of this project"),
        ("no json", "metadata are not valid"),
        ("other", "its metadata are not valid: sampling"),
        ("names", "its metadata are not valid: trained_on.class_names: 2, but config.network.num_classes is 3"),
        ("wide", "do not fit its own configuration"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(student, capsys, what, said):
    path = Path("student.safetensors")
    assert call("convert.py", "--checkpoint", student, "--to_safetensors", path) == 0
    match what:
        case "missing":
            path.unlink()
        case "truncated":
            path.write_bytes(path.read_bytes()[:-100])
        case "huge":
            path.write_bytes((2**50).to_bytes(8, "little") + path.read_bytes()[8:])
        case "text":
            path.write_text("hello, this is no such file")
        case "foreign":
            save_file(load_file(path), path, {"format": "pt"})
        case "no json":
            save_file(load_file(path), path, {"progressive_distillation": "[" * 100_000})
        case "other":
            rewrite(path, sampling={"steps": -1})
        case "names":
            rewrite(path, trained_on={"data_hash": "x", "class_names": ["hat", "boot"]})
        case "wide":
            config = json.loads(load_metadata(path))["config"]
            rewrite(path, config=config | {"network": config["network"] | {"features": 16}})
    capsys.readouterr()
    assert call("sample.py", "--checkpoint", path) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error and len(error) < 600, error
