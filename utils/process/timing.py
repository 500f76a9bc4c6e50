"""A stopwatch that divides the time of a process among its parts."""

import time
from collections import Counter

PARTS = ("start", "first step", "steps", "pictures", "checkpoints")


class Stopwatch:
    """Gives every second since the process began to one of the `PARTS`.

    `start` is what comes before the first step, from the imports (their processor time) to the data; the `first step`
    is counted alone, since compilation falls into it.
    """

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.seconds = Counter(start=time.process_time())

    def lap(self, part: str) -> None:
        """Counts the time since the last lap as spent on this part."""
        now = time.perf_counter()
        self.seconds[part] += now - self.last
        self.last = now

    def take(self) -> dict[str, float]:
        """The seconds of all parts since they were last taken."""
        taken, self.seconds = dict(self.seconds), Counter()
        return taken
