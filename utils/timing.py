"""Where the time of a run goes: measured while it runs, kept in its metrics.jsonl, shown as a table.

python -m utils.timing output/<config> output/distilled/<config>/*
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

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


@by_first
def table(folders: Iterable[Path]) -> str:
    """What the runs in these folders took, in seconds: a line each, and their sum."""
    rows = {}
    for folder in folders:
        rows[str(folder)] = spent = Counter()
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            spent.update(json.loads(line).get("seconds", {}))
    rows["in all"] = sum(rows.values(), Counter())
    width = max(map(len, rows))
    lines = [f"{'seconds':<{width}}" + "".join(f"{part:>13}" for part in (*PARTS, "in all"))]
    for name, spent in rows.items():
        cells = (*(spent[part] for part in PARTS), sum(spent.values()))
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>13.1f}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(map(Path, sys.argv[1:])))
