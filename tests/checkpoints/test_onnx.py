"""ONNX files, drawn from by onnxruntime and numpy alone."""

import json
import textwrap
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT, call, save_model

from models.guidance import guided
from models.samplers import SAMPLERS, ddim
from utils.checkpoints.checkpoint import build_model, load_checkpoint
from utils.config.schema import Config

OURS = {"features": 8, "multipliers": [1, 2], "num_residual_blocks": 1, "attention_resolutions": [], "patch_size": 2}
THEIRS = {
    "type": "unet2d",
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
DISCRETE = {"schedule": "discrete", "betas": {}}


def save_student(
    path: Path,
    network: dict,
    diffusion: dict,
    guidance: list[float] | None,
    image_size: int = 16,
    kind: str = "student",
) -> None:
    """A student of 8 steps with random weights."""
    content = {
        "data": {"name": "MNIST", "image_size": image_size, "num_channels": 1},
        "network": network,
        "diffusion": diffusion,
        "training": {"class_dropout": 0.1},
    }
    config = Config.model_validate(content)
    model = build_model(config, torch.device("cpu"), takes_guidance=guidance is not None)
    for parameter in model.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_model(path, model.network.state_dict(), config=config, step=1, sampling_steps=8, guidance=guidance, kind=kind)


def draw(path: str, z: np.ndarray, **inputs: np.ndarray) -> np.ndarray:
    """The sampler of docs/interop.md, for any inputs."""
    session = onnxruntime.InferenceSession(path)
    logsnr = json.loads(session.get_modelmeta().custom_metadata_map["logsnr"])
    phi = [*np.arctan(np.exp(-np.array(logsnr) / 2)), 0]
    for level, begin, end in zip(logsnr, phi, phi[1:], strict=False):
        v = session.run(["v"], {"z": z, "logsnr": np.full(len(z), level, np.float32), **inputs})[0]
        z = (np.cos(begin - end) * z - np.sin(begin - end) * v).astype(np.float32)
    return z


@pytest.mark.parametrize(
    ("network", "diffusion"),
    [(OURS, {"schedule": "linear", "prediction": "x"}), (THEIRS, DISCRETE)],
    ids=["ours", "theirs"],
)
def test_numpy_draws_the_same_pictures(tmp_path, monkeypatch, network, diffusion):
    monkeypatch.chdir(tmp_path)
    save_student(Path("student.pt"), network, diffusion, None)
    assert call("convert.py", "--checkpoint", "student.pt", "--to_onnx", "student.onnx") == 0
    model = load_checkpoint("student.pt").model(torch.device("cpu"))
    for batch in (1, 5):
        z = torch.randn(batch, 1, 16, 16)
        with torch.no_grad():
            expected = ddim(model, z, 8, clip=False)
        assert_alike(draw("student.onnx", z.numpy()), expected)


def assert_alike(found: np.ndarray, expected: torch.Tensor) -> None:
    """To 1e-3 of the largest value."""
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-3 * expected.abs().max().item())


STUDENTS = {"ddim": ("student", THEIRS), "ancestral": ("matched", OURS)}


@pytest.mark.parametrize("sampler", STUDENTS)
def test_the_sampler_of_the_docs_classes_guidance_and_metadata(tmp_path, monkeypatch, capsys, sampler):
    monkeypatch.chdir(tmp_path)
    kind, network = STUDENTS[sampler]
    save_student(
        Path("student.pt"), network | {"num_classes": 10}, {"schedule": "cosine"}, [1.0, 4.0], image_size=32, kind=kind
    )
    assert call("convert.py", "--checkpoint", "student.pt", "--to_onnx", "student.onnx") == 0
    z, label, scale = torch.randn(16, 1, 32, 32), torch.arange(16) % 10, torch.full((16,), 2.5, dtype=torch.float64)
    with torch.no_grad():
        student = guided(load_checkpoint("student.pt").model(torch.device("cpu")), scale)
        noise = {"noise": lambda: z} if sampler == "ancestral" else {}
        expected = SAMPLERS[sampler].sample(student, z, 8, label=label, **noise)
    if sampler == "ddim":
        assert_alike(draw("student.onnx", z.numpy(), label=label.numpy(), guidance=scale.float().numpy()), expected)

    session = onnxruntime.InferenceSession("student.onnx")
    said = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert said["schedule"] == {"schedule": "cosine", "logsnr_min": -20.0, "logsnr_max": 20.0}
    assert (said["sampling_steps"], said["sampler"], said["guidance"]) == (8, sampler, [1.0, 4.0])
    assert said["class_names"][9] == "9"
    assert len(said["logsnr"]) == 8 and said["logsnr"][::4] == pytest.approx([-20, 0])

    page = (ROOT / "docs/interop.md").read_text()
    sampler = page.split("    import json, numpy as np, onnxruntime\n")[1].split("\n\n")[0]
    sampler = sampler.replace('"label":', '"guidance": np.full(16, 2.5, "float32"), "label":')
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "randn", lambda *shape: z.numpy())
        exec("import json, numpy as np, onnxruntime\n" + textwrap.dedent(sampler), names)
    assert_alike(2 * names["images"] - 1, expected.clamp(-1, 1))

    before = Path("student.onnx").read_bytes()
    assert call("convert.py", "--checkpoint", "student.pt", "--to_onnx", "student.onnx") == 2
    assert "exists already" in capsys.readouterr().err and Path("student.onnx").read_bytes() == before
