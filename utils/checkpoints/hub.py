"""Fetches a diffusers pipeline from the Hugging Face hub: its configuration and safetensors, never a pickle."""

import os
import re
from pathlib import Path

from utils.checkpoints.from_diffusers import require_pipeline
from utils.system.errors import InputError

WEIGHTS = "diffusion_pytorch_model*.safetensors"
CONFIGURATION = ["unet/config.json", "scheduler/scheduler_config.json", "config.json", "scheduler_config.json"]
FILES = [*CONFIGURATION, f"unet/{WEIGHTS}", WEIGHTS]  # old pipelines have no subfolders


def is_hub_name(text: str) -> bool:
    """Whether this can be the name of a model on the hub, such as google/ddpm-cifar10-32, and is no folder here."""
    return bool(re.fullmatch(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", text)) and not os.path.exists(text)


def fetch_pipeline(name: str, revision: str | None) -> tuple[Path, str]:
    """The folder of a pipeline in the hub's cache, downloaded if it is missing, and its commit.

    Raises InputError if it cannot be fetched, is of another class, or has no safetensors.
    """
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise InputError(f"--from_diffusers {name}: needs another package: pip install huggingface_hub") from error

    def fetch(*files: str) -> Path:
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=files))
        except errors.GatedRepoError as error:
            raise InputError(f"{name}: gated: accept its conditions on its page, then: hf auth login") from error
        except errors.RepositoryNotFoundError as error:
            raise InputError(f"{name}: no such folder, nor a public model on the hub (hf auth login?)") from error
        except errors.RevisionNotFoundError as error:
            raise InputError(f"--revision {revision}: {name} has no such branch, tag or commit") from error
        except Exception as error:  # of the network, of the disk, or an answer that the hub would not give
            raise InputError(f"{name}: cannot be fetched from the hub: {error!s:.300}") from error

    require_pipeline(fetch("model_index.json") / "model_index.json")
    folder = fetch("model_index.json", *FILES)
    if not any(folder.glob(f"**/{WEIGHTS}")):
        raise InputError(f"{name}: has no .safetensors; pickles (.bin, .ckpt) are neither fetched nor read")
    return folder, folder.name
