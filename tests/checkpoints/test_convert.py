"""What convert.py says to someone who asks for what cannot be."""

from pathlib import Path

import pytest
import torch
from conftest import call, save_model
from pipelines import save_pipeline

import convert
from utils.checkpoints.checkpoint import build_model, load_checkpoint
from utils.config.reading import load_config
from utils.config.schema import Config
from utils.system.errors import InputError

DATA = {"name": "MNIST", "image_size": 16, "num_channels": 1}
OURS = {"features": 8, "multipliers": [1, 2], "attention_resolutions": []}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A pipeline; the teacher that it becomes; a student of it, of 16 steps, which do not divide 1000; one of ours."""
    folder = tmp_path_factory.mktemp("convert")
    save_pipeline(folder / "pipeline", unet={"num_class_embeds": 3})
    teacher = folder / "teacher/diffusion-0.pt"
    assert call("convert.py", "--from_diffusers", folder / "pipeline", "--output", teacher) == 0
    checkpoint = load_checkpoint(teacher)
    save_model(folder / "of_16.pt", checkpoint.weights, config=checkpoint.config, step=1, sampling_steps=16)
    config = Config.model_validate({"data": DATA, "network": OURS})
    weights = build_model(config, torch.device("cpu")).network.state_dict()
    save_model(folder / "ours.pt", weights, config=config, step=1, sampling_steps=8)
    (folder / "full").mkdir()
    (folder / "full/file").touch()
    (folder / "other.yaml").write_text("data: {name: MNIST, image_size: 32, num_channels: 1}\n")
    return folder


TEACHER = "teacher/diffusion-0.pt"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from_diffusers", "pipeline"], "--output"),
        (["--from_diffusers", "pipeline", "--to_onnx", "x.onnx"], "--output goes with --from_diffusers"),
        (["--checkpoint", TEACHER, "--output", "x.pt"], "--output goes with --from_diffusers"),
        (["--checkpoint", TEACHER, "--to_onnx", "x.onnx", "--guidance", 2], "--guidance goes with --to_diffusers"),
        (["--checkpoint", TEACHER, "--to_onnx", "x.pt"], "x.pt: should be the name of a .onnx file"),
        (["--checkpoint", TEACHER, "--to_safetensors", "x.pt"], "x.pt: should be the name of a .safetensors file"),
        (["--checkpoint", TEACHER, "--to_diffusers", "full"], "full: exists already"),
        (["--checkpoint", TEACHER, "--to_diffusers", "."], ".: is the current folder"),
        (
            ["--checkpoint", TEACHER, "--to_diffusers", "x", "--guidance", 2],
            "guidance 2: teacher/diffusion-0.pt",
        ),
        (["--checkpoint", "of_16.pt", "--to_diffusers", "x"], "of_16.pt: 16 steps do not divide its 1000 timesteps"),
        (
            ["--checkpoint", "ours.pt", "--to_diffusers", "x"],
            "ours.pt: not network.type unet2d; --to_onnx exports any network",
        ),
        (["--checkpoint", "none.pt", "--to_onnx", "x.onnx"], "none.pt: cannot be read"),
        (["--from_diffusers", "pipeline", "--output", TEACHER], "diffusion-0.pt: exists already"),
        (["--from_diffusers", "pipeline", "--output", "teacher/diffusion-1.pt"], "teacher.yaml: exists already"),
        (["--from_diffusers", "full", "--output", "x/diffusion-0.pt"], "full: not a diffusers pipeline"),
    ],
)
def test_one_line_and_nothing_written(folder, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert call("convert.py", *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error and len(error) < 500, error
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_yaml_is_called_like_the_folder_however_that_is_named(folder, tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    assert call("convert.py", "--from_diffusers", folder / "pipeline", "--output", "../y.pt") == 0
    assert (tmp_path / f"{tmp_path.name}.yaml").exists()


def test_a_yaml_that_cannot_be_written_leaves_nothing_in_the_way(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    original = convert.write_atomically

    def full(path, write):
        raise InputError(f"{path}: cannot be written: No space left on device")

    command = ["convert.py", "--from_diffusers", "pipeline", "--output", "second/diffusion-0.pt"]
    monkeypatch.setattr(convert, "write_atomically", full)
    assert call(*command) == 2 and "No space left" in capsys.readouterr().err
    monkeypatch.setattr(convert, "write_atomically", original)
    assert call(*command) == 0


def test_a_model_that_takes_no_scale_is_exported_whatever_it_is_sampled_with(folder, monkeypatch):
    monkeypatch.chdir(folder)
    teacher = load_checkpoint(TEACHER)
    changes = {"sampling": teacher.config.sampling.model_copy(update={"guidance": 2.0})}
    changes["training"] = teacher.config.training.model_copy(update={"class_dropout": 0.1})
    config = teacher.config.model_copy(update=changes)
    save_model(folder / "guided.pt", teacher.weights, config=config, step=1, sampling_steps=None)
    assert load_checkpoint("guided.pt").default_guidance == 2
    assert call("convert.py", "--checkpoint", "guided.pt", "--to_diffusers", "guided") == 0


def test_guidance_without_classes_is_no_checkpoint(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    content = torch.load("ours.pt", weights_only=True)
    torch.save(content | {"guidance": [1.0, 4.0]}, "wrong.pt")
    assert call("sample.py", "--checkpoint", "wrong.pt") == 2
    assert "guidance: needs classes (config.network.num_classes)" in capsys.readouterr().err


def test_data_of_another_size_than_the_teachers_are_named(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    flags = ["--config_path", "other.yaml", "--teacher_model_checkpoint", TEACHER, "--initial_sampling_steps", 8]
    assert call("distill.py", *flags, "--distillation_iterations", 1) == 2
    assert "not the model that other.yaml describes: data.image_size is 16, not 32" in capsys.readouterr().err


def test_the_yaml_beside_a_teacher_is_its_own_but_for_the_data(folder, monkeypatch):
    monkeypatch.chdir(folder)
    config, teacher = load_config("teacher/teacher.yaml"), load_checkpoint(TEACHER)
    teacher.require_same_model(config, "teacher.yaml")
    assert config.distillation.prediction == "v" and config.training.class_dropout == 0
