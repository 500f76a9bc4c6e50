"""Writes a model as an ONNX file, for runtimes without PyTorch and without this project."""

import json
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from models.diffusion import Diffusion
from models.noise_schedule import angle_of
from utils.checkpoints.checkpoint import Checkpoint
from utils.system.errors import InputError
from utils.system.files import write_atomically


class Velocity(nn.Module):
    """v(z, logsnr[, label][, guidance]), whatever the network predicts and is conditioned on."""

    def __init__(self, model: Diffusion):
        super().__init__()
        self.model, self.network = model, model.network

    def forward(self, z: Tensor, logsnr: Tensor, label: Tensor | None = None, guidance: Tensor | None = None) -> Tensor:
        """z [B, C, H, W] and logsnr, label and guidance [B] to [B, C, H, W]."""
        model = self.model
        time = logsnr if model.timesteps is None else model.timesteps * model.schedule.time(logsnr) - 1
        output = self.network(z, time, label, *([] if guidance is None else [guidance]))
        return model.to_v(output, z, angle_of(logsnr))


def write_onnx(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the file, completely or not at all.

    Its inputs are z [B, C, H, W], logsnr [B] and, if the model has them, label [B] (int64) and guidance [B]; its output
    is v. Its metadata contain, as JSON, `sampling_steps`, `sampler`, `clip`, the list `logsnr` at the beginning of each
    step, `class_names`, the range `guidance`, and the `schedule`. Raises InputError if a library is missing.
    """
    if not (find_spec("onnx") and find_spec("onnxscript")):
        raise InputError("--to_onnx: needs two libraries: pip install onnx onnxscript")
    config, model = checkpoint.config, checkpoint.model(torch.device("cpu"))
    model.network.for_inference()
    size, batch = config.data.image_size, 2
    inputs = {
        "z": torch.randn(batch, config.data.num_channels, size, size),
        "logsnr": torch.zeros(batch),
        "label": torch.zeros(batch, dtype=torch.long) if config.network.num_classes else None,
        "guidance": torch.ones(batch) if checkpoint.guidance else None,
    }
    inputs = {name: value for name, value in inputs.items() if value is not None}
    velocity = Velocity(model).eval()
    velocity(**inputs)  # a first call fills caches with numbers; the exporter's call would fill them with symbols
    with warnings.catch_warnings(action="ignore"):  # the exporter's, about its own internals
        program = torch.onnx.export(
            velocity,
            kwargs=inputs,
            input_names=list(inputs),
            output_names=["v"],
            dynamic_shapes={name: {0: torch.export.Dim("batch")} for name in inputs},
            dynamo=True,
            verbose=False,
        )
    for node in program.model.graph:  # removes source locations, a third of the file
        node.metadata_props.clear()
    program.model.metadata_props.update(_metadata(checkpoint, model))
    write_atomically(path, lambda file: file.write(program.model_proto.SerializeToString()))


def _metadata(checkpoint: Checkpoint, model: Diffusion) -> dict[str, str]:
    steps, settings = checkpoint.sampling.steps, checkpoint.config.diffusion
    i = torch.arange(steps, 0, -1, dtype=torch.float64)
    schedule = {"schedule": settings.schedule}
    if settings.betas:
        schedule["logsnr_of_timesteps"] = model.schedule.table[1:].tolist()
    else:
        schedule |= {"logsnr_min": settings.logsnr_min, "logsnr_max": settings.logsnr_max}
    content = {
        "sampling_steps": steps,
        "sampler": checkpoint.sampling.sampler,
        "clip": checkpoint.sampling.clip,
        "logsnr": model.schedule.logsnr(i / steps).tolist(),
        "class_names": checkpoint.class_names,
        "guidance": checkpoint.guidance,
        "schedule": schedule,
    }
    return {name: json.dumps(value) for name, value in content.items()}
