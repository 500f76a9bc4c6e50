"""Samples as files for other tools: an .npz, or a folder of PNGs."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, call, finish, run_in_processes, save_model
from PIL import Image

from utils.checkpoints.checkpoint import build_model, load_checkpoint
from utils.checkpoints.sampling import draw_samples
from utils.config.schema import Config, Data
from utils.data import folder_cache
from utils.data.datasets import load_images

CONFIG = Config.model_validate(
    {
        "data": {"name": "MNIST", "image_size": 8, "num_channels": 3},
        "network": {"features": 8, "multipliers": [1, 2], "attention_resolutions": [], "num_classes": 3},
        "precision": "fp32",
        "compile": False,
    }
)
FLAGS = ["--checkpoint", "m.pt", "--num_samples", 7, "--batch_size", 2, "--seed", 5]


@pytest.fixture(autouse=True)
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = build_model(CONFIG, torch.device("cpu")).network.state_dict()
    save_model(Path("m.pt"), weights, config=CONFIG, sampling_steps=2)


def expected(classes: list[int]) -> np.ndarray:
    """The bytes of the samples [N, H, W, C]."""
    checkpoint = load_checkpoint("m.pt")
    options = {"sampling": checkpoint.sampling, "classes": classes, "seed": 5, "device": torch.device("cpu")}
    samples = draw_samples(checkpoint.model(torch.device("cpu")), CONFIG, 7, **options)
    return (samples * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def pngs(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


@pytest.mark.parametrize("processes", [1, 2])
def test_an_npz_has_the_samples_and_their_classes(tmp_path, processes):
    if processes == 1:
        assert call("sample.py", *FLAGS, "--class", 2, 0, "--output", "samples.npz") == 0
    else:
        flags = [*FLAGS, "--class", 2, 0, "--output", "samples.npz"]
        code, _, errors = finish(run_in_processes(2, "sample.py", *flags, cwd=tmp_path))
        assert code == 0, errors
    content = np.load("samples.npz")
    assert content["arr_0"].dtype == np.uint8 and content["arr_1"].tolist() == [2, 0, 2, 0, 2, 0, 2]
    assert np.abs(content["arr_0"].astype(int) - expected([2, 0])).max() <= (processes > 1)
    assert sorted(path.name for path in Path().iterdir()) == ["m.pt", "samples.npz"]


def test_a_killed_command_completes_its_folder_which_is_a_data_set(tmp_path, monkeypatch):
    command = [sys.executable, str(ROOT / "sample.py"), *map(str, FLAGS), "--output", "samples", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = Path("samples/000000.png"), Path("samples/000001.png")  # one batch
    while not first[1].exists() and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.wait()
    for path in set(Path("samples").glob("*.png")) - set(first):
        path.unlink()
    Path("samples/000004.png").touch()  # as a power failure leaves a file
    Path("samples/.000005.png.01234567.tmp").touch()
    before = [path.stat().st_mtime_ns for path in first]
    assert call("sample.py", *FLAGS, "--output", "samples/") == 0
    assert [path.stat().st_mtime_ns for path in first] == before and not list(Path("samples").glob(".*.tmp"))
    assert np.array_equal(pngs(Path("samples")), expected([0, 1, 2]))
    monkeypatch.setattr(folder_cache, "CACHE", tmp_path / "cache")
    images = load_images(Data(name="folder", root="samples", image_size=8, num_channels=3))
    assert images.class_names == ["0", "1", "2"] and images.labels.tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_nothing_is_mixed_or_overwritten(tmp_path, capsys):
    assert call("sample.py", *FLAGS, "--output", "samples") == 0
    before = pngs(Path("samples"))
    Path("pictures").mkdir()
    Path("pictures/a.txt").write_text("mine")
    Path("a.npz").touch()
    for flags, message in (
        (["--output", "samples", "--seed", 6], "samples: has other samples: seed is 5, not 6; delete this folder, or"),
        (["--output", "samples", "--sampling_steps", 3], "samples: has other samples: sampler.steps is 2, not 3; "),
        (["--output", "samples", "--num_samples", 3], "samples: has more than 3 samples; delete this folder, or"),
        (["--output", "pictures"], "--output pictures: not empty, and not of sample.py; choose another folder"),
        (["--output", "a.npz"], "--output a.npz: is there and complete; choose another name"),
        (["--output", "a.gif"], "--output a.gif: should be a .png for a grid, an .npz, or a folder"),
    ):
        capsys.readouterr()
        assert call("sample.py", *FLAGS, *flags) == 2 and message in capsys.readouterr().err
    assert np.array_equal(pngs(Path("samples")), before) and Path("a.npz").stat().st_size == 0
    Path("samples/.samples.json").rename("kept.json")
    for content in ("{", "[]", '{"seed": 1}'):
        Path("samples/.samples.json").write_text(content)
        assert call("sample.py", *FLAGS, "--output", "samples") == 2
        assert "samples: has other samples: " in capsys.readouterr().err
    Path("kept.json").rename("samples/.samples.json")
    assert call("sample.py", *FLAGS, "--output", "samples", "--num_samples", 9) == 0
    assert np.array_equal(pngs(Path("samples"))[:7], before) and len(pngs(Path("samples"))) == 9
