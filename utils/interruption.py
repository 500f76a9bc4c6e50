"""Ctrl-C and SIGTERM: first the step is finished and saved, then the process ends."""

import signal
from types import FrameType
from typing import Self

from utils import distributed


class Interrupted(Exception):  # noqa: N818 (as KeyboardInterrupt: nothing is wrong)
    """The run was told to stop by a signal, and did so after saving its state."""

    def __init__(self, signum: int, where: str):
        super().__init__(where)
        self.exit_code = 128 + signum  # as a shell reports it, so that what called us stops, too


class Terminated(KeyboardInterrupt):
    """SIGTERM where nothing need be saved first: it ends the process as Ctrl-C does."""

    @classmethod
    def handle(cls, _signum: int, _frame: FrameType | None) -> None:
        """The handler of the signal."""
        raise cls


class SignalWatch:
    """While entered, remembers SIGINT and SIGTERM in `received` instead of dying of them; the second one kills.

    Not under torchrun, which hands on the Ctrl-C that its processes have heard themselves, and kills after 30 seconds.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> Self:
        self._previous = {signum: signal.signal(signum, self._receive) for signum in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _receive(self, signum: int, _: FrameType | None) -> None:
        self.received = signum
        if distributed.count() == 1:
            self._restore()

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
