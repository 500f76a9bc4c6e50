"""A network of diffusers in the place of ours."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, call, run_script
from test_scripts import assert_same, contents, kill_once_there

from models.diffusion import UNCONDITIONAL
from models.unet2d import UNet2DSettings

SETTINGS = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
TINY = """
precision: fp32
data: {name: MNIST, root: %s, image_size: 16, num_channels: 1}
network:
  {type: unet2d, num_classes: 10, block_out_channels: [8, 16], down_block_types: [DownBlock2D, AttnDownBlock2D],
  up_block_types: [AttnUpBlock2D, UpBlock2D], layers_per_block: 1, norm_num_groups: 4, dropout: 0.1}
training: {num_training_steps: 60, batch_size: 8, learning_rate: 1e-3, save_and_sample_every_n: 20, log_every_n: 1}
distillation: {num_training_steps_per_iteration: 2, num_conversion_steps: 2, guidance: [1, 4], batch_size: 8}
sampling: {sampling_steps: 4, num_samples: 4, batch_size: 4}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY % (ROOT / "data"))
    return path


def test_the_scale_can_be_an_input_of_any_width():
    settings = UNet2DSettings(
        type="unet2d", num_classes=3, **SETTINGS | {"norm_num_groups": 1, "block_out_channels": [9, 16]}
    )
    network = settings.build(image_size=16, num_channels=1, takes_guidance=True)
    x = network(torch.randn(2, 1, 16, 16), torch.zeros(2), torch.zeros(2, dtype=torch.long), torch.ones(2))
    assert x.isfinite().all()


def test_no_class_is_the_zero_vector_and_the_scale_does_nothing_at_first():
    shape = {"image_size": 16, "num_channels": 1}
    network = UNet2DSettings(type="unet2d", num_classes=3, **SETTINGS).build(**shape, takes_guidance=True).eval()
    without = UNet2DSettings(type="unet2d", **SETTINGS).build(**shape).eval()
    without.unet.load_state_dict(network.unet.state_dict())
    z, timestep = torch.randn(3, 1, 16, 16), torch.tensor([0.0, 12.5, 999.0])
    label, scale = torch.tensor([UNCONDITIONAL, 2, UNCONDITIONAL]), torch.tensor([1.0, 2.0, 4.0])
    found, expected = network(z, timestep, label, scale), without(z, timestep)
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]])
    assert not torch.allclose(found[1], expected[1], atol=1e-3)


def test_killed_and_continued_bit_for_bit_then_distilled_and_sampled(tiny, tmp_path, monkeypatch):
    kill_once_there(tmp_path / "output/tiny/training_state.pt", "train.py", "--config_path", tiny, cwd=tmp_path)
    assert not (tmp_path / "output/tiny/diffusion-60.pt").exists()
    continued = run_script("train.py", "--config_path", tiny, cwd=tmp_path)
    assert continued.returncode == 0, continued.stderr
    assert "from step 20" in continued.stdout or "from step 40" in continued.stdout
    monkeypatch.chdir(tmp_path)
    assert call("train.py", "--config_path", tiny, "--output_dir", "undisturbed") == 0
    for name in ("diffusion-60.pt", "training_state.pt"):
        assert_same(contents(Path("output/tiny", name)), contents(Path("undisturbed", name)))
    teacher = ["--teacher_model_checkpoint", "undisturbed/diffusion-60.pt", "--initial_sampling_steps", 4]
    assert call("distill.py", "--config_path", tiny, *teacher, "--distillation_iterations", 2) == 0
    student = "output/distilled/tiny/2_2/diffusion-2.pt"
    assert call("sample.py", "--checkpoint", student, "--guidance", 3, "--class", 7, "--num_samples", 2) == 0
    assert call("bench.py", "--config_path", tiny, "--batch_size", 2, "--rounds", 1) == 0


def test_without_diffusers_one_line_says_so(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert call("train.py", "--config_path", tiny) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pip install diffusers" in said and not Path("output").exists()
