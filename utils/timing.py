"""Where the time of a run goes: measured while it runs, kept in its metrics.jsonl, shown as a table.

python -m utils.timing output/<config> output/distilled/<config>/*
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils.distributed import by_first

PARTS = ("start", "first step", "steps", "pictures", "checkpoints")


class Stopwatch:
    """Gives every second since the process began to one of the `PARTS`.

    `start` is what comes before the first step, from the imports (their processor time) to the data; the `first step`
    is shown alone, since compiling falls into it.
    """

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.seconds = Counter(start=time.process_time())

    def lap(self, part: str) -> None:
        """The time since the last lap was spent on this part."""
        now = time.perf_counter()
        self.seconds[part] += now - self.last
        self.last = now

    def take(self) -> dict[str, float]:
        """The seconds of all parts since they were last taken."""
        taken, self.seconds = dict(self.seconds), Counter()
        return taken


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a machine that lost its power may have left half of one, or none of the file."""
    lines = []
    for text in path.read_bytes().splitlines() if path.exists() else ():
        with suppress(ValueError, KeyError, TypeError):
            line = json.loads(text)
            line["step"] + 0  # every line is about one
            lines.append(line)
    return lines


@by_first
def table(folders: Iterable[Path]) -> str:
    """What the runs in these folders took, in seconds: a line each, and their sum."""
    rows = {}
    for folder in folders:
        rows[str(folder)] = spent = Counter()
        for line in read_metrics(folder / "metrics.jsonl"):
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
