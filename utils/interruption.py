"""Ctrl-C and SIGTERM: first the step is finished and saved, then the process ends."""

import signal
from types import FrameType
from typing import Self


class Interrupted(Exception):  # noqa: N818 (as KeyboardInterrupt: nothing is wrong)
    """The run was told to stop by a signal, and did so after saving its state."""

    def __init__(self, signum: int, where: str):
        super().__init__(where)
        self.exit_code = 128 + signum  # as a shell reports it, so that what called us stops, too


class SignalWatch:
    """While entered, remembers SIGINT and SIGTERM in `received` instead of dying of them; the second one kills."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> Self:
        self._previous = {signum: signal.signal(signum, self._receive) for signum in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _receive(self, signum: int, _: FrameType | None) -> None:
        self.received = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
