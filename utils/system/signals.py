"""Ctrl-C and SIGTERM: a training finishes its step and saves, then the process ends."""

import signal
from types import FrameType
from typing import Self


class Interrupted(Exception):  # noqa: N818 (like KeyboardInterrupt: nothing is wrong)
    """A signal stopped the run, after its state was saved."""

    def __init__(self, signum: int, where: str):
        super().__init__(where)
        self.exit_code = 128 + signum  # as a shell reports it


class Terminated(KeyboardInterrupt):
    """SIGTERM where nothing has to be saved first: it ends the process as Ctrl-C does."""

    @classmethod
    def handle(cls, _signum: int, _frame: FrameType | None) -> None:
        """The handler of the signal."""
        raise cls


class SignalWatch:
    """Context manager that catches SIGINT and SIGTERM: `received` holds the first signal, a second one kills.

    With `patient` it does not: torchrun forwards a Ctrl-C that its processes have already received from the terminal.
    """

    def __init__(self, *, patient: bool) -> None:
        self.patient = patient
        self.received: int | None = None

    def __enter__(self) -> Self:
        self._previous = {
            signum: signal.signal(signum, self._receive)
            for signum in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(signum) is not signal.SIG_IGN  # as in a shell's background jobs
        }
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _receive(self, signum: int, _: FrameType | None) -> None:
        self.received = signum
        if not self.patient:
            self._restore()

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
