"""Owns the word about a coordinator that stands still: a disk or a network folder that does not answer is named."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

log = logging.getLogger(__name__)

Thing = TypeVar("Thing")

PATIENCE_S = 60.0
LOOK_EVERY_S = 5.0


class Watchdog:
    """Warns while something that should take a moment does not come to its end; once a minute.

    It changes nothing: what hangs in the kernel can't be ended from here, only named. Workers that hang are the
    engine's affair.

    Args:
        patience_s: how long something may take.
        clock: seconds, monotonic.
    """

    def __init__(self, patience_s: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience_s = patience_s
        self._clock = clock
        self._doing: tuple[str, float] | None = None
        self._warn_at_s = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Watch over a block; not to be nested.

        Args:
            what: as the begin of a sentence.
        """
        started_s = self._clock()
        self._warn_at_s = started_s + self._patience_s
        self._doing = what, started_s
        try:
            yield
        finally:
            self._doing = None

    def each(self, what: str, things: Iterator[Thing]) -> Iterator[Thing]:
        """Watch over each step of an iterator."""
        while True:
            with self.during(what):
                try:
                    thing = next(things)
                except StopIteration:
                    return
            yield thing

    def look(self) -> None:
        """Warn if it is time to."""
        doing, now_s = self._doing, self._clock()
        if doing is not None and now_s >= self._warn_at_s:
            self._warn_at_s = now_s + self._patience_s
            what, started_s = doing
            log.warning("%s for %.0f s now: check whether a disk or network folder hangs", what, now_s - started_s)

    def _watch(self) -> None:
        while not self._ended.wait(min(LOOK_EVERY_S, self._patience_s)):
            self.look()
