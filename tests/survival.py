"""A folder with a tiny lesson, whose files are mutated and then given to the scripts; what they must not do."""

import contextlib
import io
import os
import random
import resource
import signal
import time
from collections import Counter
from pathlib import Path

import torch
from conftest import ROOT, TINY, call
from mutations import mutate

from utils.checkpoints.compute import Compute
from utils.config.reading import load_config
from utils.config.schema import Config
from utils.system.errors import InputError
from utils.training.run import Run
from utils.training.stage import teacher_stage
from utils.training.state import read_state

SECONDS, BYTES = 10, 2 * 2**30
CHECKPOINT = "output/tiny/diffusion-2.pt"
STATE = "output/tiny/training_state.pt"


def peak_memory() -> int:
    """The most memory that this process has used, in bytes; on Linux since `forget_peak`.

    (There, ru_maxrss also counts that of its parent.)
    """
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak() -> None:
    """Starts to measure the peak again: tests before this one may have needed more."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def make_lesson(folder: Path) -> dict[str, bytes]:
    """Trains a tiny model in the folder, which becomes the working directory; the content of its files, by kind."""
    os.chdir(folder)
    Path("tiny.yaml").write_text(TINY % (ROOT / "data"))
    assert call("train.py", "--config_path", "tiny.yaml", "--num_training_steps", 2) == 0
    return {
        "checkpoint": Path(CHECKPOINT).read_bytes(),
        "state": Path(STATE).read_bytes(),
        "config": Path("tiny.yaml").read_bytes(),
    }


def sample_it(checkpoint: str, *flags: object) -> tuple[int, str]:
    """sample.py's exit code, and what it said on stderr besides the bar."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        flags = ("--num_samples", 1, "--batch_size", 1, "--sampling_steps", 1, "--device", "cpu", *flags)
        code = call("sample.py", "--checkpoint", checkpoint, "--compile", "false", *flags)
    return code, said.getvalue().split("\r")[-1]


def continue_it(config: Config) -> tuple[int, str]:
    """What train.py does with a training state before the first step."""
    device = torch.device("cpu")
    try:
        stage = teacher_stage(config, Path("mutated"), None)
        run = Run(stage, read_state(stage), None, Compute(device, "fp32", compile=False))
        run.add_trainer("model", stage.initial_model(device))
    except InputError as error:
        return 2, f"error: {error}\n"
    return 0, ""


def judge(kind: str, content: bytes, config: Config) -> str:
    """Gives a mutated file to what reads it; "accepted" or "refused", if that is done as it should be."""
    Path("mutated").mkdir(exist_ok=True)
    if kind == "checkpoint":
        Path("mutated/x.pt").write_bytes(content)
        code, said = sample_it("mutated/x.pt")
    elif kind == "config":
        Path("mutated/x.yaml").write_bytes(content)
        code, said = sample_it(CHECKPOINT, "--config_path", "mutated/x.yaml")
    else:
        Path("mutated/training_state.pt").write_bytes(content)
        code, said = continue_it(config)
    if code == 0:
        return "accepted"
    assert code == 2 and said.count("\n") == 1 and "error: " in said and len(said) < 2000, (code, said[-2000:])
    return "refused"


class TooLong(BaseException):
    """A file kept its reader busy for longer than anybody waits."""


def survive(folder: Path, count: int, seed: int) -> Counter:
    """So many mutated files, a third of each kind; how many of each were accepted and refused.

    Raises:
        AssertionError: one was answered with a traceback, took too long or too much, or left something behind. The
            file stays in the folder `mutated`.
    """
    whole = make_lesson(folder)
    forget_peak()
    config = load_config("tiny.yaml", {"training.num_training_steps": 2})
    before = {path for path in Path().rglob("*") if path.parts[0] != "mutated"} | {Path("output/grid.png")}
    verdicts: Counter = Counter()

    def too_long(*_: object) -> None:
        raise TooLong

    previous = signal.signal(signal.SIGALRM, too_long)
    slowest = 0.0
    try:
        for i in range(count):
            draw = random.Random(f"{seed} {i}")
            kind = ("checkpoint", "state", "config")[i % 3]
            content = mutate(kind, whole[kind], draw)
            start = time.perf_counter()
            signal.alarm(SECONDS)
            verdicts[kind, judge(kind, content, config)] += 1
            signal.alarm(0)
            slowest = max(slowest, time.perf_counter() - start)
            assert not Path("executed").exists()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    left = {path for path in Path().rglob("*") if path.parts[0] != "mutated"}
    assert left <= before, left - before
    peak = peak_memory()
    assert peak < BYTES, f"{peak / 2**30:.1f} GiB"
    print(f"{dict(verdicts)}, slowest {slowest:.2f} s, peak {peak / 2**20:.0f} MiB")
    return verdicts
