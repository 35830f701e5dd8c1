"""Owns what signals do to a job: ask it to stop in good order; a second one ends it at once."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from batchcap.core.errors import ExitCode
from batchcap.core.signals import STOP_SIGNALS, stop_signals

ShouldStop = Callable[[], bool]


class StopRequest:
    """Whether somebody wants the job to stop, and the exit code that goes with it."""

    def __init__(self) -> None:
        self.exit_code: ExitCode | None = None

    @property
    def requested(self) -> bool:
        """Whether to stop."""
        return self.exit_code is not None

    def ask(self, exit_code: ExitCode) -> None:
        """Ask to stop; the first to ask decides the exit code."""
        if self.exit_code is None:
            self.exit_code = exit_code


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """While inside, the signals that ask to stop fill in the request that is given."""
    request = StopRequest()

    def handle(number: int, _frame: FrameType | None) -> None:
        code = STOP_SIGNALS[signal.Signals(number)]
        # A terminal that is closed says so several times: by its shell, then by the kernel.
        if request.requested and number != signal.SIGHUP:
            os._exit(int(code))  # asked twice: what is journalled stays, nothing else matters now
        request.ask(code)

    previous = {number: signal.signal(number, handle) for number in stop_signals()}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
