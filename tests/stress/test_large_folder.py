"""A hundred thousand pictures: prepared once, by all processors; a training that needs no more memory for them."""

import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, finish, run_in_processes
from PIL import Image

from models.diffusion import stratified, training_loss
from utils.checkpoints.checkpoint import build_model
from utils.checkpoints.compute import Compute
from utils.config.reading import load_config
from utils.data.datasets import load_images
from utils.data.images import ImageData
from utils.system.seeds import normal_noise
from utils.training.trainer import Trainer

NUM_PICTURES, NUM_BROKEN, GIB = 100_000, 50, 2**30
CONFIG = """
compile: false
data: {name: folder, root: pictures, image_size: 64, num_channels: 3}
network: {features: 32, multipliers: [1, 2], num_residual_blocks: 1, attention_resolutions: [16], patch_size: 2,
  num_classes: 10}
training: {num_training_steps: 40, batch_size: 32, save_and_sample_every_n: 40, log_every_n: 10}
sampling: {sampling_steps: 1, num_samples: 10}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    (folder / "large.yaml").write_text(CONFIG)
    draw = np.random.default_rng(0)
    for k in range(10):
        (folder / f"pictures/{k}").mkdir(parents=True)
    for i in range(NUM_PICTURES):
        pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        path = folder / f"pictures/{i % 10}/{i}.png"
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.NEAREST).save(path, compress_level=1)
    for i in range(0, NUM_PICTURES, NUM_PICTURES // NUM_BROKEN):
        (folder / f"pictures/{i % 10}/{i}.png").write_bytes(b"no picture")
    return folder


def train(folder: Path, name: str) -> subprocess.Popen:
    command = [sys.executable, ROOT / "train.py", "--config_path", "large.yaml", "--output_dir", name]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    return subprocess.Popen(
        list(map(str, command)), cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def test_prepared_once_whatever_happens(folder):
    killed = train(folder, "killed")
    while sum(path.stat().st_size for path in folder.glob("data/cache/.*.uint8.*.tmp")) < 10_000_000:
        assert killed.poll() is None
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not list(folder.glob("data/cache/*.uint8"))

    written = []
    for name in ("first", "second"):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        process = train(folder, name)
        output, _ = process.communicate()
        assert process.returncode == 0 and f"{NUM_BROKEN} skipped: " in output
        took, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        busy = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / took
        (images,) = folder.glob("data/cache/*.uint8")
        written.append(images.stat().st_mtime_ns)
        print(f"{name} start: in all {took:.1f} s, {busy:.2f} processors busy")
        print(f"most memory of a process so far: {after.ru_maxrss * 1024 / GIB:.2f} GiB")
        assert after.ru_maxrss * 1024 < 1.5 * GIB
    assert written[0] == written[1]  # what is prepared is not prepared again
    assert images.stat().st_size == (NUM_PICTURES - NUM_BROKEN) * 3 * 64 * 64


def test_memory_does_not_grow_with_the_pictures_that_have_been_seen(folder, monkeypatch):
    monkeypatch.chdir(folder)
    config = load_config("large.yaml")
    data = ImageData(load_images(config.data), with_classes=True, seed=0, random_flip=False)
    shared = []
    for start in range(0, NUM_PICTURES, 1000):
        data.batch(range(start, start + 1000))
        status = Path("/proc/self/status").read_text()
        shared.append(int(status.partition("RssFile:")[2].split()[0]) / 2**20)
    print(f"mapped files in memory, GiB: at first {shared[0]:.3f}, at most {max(shared):.3f}")
    assert max(shared) - shared[0] < 0.1


def test_a_step_takes_as_long_as_with_data_in_memory(folder, monkeypatch):
    """Two trainers in turn; their times are printed, and the same images checked."""
    monkeypatch.chdir(folder)
    torch.set_num_threads(2)
    config = load_config("large.yaml")
    mapped = load_images(config.data)
    in_memory = replace(mapped, images=mapped.images.clone(), release=None)
    sources = [ImageData(data, with_classes=True, seed=0, random_flip=False) for data in (mapped, in_memory)]
    compute = Compute(torch.device("cpu"), "fp32", compile=False)
    trainers, times = [], ([], [])
    for _ in sources:
        model = build_model(config, torch.device("cpu"))
        options = {"learning_rate": lambda _: 1e-3, "seed_of": lambda purpose, index: index}
        trainers.append(Trainer(model, config.training, compute, **options))
    for _ in range(60):
        for data, trainer, taken in zip(sources, trainers, times, strict=True):
            start, t = time.perf_counter(), stratified(config.training.batch_size)
            for part in trainer.micro_batches():
                first = trainer.step * config.training.batch_size
                examples = range(first + part.start, first + part.stop)
                x, label = data.batch(examples)
                eps = normal_noise(examples, x)
                trainer.backward(training_loss(trainer.model, x, eps, t[part], "v_mse", label))
            trainer.update()
            taken.append(time.perf_counter() - start)
    medians = [1e3 * statistics.median(taken[10:]) for taken in times]
    print(f"a step, ms: mapped {medians[0]:.1f}, in memory {medians[1]:.1f}, ratio {medians[0] / medians[1]:.3f}")
    assert torch.equal(sources[0].batch(range(64))[0], sources[1].batch(range(64))[0])


def test_two_processes_prepare_once(folder):
    shutil.rmtree(folder / "data/cache")
    flags = ["--config_path", "large.yaml", "--output_dir", "two", "--num_training_steps", 2]
    code, output, errors = finish(run_in_processes(2, "train.py", *flags, cwd=folder))
    assert code == 0, errors
    assert len(list(folder.glob("data/cache/*.uint8"))) == 1 and output.count("skipped: ") == 1
