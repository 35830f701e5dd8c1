"""Owns whether a job is to stop before its end, and who asked first."""

from collections.abc import Callable

from batchcap.core.errors import ExitCode

ShouldStop = Callable[[], bool]


class StoppedError(Exception):
    """It was time to stop before the plan was whole."""


class StopRequest:
    """Whether somebody wants the job to stop, and the exit code that goes with it."""

    def __init__(self) -> None:
        self.exit_code: ExitCode | None = None
        self.reason = ""

    @property
    def requested(self) -> bool:
        """Whether to stop."""
        return self.exit_code is not None

    def ask(self, exit_code: ExitCode, reason: str = "signal") -> None:
        """Ask to stop; the first to ask decides the exit code."""
        if self.exit_code is None:
            self.exit_code, self.reason = exit_code, reason
