"""Folders that diffusers' `DDPMPipeline` and `DDIMPipeline` write with `save_pretrained`, and read.

model_index.json                                       which classes the parts are of
unet/config.json, diffusion_pytorch_model.safetensors  a `UNet2DModel`
scheduler/scheduler_config.json                        the noise schedule, and what the network predicts
"""

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from utils.checkpoints import build_model
from utils.config import explain
from utils.errors import InputError
from utils.files import read_json, read_safetensors
from utils.files.torch_file import require_like
from utils.networks import DiffusersUNet
from utils.schema import Betas, Config

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
PREDICTIONS = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}
LOSS_WEIGHTINGS = {"eps": "snr", "x": "constant", "v": "v_mse"}  # the error of what is predicted
EARLIER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# What concerns the sampler of diffusers, and not the model: see `sampling` in a configuration.
OF_THE_SAMPLER = {
    "clip_sample",
    "clip_sample_range",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "set_alpha_to_one",
    "steps_offset",
    "thresholding",
    "timestep_spacing",
    "variance_type",
}


def read_pipeline(folder: Path, *, last_class_is_none: bool) -> tuple[Config, dict[str, Tensor]]:
    """A model as a configuration, complete but for the data and how it is to be distilled, and weights.

    Args:
        last_class_is_none: whether the last class that the network knows stands for none, as guidance needs it.

    Raises:
        InputError: the folder holds something else, or something that this project has no name for.
    """
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder}: no folder of a diffusers pipeline: there is no model_index.json in it")
    _require_class(folder / "model_index.json", ["DDIMPipeline", "DDPMPipeline"])
    diffusion = _read_scheduler(folder / "scheduler" / "scheduler_config.json")
    network, data = _read_network(folder / "unet" / "config.json", diffusion["betas"]["num_train_timesteps"])
    if last_class_is_none:
        if network["num_classes"] < 2:
            raise InputError(f"--last_class_is_none: {folder / 'unet' / 'config.json'} has no such num_class_embeds")
        network["num_classes"] -= 1
    prediction = diffusion["prediction"]
    content = {
        "data": {"name": "folder", **data},
        "network": network,
        "diffusion": diffusion,
        "training": {
            "class_dropout": 0.1 if last_class_is_none else 0.0,
            "loss_weighting": LOSS_WEIGHTINGS[prediction],
        },
        "distillation": {"prediction": "v"},
    }
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{folder}: cannot be taken over: {': '.join(explain(error))}") from error
    return config, _read_weights(folder / "unet", config, last_class_is_none)


def _require_class(path: Path, names: list[str]) -> dict[str, Any]:
    """The content of a JSON file that describes an object of one of these classes, without what only names it."""
    content = read_json(path)
    if content.get("_class_name") not in names:
        found = f"{content.get('_class_name', 'none')!s:.80}"
        raise InputError(f"{path}: _class_name: {found}; should be {' or '.join(names)}")
    return {key: value for key, value in content.items() if not key.startswith("_")}


def _read_scheduler(path: Path) -> dict[str, Any]:
    """The section `diffusion` of a configuration."""
    content = _require_class(path, ["DDIMScheduler", "DDPMScheduler"])
    prediction = content.pop("prediction_type", "epsilon")
    if not isinstance(prediction, str) or prediction not in PREDICTIONS:
        raise InputError(f"{path}: prediction_type: should be {', '.join(PREDICTIONS)}, not {prediction!s:.80}")
    betas = {key: value for key, value in content.items() if key not in OF_THE_SAMPLER}
    try:
        betas = Betas.model_validate(betas).model_dump()
    except ValidationError as error:
        raise InputError(f"{path}: {': '.join(explain(error, Betas))}") from error
    if betas["trained_betas"] is not None:
        betas["trained_betas"] = betas["trained_betas"][: betas["num_train_timesteps"]]
        betas["num_train_timesteps"] = len(betas["trained_betas"])
    return {"prediction": PREDICTIONS[prediction], "schedule": "discrete", "betas": betas}


def _read_network(path: Path, timesteps: int) -> tuple[dict[str, Any], dict[str, int]]:
    """The section `network` of a configuration, and the size and channels of the images."""
    content = _require_class(path, ["UNet2DModel"])
    size, channels = content.pop("sample_size", None), content.pop("in_channels", 3)
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    for key, value in (("sample_size", size), ("in_channels", channels)):
        if type(value) is not int:
            raise InputError(f"{path}: {key}: should be a whole number, of square images, not {value!s:.80}")
    if content.pop("out_channels", 3) != channels:
        raise InputError(f"{path}: out_channels: should be in_channels, {channels}: one number a pixel and channel")
    if content.pop("class_embed_type", None) is not None:
        raise InputError(f"{path}: class_embed_type: should be null; classes can be embedded by num_class_embeds only")
    num_classes = content.pop("num_class_embeds", None) or 0
    content |= {"type": "unet2d", "num_classes": num_classes, "num_train_timesteps": timesteps}
    try:
        network = DiffusersUNet.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {': '.join(explain(error, DiffusersUNet))}") from error
    return network.model_dump(), {"image_size": size, "num_channels": channels}


def _read_weights(folder: Path, config: Config, last_class_is_none: bool) -> dict[str, Tensor]:
    """The weights of the network, under the names that `UNet2D` has for them."""
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        others = sorted(other.name for pattern in ("*.bin", "*.safetensors*") for other in folder.glob(pattern))
        found = f"there is only {others[0]}; " if others else ""
        raise InputError(
            f"{path}: missing; {found}what is pickled is not read, and `save_pretrained` writes this file by default"
        )
    weights, _ = read_safetensors(path)
    weights = {f"unet.{_renamed(name)}": weight for name, weight in weights.items()}
    classes = weights.pop("unet.class_embedding.weight", None)
    if classes is not None:
        weights["embed_label.weight"] = classes
        if last_class_is_none and classes.ndim == 2 and len(classes) > 1:
            _make_none_zero(weights)
    try:
        require_like(weights, build_model(config, torch.device("meta")).network.state_dict())
    except ValueError as error:
        raise InputError(f"{path}: does not fit unet/config.json: {error}") from error
    return weights


def _renamed(name: str) -> str:
    """The name of a weight today; diffusers renames those of earlier attention, too."""
    parts = name.split(".")
    return ".".join(EARLIER_NAMES.get(part, part) for part in parts) if "attentions" in parts else name


def _make_none_zero(weights: dict[str, Tensor]) -> None:
    """Moves the vector of the last class, "none", into the bias that is added to all: it is 0 from then on, as ours."""
    classes, bias = weights["embed_label.weight"], "unet.time_embedding.linear_2.bias"
    if bias in weights and weights[bias].shape == classes[-1].shape:
        weights[bias] = weights[bias] + classes[-1]
    weights["embed_label.weight"] = classes[:-1] - classes[-1]
