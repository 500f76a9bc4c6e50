"""What the page cannot draw is refused when its models are made."""

import sys

import pytest
import torch
from conftest import save_model

from utils.checkpoints.checkpoint import build_model
from utils.config.schema import Config
from utils.system import cli
from web import make_models

DATA = {"name": "MNIST", "image_size": 8, "num_channels": 1}
NETWORK = {"features": 4, "multipliers": [1], "num_residual_blocks": 1, "attention_resolutions": [], "num_classes": 5}


def save(path, data=(), network=(), diffusion=(), **options) -> None:
    content = {"data": DATA | dict(data), "network": NETWORK | dict(network), "diffusion": dict(diffusion)}
    config = Config.model_validate(content)
    save_model(path, build_model(config, torch.device("cpu")).network.state_dict(), config=config, **options)


def make(*arguments: object) -> None:
    sys.argv = ["make_models.py", "digits", *map(str, arguments)]
    with pytest.raises(SystemExit, match="2"):
        cli.run(make_models.main)


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ({"diffusion": {"schedule": "linear"}}, "diffusion.schedule is linear, but the page needs cosine"),
        ({"data": {"num_channels": 3}}, "data.num_channels is 3, but the page needs 1"),
        ({"data": {"image_size": 16}}, "data.image_size is 16, but the page needs 8"),
        ({"network": {"num_classes": 4}}, "trained_on.class_names is "),
    ],
)
def test_models_that_the_page_cannot_draw(tmp_path, monkeypatch, capsys, student, said):
    monkeypatch.setattr(make_models, "FOLDER", tmp_path / "models")
    save(tmp_path / "teacher.pt")
    save(tmp_path / "student.pt", sampling_steps=4, **student)
    make(tmp_path / "teacher.pt", tmp_path / "student.pt")
    assert f"student.pt: {said}" in capsys.readouterr().err and not (tmp_path / "models").exists()


def test_models_that_are_missing_are_one_line(capsys):
    for arguments, said in ((["none.pt"], "students"), (["none.pt", "none.pt"], "none.pt: cannot be read")):
        make(*arguments)
        assert said in capsys.readouterr().err
