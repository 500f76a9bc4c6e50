"""Reads a folder that `save_pretrained` of diffusers' `DDPMPipeline` or `DDIMPipeline` has written.

model_index.json                                       the classes of the parts
unet/config.json, diffusion_pytorch_model.safetensors  a `UNet2DModel`
scheduler/scheduler_config.json                        the noise schedule, the prediction type and the clipping

Old pipelines have all files in one folder. The weights may also be in several files, or a variant such as fp16.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from models.unet2d import UNet2DSettings
from utils.checkpoints.checkpoint import Metadata, build_model
from utils.checkpoints.tensor_files import read_safetensors, require_like
from utils.config.reading import explain
from utils.config.schema import Betas, Config
from utils.system.errors import InputError
from utils.system.files import read_at_most

MOST_JSON_BYTES = 2**20
WEIGHTS_NAME = "diffusion_pytorch_model"
PREDICTIONS = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}
LOSS_WEIGHTINGS = {"eps": "snr", "x": "constant", "v": "v_mse"}  # the error of what is predicted
EARLIER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# Keys of the sampler of diffusers, not of the model, with two old ones: see `sampling` in a configuration.
SAMPLER_KEYS = {"dynamic_thresholding_ratio", "sample_max_value", "set_alpha_to_one", "steps_offset", "tensor_format"}
SAMPLER_KEYS |= {"timestep_spacing", "timestep_values", "variance_type"}


YAML_HEAD = """# Converted from {source}.
#
#     python distill.py --config_path {path} \\
#       --teacher_model_checkpoint {checkpoint} --initial_sampling_steps {steps} --distillation_iterations 3
#
# Fill in `data`. `network` and `diffusion` are the teacher's, and must not be changed; `distillation` is a starting
# point: with prediction v, since predicting eps does not work in few steps. configs/ddpm_32x32_v_continuous.yaml
# explains every key.

data:  # what the teacher was trained on
  name: folder          # or MNIST, FashionMNIST, CIFAR10
  root: data/pictures
  random_flip: false    # whether images were mirrored at random
  image_size: {image_size}
  num_channels: {num_channels}

"""
DISTILLATION = {
    "prediction": "v",
    "num_conversion_steps": 1200,
    "conversion_learning_rate": 1e-3,
    "num_training_steps_per_iteration": {"default": 100, 16: 200, 8: 600, 4: 600, 2: 600, 1: 1000},
    "batch_size": 32,
    "learning_rate": {"default": 2e-4, 16: 4e-4, 8: 4e-4, 4: 4e-4, 2: 4e-4, 1: 4e-4},
    "adam_beta2": 0.95,
    "ema_decay": 0.0,
    "save_and_sample_every_n": 600,
}


def teacher_yaml(config: Config, *, source: str, checkpoint: Path, path: Path) -> str:
    """The text of the YAML of a converted teacher, to be completed."""
    sections = {
        "network": config.network.model_dump(),
        "diffusion": config.diffusion.model_dump(exclude={"logsnr_min", "logsnr_max"}),
        "training": config.training.model_dump(include={"class_dropout", "loss_weighting"}),
        "distillation": DISTILLATION,
        "sampling": {"sampling_steps": min(50, config.network.num_train_timesteps), "clip": config.sampling.clip},
    }
    paths = {"source": source, "checkpoint": checkpoint, "path": path}
    names = {name: " ".join(str(path).split()) for name, path in paths.items()}  # one line each
    # Students whose number of steps divides the network's timesteps can be exported to diffusers.
    steps = 4 * math.gcd(8, config.network.num_train_timesteps)
    head = YAML_HEAD.format(**names, steps=steps, **config.data.model_dump(include={"image_size", "num_channels"}))
    options = {"sort_keys": False, "default_flow_style": None, "width": 100}
    return head + "\n".join(yaml.safe_dump({name: content}, **options) for name, content in sections.items())


def read_pipeline(folder: Path, *, last_class_is_none: bool) -> tuple[Metadata, dict[str, Tensor]]:
    """The metadata of a checkpoint, complete except for the data and the distillation, and weights.

    With `last_class_is_none`, the last class of the network is the unconditional one, which guidance needs. Raises
    InputError if the folder contains something else, or something that this project does not support.
    """
    if not folder.exists():
        raise InputError(f"{folder}: no such folder, and not the name of a model on the hub, such as user/model")
    require_pipeline(folder / "model_index.json")
    unet, scheduler = (part if part.is_dir() else folder for part in (folder / "unet", folder / "scheduler"))
    diffusion, clip = _read_scheduler(scheduler / "scheduler_config.json")
    network, data = _read_network(unet / "config.json", diffusion["betas"]["num_train_timesteps"])
    if last_class_is_none:
        if network["num_classes"] < 2:
            raise InputError(f"--last_class_is_none: {unet / 'config.json'} has no such num_class_embeds")
        network["num_classes"] -= 1
    prediction, dropout = diffusion["prediction"], 0.1 if last_class_is_none else 0.0
    content = {
        "data": {"name": "folder", **data},
        "network": network,
        "diffusion": diffusion,
        "training": {"class_dropout": dropout, "loss_weighting": LOSS_WEIGHTINGS[prediction]},
        "distillation": {"prediction": "v"},
        "sampling": {"clip": clip},
    }
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{folder}: cannot be converted: {': '.join(explain(error))}") from error
    metadata = Metadata(config=config, step=0, kind="teacher", sampling=config.teacher_sampling, prediction=prediction)
    return metadata, _read_weights(unet, config, last_class_is_none)


def require_pipeline(index: Path) -> None:
    """Raises InputError unless this is the model_index.json of a pipeline that can be converted."""
    if not index.is_file():
        raise InputError(f"{index.parent}: not a diffusers pipeline: there is no model_index.json in it")
    _require_class(index, ["DDIMPipeline", "DDPMPipeline"])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_at_most(path, MOST_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file: {error!s:.200}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: should be keys and values, not {type(content).__name__}")
    return content


def _require_class(path: Path, names: list[str]) -> dict[str, Any]:
    """The keys of a JSON file that describes an object of one of these classes."""
    content = _read_json(path)
    if content.get("_class_name") not in names:
        found = f"{content.get('_class_name', 'none')!s:.80}"
        raise InputError(f"{path}: _class_name: {found}; should be {' or '.join(names)}")
    return {key: value for key, value in content.items() if not key.startswith("_")}


def _read_scheduler(path: Path) -> tuple[dict[str, Any], object]:
    """The section `diffusion` of a configuration, and `sampling.clip`."""
    content = _require_class(path, ["DDIMScheduler", "DDPMScheduler"])
    for key, only in (("predict_epsilon", True), ("thresholding", False)):
        if content.pop(key, only) is not only:
            raise InputError(f"{path}: {key}: should be {str(only).lower()}; nothing else is supported")
    clip, limit = content.pop("clip_sample", True), content.pop("clip_sample_range", 1.0)
    prediction = content.pop("prediction_type", "epsilon")
    if not isinstance(prediction, str) or prediction not in PREDICTIONS:
        raise InputError(f"{path}: prediction_type: should be {', '.join(PREDICTIONS)}, not {prediction!s:.80}")
    betas = {key: value for key, value in content.items() if key not in SAMPLER_KEYS}
    try:
        betas = Betas.model_validate(betas).model_dump()
    except ValidationError as error:
        raise InputError(f"{path}: {': '.join(explain(error, Betas))}") from error
    if betas["trained_betas"] is not None:
        betas["trained_betas"] = betas["trained_betas"][: betas["num_train_timesteps"]]
        betas["num_train_timesteps"] = len(betas["trained_betas"])
    diffusion = {"prediction": PREDICTIONS[prediction], "schedule": "discrete", "betas": betas}
    return diffusion, limit if clip is True else clip


def _read_network(path: Path, timesteps: int) -> tuple[dict[str, Any], dict[str, int]]:
    """The section `network` of a configuration, and the size and channels of the images."""
    content = _require_class(path, ["UNet2DModel"])
    size, channels = content.pop("sample_size", None), content.pop("in_channels", 3)
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    for key, value in (("sample_size", size), ("in_channels", channels)):
        if type(value) is not int:
            raise InputError(f"{path}: {key}: should be an integer, for square images, not {value!s:.80}")
    if content.pop("out_channels", 3) != channels:
        raise InputError(f"{path}: out_channels: should be in_channels, {channels}")
    if content.pop("class_embed_type", None) is not None:
        raise InputError(f"{path}: class_embed_type: should be null; only num_class_embeds is supported")
    num_classes = content.pop("num_class_embeds", None) or 0
    content |= {"type": "unet2d", "num_classes": num_classes, "num_train_timesteps": timesteps}
    try:
        network = UNet2DSettings.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {': '.join(explain(error, UNet2DSettings))}") from error
    return network.model_dump(), {"image_size": size, "num_channels": channels}


def _read_weights(folder: Path, config: Config, last_class_is_none: bool) -> dict[str, Tensor]:
    """The weights of the network, under their names in `UNet2D`."""
    path, variants = folder / f"{WEIGHTS_NAME}.safetensors", dict[str, list[Path]]()
    for file in sorted(folder.glob(f"{WEIGHTS_NAME}*.safetensors")):
        variants.setdefault(re.sub(r"-\d+-of-\d+", "", file.stem), []).append(file)
    files = variants.get(WEIGHTS_NAME) or next(iter(variants.values()), [])
    if not files:
        found = f"there is only {other.name}; " if (other := next(folder.glob("*.bin"), None)) else ""
        raise InputError(f"{path}: missing; {found}pickles are not read, and `save_pretrained` writes it by default")
    weights = {name: weight for file in files for name, weight in read_safetensors(file)[0].items()}
    for name in [name for name in weights if "attentions" in name.split(".")]:  # diffusers renames them, too
        weights[".".join(EARLIER_NAMES.get(part, part) for part in name.split("."))] = weights.pop(name)
    weights = {f"unet.{name}": weight for name, weight in weights.items()}
    classes = weights.pop("unet.class_embedding.weight", None)
    if classes is not None:
        weights["embed_label.weight"] = classes
        if last_class_is_none and classes.ndim == 2 and len(classes) > 1:
            # The embedding of the last class, the unconditional one, moves into the bias; it is then zero, as ours is.
            weights["embed_label.weight"], bias = classes[:-1] - classes[-1], "unet.time_embedding.linear_2.bias"
            if bias in weights and weights[bias].shape == classes[-1].shape:
                weights[bias] = weights[bias] + classes[-1]
    try:
        require_like(weights, build_model(config, torch.device("meta")).network.state_dict())
    except ValueError as error:
        raise InputError(f"{path}: does not fit unet/config.json: {error}") from error
    return weights
