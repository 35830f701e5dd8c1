"""Owns what signals do to a command: a job is asked to stop in good order, all else ends; a second one ends it at once.

Signals are installed here and nowhere else: whoever calls `run_job` from Python keeps his own.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from batchcap.core.errors import ExitCode
from batchcap.core.signals import STOP_SIGNALS, stop_signals
from batchcap.job.stop import StopRequest


class StoppedError(BaseException):
    """A signal to stop outside a job: while inputs are listed, a bundle is checked or made.

    No Exception, so that what catches every fault of a library lets it pass; and not KeyboardInterrupt, which the
    command-line library would turn into exit code 1.
    """

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def stop_by_signal() -> None:
    """From now on, outside of `stop_on_signals`, a signal to stop raises `StoppedError`; a second one ends at once."""
    for number in stop_signals():
        signal.signal(number, _stop)


def ignore_signals() -> None:
    """The interpreter's own end is not disturbed: the signals' defaults would change the exit code."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _stop(number: int, _frame: FrameType | None) -> None:
    code = STOP_SIGNALS[signal.Signals(number)]
    for other in stop_signals():  # asked twice while the first is being obeyed: the end comes at once
        signal.signal(other, _stop_at_once if other != signal.SIGHUP else signal.SIG_IGN)
    raise StoppedError("interrupted" if code is ExitCode.INTERRUPTED else "stopped", code)


def _stop_at_once(number: int, _frame: FrameType | None) -> None:
    os._exit(int(STOP_SIGNALS[signal.Signals(number)]))


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
