"""Fixtures: the golden numbers, and a lesson so small that the scripts can be run as a user runs them."""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils.checkpoints.checkpoint import Metadata, save_checkpoint
from utils.config.schema import Config, SamplerSettings
from utils.data.images import ImageSet, content_hash
from utils.system import cli

ROOT = Path(__file__).parent.parent
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # bit-identical runs are promised on the CPU
os.environ["OMP_NUM_THREADS"] = "1"  # networks this small gain nothing from a second thread
torch.set_num_threads(1)
os.environ["MPLCONFIGDIR"] = str(ROOT / "data/cache/matplotlib")  # not in the folders that tests look at
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job; processes inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.accelerator.current_accelerator = lambda *_, **__: None  # so that Apple's GPU is not the default either

TINY = """
precision: fp32
data: {name: MNIST, root: %s, image_size: 16, num_channels: 1}
network:
  {features: 8, multipliers: [1, 2], num_residual_blocks: 1, attention_resolutions: [4], patch_size: 2, dropout: 0.1}
training: {num_training_steps: 6, batch_size: 8, learning_rate: 1e-3, save_and_sample_every_n: 2, log_every_n: 1}
distillation:
  {num_training_steps_per_iteration: 4, batch_size: 8, learning_rate: 1e-3, optimizer: muon, save_and_sample_every_n: 2,
   log_every_n: 1}
matching: {num_training_steps: 4, batch_size: 8, learning_rate: 1e-3, save_and_sample_every_n: 2, log_every_n: 1}
sampling: {sampling_steps: 4, num_samples: 4, batch_size: 4}
"""


@pytest.fixture(scope="session")
def golden() -> dict:
    return json.loads((ROOT / "tests/golden/progressive_distillation.json").read_text())


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The path of a tiny configuration of the real MNIST."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY % (ROOT / "data"))
    return path


def run_script(script: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    """Runs a script as a user does, with the arguments, in the folder `cwd`."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments), "--device", "cpu"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def run_in_processes(count: int, script: str | Path, *arguments: object, **options) -> subprocess.Popen:
    """Starts a script under torchrun, in so many processes; `options` are those of Popen and of torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    torchrun += ["--max_restarts", str(options.pop("max_restarts", 0))]
    command = [*torchrun, str(ROOT / script), *map(str, arguments), "--device", "cpu"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Waits for the end of a process: its exit code, output and errors."""
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def call(script: str, *arguments: object) -> int:
    """Runs a script in this process, which saves the seconds that importing PyTorch takes; its exit code."""
    sys.argv = [script, *map(str, arguments)]
    try:
        cli.run(importlib.import_module(script.removesuffix(".py")).main)
    except SystemExit as exit:
        return exit.code or 0
    return 0


def image_set(images: torch.Tensor, labels: torch.Tensor, class_names: list[str]) -> ImageSet:
    """A set in memory."""
    return ImageSet(images, labels, class_names, content_hash(images, labels))


def save_model(
    path: Path, weights: dict, *, config: Config, step: int = 1, sampling_steps: int | None = None, **fields: object
) -> None:
    """Writes a checkpoint, of a student if it has a number of sampling steps."""
    fields.setdefault("kind", "student" if sampling_steps else "converted" if fields.get("guidance") else "teacher")
    sampling = config.sampling.of_teacher(1024)
    if sampling_steps:
        sampler = "ancestral" if fields["kind"] == "matched" else "ddim"
        sampling = SamplerSettings(steps=sampling_steps, sampler=sampler)
    fields.setdefault("prediction", config.diffusion.prediction)
    save_checkpoint(path, Metadata(config=config, step=step, sampling=sampling, **fields), weights)


@pytest.fixture(autouse=True)
def deterministic() -> None:
    torch.manual_seed(0)
