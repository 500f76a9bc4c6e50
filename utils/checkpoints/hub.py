"""Fetches a diffusers pipeline from the Hugging Face hub: its configuration and safetensors, never a pickle."""

import re
from pathlib import Path

from utils.system.errors import InputError

WEIGHTS = "diffusion_pytorch_model*.safetensors"
CONFIGURATION = ["model_index.json", "config.json", "scheduler_config.json"]  # old pipelines have no subfolders
FILES = [*CONFIGURATION, WEIGHTS, "unet/config.json", "scheduler/scheduler_config.json", f"unet/{WEIGHTS}"]


def is_hub_name(text: str) -> bool:
    """Whether this can be the name of a model on the hub, such as google/ddpm-cifar10-32, and is no folder here."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text)) and not Path(text).exists()


def fetch_pipeline(name: str, revision: str | None) -> tuple[Path, str]:
    """The folder of a pipeline in the hub's cache, downloaded if it is missing, and its commit.

    Raises InputError if it cannot be fetched, or has no safetensors.
    """
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise InputError(f"--from_diffusers {name}: needs another package: pip install huggingface_hub") from error
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=FILES))
    except errors.GatedRepoError as error:
        raise InputError(f"{name}: gated: accept its conditions on its page, then: hf auth login") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{name}: no such folder, nor a public model on the hub; for private ones: hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"--revision {revision}: {name} has no such branch, tag or commit") from error
    except (OSError, ValueError, errors.HTTPError) as error:
        raise InputError(f"{name}: cannot be fetched: {error!s:.300}; the same command resumes") from error
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{name}: not a diffusers pipeline: it has no model_index.json")
    if not any(folder.glob(f"**/{WEIGHTS}")):
        raise InputError(f"{name}: has no .safetensors; pickles (.bin, .ckpt) are neither fetched nor read")
    return folder, folder.name
