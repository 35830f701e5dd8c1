"""Owns progress on stderr: a bar with rate and time left on a terminal, a log line now and then elsewhere."""

import logging
import os
import sys
import time
from collections import deque
from typing import Protocol

from tqdm import tqdm

from batchcap.core.text import format_duration
from batchcap.engines.base import EngineLoad

log = logging.getLogger(__name__)

LOG_INTERVAL_S = 30.0
UNKNOWN_COLUMNS, UNKNOWN_ROWS = 80, 24
# The time left follows the recent rate: the first minutes of a job, or the images of one folder, mislead.
RATE_WINDOW_S = 120.0


class Progress(Protocol):
    """Somebody who wants to know how far a job is."""

    def start(self, rows: int, done: int) -> None:
        """The job has `rows` rows, `done` of them before this run."""

    def advance(self, done: int, failed: int, images: int, load: EngineLoad) -> None:
        """`done` rows are finished by now, `failed` of them without a caption; this run has captioned `images`."""

    def close(self) -> None:
        """No more will come."""


class RecentRate:
    """Rows or images a second over the last `RATE_WINDOW_S`."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def update(self, done: int) -> float:
        """Take in how many are done by now and give the rate."""
        now = time.monotonic()
        self._points.append((now, done))
        while len(self._points) > 2 and self._points[0][0] < now - RATE_WINDOW_S:
            self._points.popleft()
        seconds = now - self._points[0][0]
        return (done - self._points[0][1]) / seconds if seconds > 0 else 0.0


class BarProgress:
    """A tqdm bar."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._rate = RecentRate()

    def start(self, rows: int, done: int) -> None:
        """Show the bar; rows of earlier runs count as done but not for the rate."""
        # Terminals of containers and of CI often say that they are 0 x 0 characters; tqdm would show nothing.
        try:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
        except OSError:  # the terminal has just been closed
            columns = 0
        self._bar = tqdm(
            total=rows,
            initial=done,
            unit="row",
            ncols=None if columns else UNKNOWN_COLUMNS,
            nrows=None if columns else UNKNOWN_ROWS,
            dynamic_ncols=columns > 0,
            smoothing=0.05,
            file=sys.stderr,
        )

    def advance(self, done: int, failed: int, images: int, load: EngineLoad) -> None:
        """Move the bar."""
        if self._bar is None:
            return
        rate = 60 * self._rate.update(images)
        self._bar.set_postfix_str(
            f"{rate:.1f} images/min, failed {failed}, queue {load.queue_rows}, decoding {load.decoding_rows}",
            refresh=False,
        )
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Leave the bar on the screen."""
        if self._bar is not None:
            self._bar.close()


class LogProgress:
    """A log line at most every `LOG_INTERVAL_S`: what cron mail and journals want."""

    def __init__(self) -> None:
        self._rows = 0
        self._row_rate, self._image_rate = RecentRate(), RecentRate()
        self._next_s = 0.0

    def start(self, rows: int, done: int) -> None:
        """Say what is to be done."""
        self._rows = rows
        self._row_rate.update(done)
        self._image_rate.update(0)
        self._next_s = time.monotonic() + LOG_INTERVAL_S
        log.info("%d rows, %d done before, %d to do", rows, done, rows - done)

    def advance(self, done: int, failed: int, images: int, load: EngineLoad) -> None:
        """Say how far it is, if the last line is old enough."""
        now = time.monotonic()
        if now < self._next_s:
            return
        self._next_s = now + LOG_INTERVAL_S
        rate, images_per_s = self._row_rate.update(done), self._image_rate.update(images)
        left = format_duration((self._rows - done) / rate) if rate > 0 else "unknown"
        log.info(
            "%d of %d rows (%.1f %%), %d failed, %.1f images/min, %s left, queue %d rows",
            done,
            self._rows,
            100 * done / max(1, self._rows),
            failed,
            60 * images_per_s,
            left,
            load.queue_rows,
        )

    def close(self) -> None:
        """Nothing to put away."""


def progress_for_terminal() -> Progress:
    """A bar where stderr is a terminal, log lines elsewhere."""
    return BarProgress() if sys.stderr.isatty() else LogProgress()
