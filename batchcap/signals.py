"""Owns what Ctrl-C and SIGTERM do to a job: ask it to stop in good order; a second one ends it at once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from batchcap.errors import ExitCode


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
    """While inside, SIGINT and SIGTERM fill in the request that is given."""
    request = StopRequest()
    codes = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGTERM: ExitCode.STOPPED_EARLY}

    def handle(number: int, _frame: FrameType | None) -> None:
        code = codes[signal.Signals(number)]
        if request.requested:
            os._exit(int(code))  # asked twice: what is journalled stays, nothing else matters now
        request.ask(code)

    previous = {number: signal.signal(number, handle) for number in codes}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
