"""Measures this project on a GPU, in at most nine minutes; writes output/gpu/report.json, and prints it as a table.

    make gpu      # or, with the lesson of another configuration: make gpu CONFIG=configs/...

In this order: bench.py, eager and compiled; the first ten losses of the small network beside those of the CPU; a run
that is killed and resumed; peak memory; two processes, if there are two GPUs; and as much of the lesson as fits into
the time. A part that fails does not end the others.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from models.diffusion import stratified, training_loss
from utils.checkpoints.checkpoint import build_model, latest_checkpoint, load_checkpoint
from utils.checkpoints.compute import Compute, choose_device
from utils.config.reading import flatten, load_config
from utils.config.schema import Config
from utils.data.datasets import load_data
from utils.system import cli
from utils.system.files import find_files
from utils.training.loggers import read_log
from utils.training.trainer import Trainer

SECONDS, FOLDER = 540, Path("output/gpu")
SMALL = "configs/ddpm_32x32_v_continuous_small.yaml"
BENCH = ["--batch_size", 128, "--rounds", 5, "--precision", "bf16", "--json"]
SHORT = ["--num_training_steps", 60, "--save_and_sample_every_n", 20, "--precision", "fp32"]
HALVINGS = ["--initial_sampling_steps", 512, "--distillation_iterations", 7]


def run(*command: object, seconds: float = 120) -> str:
    """The output of a script; after these seconds it gets SIGTERM, so it saves. Raises RuntimeError if it fails."""
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True)
    try:
        output, _ = process.communicate(timeout=max(seconds, 1))
    except subprocess.TimeoutExpired:
        process.terminate()
        output, _ = process.communicate()
    if process.returncode not in (0, 128 + signal.SIGTERM):
        raise RuntimeError(f"{' '.join(map(str, command))}: exit code {process.returncode}")
    return output


def first_losses(config: Config, compute: Compute, steps: int) -> list[float]:
    """The losses of the first training steps, with noise that is drawn on the CPU."""
    torch.manual_seed(0)
    settings, model = config.training, build_model(config, compute.device, dropout=0.0)
    options = {"learning_rate": settings.learning_rate_at, "seed_of": lambda _, step: step}
    trainer, data, losses = Trainer(model, settings, compute, **options), load_data(config, compute.device), []
    for step in range(steps):
        x, label = data.batch(range(step * settings.batch_size, (step + 1) * settings.batch_size))
        t, eps = stratified(len(x)), torch.randn(x.shape).to(x.device)
        for part in trainer.micro_batches():
            classes = None if label is None else label[part]
            loss = training_loss(trainer.model, x[part], eps[part], t[part], settings.loss_weighting, classes)
            trainer.backward(loss)
        trainer.update()
        losses.append(loss.mean().item())
    return losses


def beside_the_cpu(device: torch.device) -> dict[str, Any]:
    """The first ten losses of the small network in float32, and the largest relative difference from the CPU's."""
    devices = torch.device("cpu"), device
    cpu, here = (first_losses(load_config(SMALL), Compute(each, "fp32", compile=False), 10) for each in devices)
    return {"cpu": cpu, "here": here, "difference": max(abs(a - b) / a for a, b in zip(cpu, here, strict=True))}


def kill_and_resume(train: list[object]) -> dict[str, Any]:
    """The largest difference between the weights of a run that was killed and resumed, and of an undisturbed one."""
    folders = FOLDER / "killed", FOLDER / "undisturbed"
    process = subprocess.Popen([sys.executable, *map(str, [*train, folders[0]])])
    while process.poll() is None and latest_checkpoint(folders[0]) is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    for folder in folders:
        run(*train, folder)
    one, other = (load_checkpoint(latest_checkpoint(folder)).weights for folder in folders)
    return {"difference of weights": max(float((one[name] - other[name]).abs().max()) for name in one)}


def peak_memory(config: Config, device: torch.device) -> dict[str, Any]:
    """The most memory of the GPU in three training steps, with the batch size of the configuration."""
    first_losses(config, Compute(device, "bf16", compile=False), 3)
    return {"GiB": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None}


def two_processes(train: list[object], device: torch.device) -> dict[str, Any]:
    """The last loss of a run in two processes, and of one in one process."""
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        return {"GPUs": torch.cuda.device_count()}
    run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, *train, FOLDER / "two")
    return {name: read_log(FOLDER / name)[-1]["loss"] for name in ("undisturbed", "two")}


def lesson(flags: list[object], end: float) -> dict[str, Any]:
    """The last log line of the teacher and of each student, by their folders, which also contain the samples."""
    teacher, students = FOLDER / "teacher", FOLDER / "students"
    run("train.py", *flags, "--output_dir", teacher, seconds=end - time.monotonic())
    if checkpoint := latest_checkpoint(teacher):
        flags = [*flags, "--teacher_model_checkpoint", checkpoint, *HALVINGS, "--output_dir", students]
        run("distill.py", *flags, seconds=end - time.monotonic())
    folders = [folder for folder in (teacher, *find_files(students, "*_*")) if read_log(folder)]
    return {str(folder): read_log(folder)[-1] for folder in folders}


def main() -> None:
    """Writes the report after each part."""
    parser, start = cli.Parser(description=__doc__), time.monotonic()
    parser.add_config_path()
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: the GPU if there is one)")
    arguments = parser.parse_args()
    config, device = load_config(arguments.config_path), choose_device(arguments.device)
    flags = ["--config_path", arguments.config_path, "--device", device]
    train = ["train.py", "--config_path", SMALL, "--device", device, *SHORT, "--output_dir"]
    parts = {
        "eager": lambda: json.loads(run("bench.py", *flags, *BENCH, "--compile", "false")),
        "compiled": lambda: json.loads(run("bench.py", *flags, *BENCH, "--compile", "true", seconds=180)),
        "first losses": lambda: beside_the_cpu(device),
        "kill and resume": lambda: kill_and_resume(train),
        "peak memory": lambda: peak_memory(config, device),
        "two processes": lambda: two_processes(train, device),
        "lesson": lambda: lesson(flags, start + SECONDS),
    }
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    report: dict[str, Any] = {}
    for name, part in parts.items():
        begin = time.monotonic()
        try:
            report[name] = part()
        except Exception as error:
            report[name] = {"failed": f"{error!r:.500}"}
        report[name]["seconds"] = time.monotonic() - begin
        (FOLDER / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print("\n".join(f"{name}.{key}: {value}" for key, value in flatten(report[name])), flush=True)


if __name__ == "__main__":
    cli.run(main)
