"""Writes the models of the page: ONNX files with weights in half precision, and models.json.

    python -m web.make_models digits pretrained/mnist-teacher.safetensors pretrained/mnist-student-{4,2,1}.safetensors

Into web/models/digits/; web/app.js lists such folders. The first model is the teacher, the others are its students.
The networks still compute in float32: weights are cast when they are loaded.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from utils.checkpoints.checkpoint import Checkpoint, load_checkpoint
from utils.checkpoints.to_onnx import write_onnx
from utils.system import cli
from utils.system.errors import InputError
from utils.system.seeds import seed_of

FOLDER = Path(__file__).parent / "models"
FEW = 16  # numbers keep their precision: nothing would be saved, and they may be shapes


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


def add_model(checkpoint: Checkpoint, target: Path) -> dict:
    """Writes the file of a model; returns its entry of models.json."""
    steps = checkpoint.sampling.steps if checkpoint.is_student else None
    matched = checkpoint.kind == "matched"
    path = target / (f"{'matched' if matched else 'student'}-{steps}.onnx" if steps else "teacher.onnx")
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(checkpoint, Path(folder, "model.onnx"))
        path.write_bytes(with_half_weights(Path(folder, "model.onnx").read_bytes()))
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    entry = {"file": path.name, "steps": steps, "matched": matched, "sampler": "ancestral" if matched else "ddim"}
    return entry | {"guidance": checkpoint.guidance is not None}


def require_drawable(checkpoint: Checkpoint, teacher: Checkpoint) -> None:
    """Raises InputError for a model that the page cannot draw: its schedule is cosine, and it has classes."""
    config = checkpoint.config
    for key, value, needed in (
        ("diffusion.schedule", config.diffusion.schedule, "cosine"),
        ("data.num_channels", config.data.num_channels, teacher.config.data.num_channels),
        ("data.image_size", config.data.image_size, teacher.config.data.image_size),
        ("sampling.clip", checkpoint.sampling.clip, False),
        ("trained_on.class_names", checkpoint.class_names, teacher.class_names),
    ):
        if value != needed:
            raise InputError(f"{checkpoint.path}: {key} is {value}, but the page needs {needed}")
    if not config.network.num_classes:
        raise InputError(f"{checkpoint.path}: network.num_classes is 0, but the page needs classes")


def main() -> None:
    """Replaces all files."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("name", help="of the folder in web/models/")
    parser.add_argument("teacher", help="the teacher's checkpoint")
    parser.add_argument("students", nargs="+", help="those of its students")
    arguments = parser.parse_args()
    teacher, *students = map(load_checkpoint, [arguments.teacher, *arguments.students])
    for checkpoint in (teacher, *students):
        require_drawable(checkpoint, teacher)
    target = FOLDER / arguments.name
    target.mkdir(parents=True, exist_ok=True)
    for path in target.glob("*.onnx"):
        path.unlink()
    diffusion = teacher.config.diffusion
    manifest = {
        "size": teacher.config.data.image_size,
        "channels": teacher.config.data.num_channels,
        "class_names": teacher.class_names,
        "schedule": {"logsnr_min": diffusion.logsnr_min, "logsnr_max": diffusion.logsnr_max},
        "noise_seed": seed_of("sample", 0),
        "guidance": students[0].guidance,
        "models": [add_model(checkpoint, target) for checkpoint in (teacher, *students)],
    }
    (target / "models.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
