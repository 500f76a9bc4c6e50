"""Checkpoints on the disk: `diffusion-<step>.pt`, and the same as a safetensors file."""

from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from models.diffusion import Prediction
from utils.checkpoints import Checkpoint, Metadata, TrainedOn
from utils.config import explain
from utils.errors import InputError, first_of
from utils.files import exists, find_files, read_safetensors, read_torch_file, write_atomically
from utils.schema import Config

FORMAT_VERSION = 3
SINCE = {"prediction": 3, "trained_on": 2, "guidance": 2}  # the version of the format that each came with; all are read
SAFETENSORS, IN_TEXT = ".safetensors", "progressive_distillation"  # the suffix of such files; the key of what they say


def save_checkpoint(
    path: Path,
    weights: dict[str, Tensor],
    *,
    config: Config,
    step: int,
    sampling_steps: int | None,
    prediction: Prediction | None = None,
    guidance: list[float] | None = None,
    trained_on: TrainedOn | None = None,
) -> None:
    """Writes `diffusion-<step>.pt`: plain tensors, numbers and strings."""
    content = {
        "format_version": FORMAT_VERSION,
        "config": config.model_dump(),
        "step": step,
        "sampling_steps": sampling_steps,
        "prediction": prediction,
        "guidance": guidance,
        "trained_on": trained_on and trained_on.model_dump(),
        "weights": {name: weight.cpu() for name, weight in weights.items()},
    }
    write_atomically(path, lambda file: torch.save(content, file))


def save_safetensors(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint as a safetensors file: the weights, and all else as its text, in JSON."""
    from safetensors.torch import save

    metadata = Metadata(**{name: getattr(checkpoint, name) for name in Metadata.model_fields})
    weights = {name: weight.contiguous() for name, weight in checkpoint.weights.items()}
    content = save(weights, {IN_TEXT: metadata.model_dump_json(), "format": "pt"})
    write_atomically(path, lambda file: file.write(content))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a `diffusion-<step>.pt`, or a safetensors file.

    Raises:
        InputError: the file is missing, truncated, no checkpoint, of another format version, or its contents are off.
    """
    path = Path(path)
    if not exists(path) and (others := find_files(path.parent, "diffusion-*.pt")):
        raise InputError(
            f"{path}: cannot be read: No such file; there are {first_of([other.name for other in others])}"
        )
    try:
        metadata, weights = _read_safetensors(path) if path.suffix == SAFETENSORS else _read_torch_file(path)
    except ValidationError as error:
        raise InputError(f"{path}: its metadata are not valid: {': '.join(explain(error, Metadata))}") from error
    checkpoint = Checkpoint(
        path=path, weights=weights, **{name: getattr(metadata, name) for name in Metadata.model_fields}
    )
    checkpoint.require_own_weights()
    return checkpoint


def _read_torch_file(path: Path) -> tuple[Metadata, dict[str, Tensor]]:
    keys, versions = Metadata.model_fields.keys() | {"weights"}, range(1, FORMAT_VERSION + 1)
    keys_of = {version: {key for key in keys if SINCE.get(key, 1) <= version} for version in versions}
    content = read_torch_file(path, keys_of, "a checkpoint")
    if "trained_on" not in content:
        _was_always_told_the_class(content["config"])
    weights = content.pop("weights")
    return Metadata.model_validate(content), weights


def _read_safetensors(path: Path) -> tuple[Metadata, dict[str, Tensor]]:
    weights, text = read_safetensors(path)
    if IN_TEXT not in text:
        raise InputError(f"{path}: not a checkpoint of this project: there is no {IN_TEXT} in its metadata")
    return Metadata.model_validate_json(text[IN_TEXT]), weights


def _was_always_told_the_class(config: object) -> None:
    """Puts into a configuration of the first format what was not yet to be chosen, and now has another default."""
    training = config.get("training") if isinstance(config, dict) else None
    if isinstance(training, dict):
        training["class_dropout"] = 0.0
