"""The log of a run, metrics.jsonl: the means of every few steps and, with each checkpoint, the seconds spent.

Where the time of runs went, as a table, and how fast the machine is, to compare it with another's:

    python -m utils.training.log output/<config> output/distilled/<config>/*
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils.compute import matrix_rates
from utils.files import append_line, exists, read_if_there, write_atomically
from utils.process.timing import PARTS

LOG_NAME = "metrics.jsonl"
EVENTS = "events.out.tfevents.*"  # the same for TensorBoard: see board.py


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; half a line, left by a loss of power, is dropped."""
    lines = []
    for text in (read_if_there(folder / LOG_NAME) or b"").splitlines():
        with suppress(ValueError, KeyError, TypeError):
            line = json.loads(text)
            line["step"] + 0  # every line is about one
            lines.append(line)
    return lines


def log(folder: Path, line: dict[str, Any]) -> None:
    """Adds a line to a run's log."""
    append_line(folder / LOG_NAME, json.dumps(line))


def forget_after(folder: Path, step: int) -> None:
    """Removes the lines after a step, which a run that continues from there writes again."""
    if exists(folder / LOG_NAME):
        kept = "".join(json.dumps(line) + "\n" for line in read_log(folder) if line["step"] <= step)
        write_atomically(folder / LOG_NAME, lambda file: file.write(kept.encode()))


def table(folders: Iterable[Path]) -> str:
    """The seconds that the runs in these folders spent, as a table with a line for each run and their sum."""
    rows = {}
    for folder in folders:
        rows[str(folder)] = spent = Counter()
        for line in read_log(folder):
            spent.update(line.get("seconds", {}))
    rows["in all"] = sum(rows.values(), Counter())
    width = max(map(len, rows))
    lines = [f"{'seconds':<{width}}" + "".join(f"{part:>13}" for part in (*PARTS, "in all"))]
    for name, spent in rows.items():
        cells = (*(spent[part] for part in PARTS), sum(spent.values()))
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>13.1f}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(map(Path, sys.argv[1:])))
    rates = (f"{rate / 1e9:.0f} GFLOP/s in {str(dtype)[6:]}" for dtype, rate in matrix_rates(2048).items())
    print(f"The processor, as busy as it is now, multiplies large matrices at {' and '.join(rates)}.")
