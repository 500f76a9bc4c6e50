"""Mutated folders of diffusers, and mutated safetensors checkpoints: refused in one line, or read without harm."""

import contextlib
import io
import json
import random
import shutil
import signal
from collections import Counter
from pathlib import Path
from types import FrameType

from conftest import call
from mutations import HOSTILE_NUMBERS
from pipelines import save_pipeline

SECONDS = 10
HOSTILE = [value for value in HOSTILE_NUMBERS if isinstance(value, int | float) or value is None]
HOSTILE += ["", "x", "../../x", "\0", "\x1b[31m", "a" * 100_000, [], {}, [[[[[]]]]], [0] * 1000, {"a": {"b": {}}}, True]


def mutate_bytes(content: bytes, draw: random.Random, most: int) -> bytes:
    """A few bytes among the first `most` changed, left out or put in; or all cut off from one on."""
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 10])):
        at = draw.randrange(min(most, len(changed)))
        match draw.randrange(4):
            case 0:
                changed[at] = draw.randrange(256)
            case 1:
                del changed[at : at + draw.choice([1, 3, 100])]
            case 2:
                changed[at:at] = bytes(draw.randrange(256) for _ in range(draw.choice([1, 8])))
            case 3:
                changed[at : at + 1] = bytes([changed[at] ^ 1 << draw.randrange(8)])
        if len(changed) < 2:
            break
    return bytes(changed[: draw.randrange(len(changed))] if draw.random() < 0.1 else changed)


def mutate_json(content: bytes, draw: random.Random) -> bytes:
    """A value replaced, left out or put in; or some bytes changed."""
    if draw.random() < 0.3:
        return mutate_bytes(content, draw, 10_000)
    values = json.loads(content)
    key = draw.choice(sorted(values))
    match draw.randrange(3):
        case 0:
            del values[key]
        case 1:
            values[draw.choice([*values, "new", "__class__"])] = draw.choice(HOSTILE)
        case 2:
            values[key] = draw.choice([[values[key]], str(values[key]), draw.choice(HOSTILE)])
    return json.dumps(values).encode()


def judge(*arguments: object) -> str:
    """Runs convert.py; whether it accepts what it is given or refuses it, in one line."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = call("convert.py", *arguments)
    if code == 0:
        return "accepted"
    text = said.getvalue()
    assert code == 2 and text.count("\n") == 1 and "error: " in text and len(text) < 2000, (code, text[-2000:])
    return "refused"


def survive_pipelines(folder: Path, count: int, seed: int) -> Counter:
    """So many mutated folders, which stay in `mutated` where one is not answered as it should be."""
    save_pipeline(folder / "whole", unet={"num_class_embeds": 3})
    names = [str(path.relative_to(folder / "whole")) for path in (folder / "whole").rglob("*.*")]
    assert len(names) == 4
    verdicts: Counter = Counter()

    def too_long(signum: int, frame: FrameType | None) -> None:
        raise BaseException(f"longer than {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, too_long)
    try:
        for i in range(count):
            draw, mutated = random.Random(f"{seed} {i}"), folder / "mutated"
            shutil.rmtree(mutated, ignore_errors=True)
            shutil.copytree(folder / "whole", mutated)
            name = names[i % len(names)]
            content = (mutated / name).read_bytes()
            is_json = name.endswith(".json")
            header = 8 + int.from_bytes(content[:8], "little")
            (mutated / name).write_bytes(mutate_json(content, draw) if is_json else mutate_bytes(content, draw, header))
            signal.alarm(SECONDS)
            verdict = judge("--from_diffusers", mutated, "--output", folder / "teacher/diffusion-0.pt")
            signal.alarm(0)
            verdicts["json" if is_json else "weights", verdict] += 1
            assert (folder / "teacher").exists() == (verdict == "accepted")
            shutil.rmtree(folder / "teacher", ignore_errors=True)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return verdicts
