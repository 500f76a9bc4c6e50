"""Writes the models of the page: ONNX files with weights in half precision, and models.json.

    python -m web.make_models output/ddpm_32x32_v_continuous_small/diffusion-3000.pt \\
      output/distilled/ddpm_32x32_v_continuous_small/{7_8,8_4,9_2,10_1}

The first is the teacher, a checkpoint; the others are the folders of its students. The networks still compute in
float32; their weights are cast when they are loaded. A model keeps float32 weights if its samples would change.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from models.diffusion import Diffusion
from utils.checkpoints.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint
from utils.checkpoints.sampling import draw_samples
from utils.checkpoints.to_onnx import write_onnx
from utils.system.seeds import seed_of

FOLDER = Path(__file__).parent / "models"
FEW = 16  # numbers keep their precision: nothing would be saved, and they may be shapes
TEACHER_STEPS = 128  # to compare its two precisions
SAME = 2 / 255  # one grey level


def with_half_weights(content: bytes) -> bytes:
    """An ONNX file whose weights are in half precision, each cast back by a node."""
    model = onnx.load_from_string(content)
    graph, casts = model.graph, []
    for weight in list(graph.initializer):
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.size > FEW:
            graph.initializer.remove(weight)
            graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), f"{weight.name}.half"))
            casts.append(helper.make_node("Cast", [f"{weight.name}.half"], [weight.name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return model.SerializeToString()


def draw(content: bytes, checkpoint: Checkpoint) -> Tensor:
    """The first ten samples of sample.py, one of each class, [10, 1, H, W] in [-1, 1], by the network in the file."""
    session = onnxruntime.InferenceSession(content)

    def network(*inputs: Tensor) -> Tensor:
        named = zip(session.get_inputs(), inputs, strict=True)
        return torch.from_numpy(session.run(["v"], {one.name: value.numpy() for one, value in named})[0])

    config, sampling = checkpoint.config, checkpoint.sampling
    if checkpoint.kind == "teacher":
        sampling = sampling.model_copy(update={"steps": TEACHER_STEPS})
    model = Diffusion(network, config.diffusion.noise_schedule(), "v", takes_guidance=checkpoint.guidance is not None)
    return draw_samples(model, config, 10, sampling=sampling, seed=0, device=torch.device("cpu"))


def add_model(checkpoint: Checkpoint) -> dict:
    """Writes the file of a model; returns its entry of models.json."""
    steps = checkpoint.sampling.steps if checkpoint.kind == "student" else None
    path = FOLDER / (f"student-{steps}.onnx" if steps else "teacher.onnx")
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(checkpoint, Path(folder, "model.onnx"))
        content = Path(folder, "model.onnx").read_bytes()
    half = with_half_weights(content)
    difference = float((draw(half, checkpoint) - draw(content, checkpoint)).abs().max())
    is_same = difference <= SAME
    path.write_bytes(half if is_same else content)
    kind = "half" if is_same else "single"
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {kind} precision; halved, samples differ by {difference:.4f}")
    return {"file": path.name, "steps": steps, "guidance": checkpoint.guidance is not None}


def main() -> None:
    """Replaces all files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path, help="a checkpoint of the teacher")
    parser.add_argument("students", type=Path, nargs="+", help="folders of its students")
    arguments = parser.parse_args()
    teacher = load_checkpoint(arguments.teacher)
    students = [load_checkpoint(latest_checkpoint(folder)) for folder in arguments.students]
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.onnx"):
        path.unlink()
    diffusion = teacher.config.diffusion
    manifest = {
        "size": teacher.config.data.image_size,
        "class_names": teacher.class_names,
        "schedule": {"logsnr_min": diffusion.logsnr_min, "logsnr_max": diffusion.logsnr_max},
        "noise_seed": seed_of("sample", 0),
        "guidance": students[0].guidance,
        "models": [add_model(checkpoint) for checkpoint in (teacher, *students)],
    }
    (FOLDER / "models.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
