"""Progress: the recent rate, durations, a log line now and then, the choice between bar and lines."""

import io
import logging
import sys

import pytest

from batchcap.core.text import format_duration
from batchcap.engines.base import EngineLoad
from batchcap.job import progress
from batchcap.job.progress import BarProgress, LogProgress, RecentRate, progress_for_terminal


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3600, "1 h 00 min"),
        (3 * 86400 + 61, "72 h 01 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_the_rate_is_that_of_the_last_minutes(clock: Clock) -> None:
    rate = RecentRate()
    assert rate.update(0) == 0
    done = 0
    for _slow in range(10):
        clock.now_s += 60
        done += 60
        found = rate.update(done)
    assert found == pytest.approx(1)
    for _fast in range(5):
        clock.now_s += 60
        done += 600
        found = rate.update(done)
    assert found == pytest.approx(10), "the slow time is forgotten"


def test_a_log_line_now_and_then(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "batchcap")
    lines = LogProgress()
    lines.start(1000, 100)
    for second in range(1, 91):
        clock.now_s += 1
        lines.advance(100 + 2 * second, 3, second, EngineLoad(queue_rows=7))
    lines.close()
    assert caplog.messages[0] == "1000 rows, 100 done before, 900 to do"
    assert caplog.messages[1:] == [
        "160 of 1000 rows (16.0 %), 3 failed, 60.0 images/min, 7 min 00 s left, queue 7 rows",
        "220 of 1000 rows (22.0 %), 3 failed, 60.0 images/min, 6 min 30 s left, queue 7 rows",
        "280 of 1000 rows (28.0 %), 3 failed, 60.0 images/min, 6 min 00 s left, queue 7 rows",
    ]


def test_without_any_progress_the_time_left_is_unknown(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "batchcap")
    lines = LogProgress()
    lines.start(10, 0)
    clock.now_s += 31
    lines.advance(0, 0, 0, EngineLoad())
    assert "unknown left" in caplog.messages[-1]


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(progress_for_terminal(), LogProgress)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(progress_for_terminal(), BarProgress)


def test_a_bar_that_never_started_is_closed_in_peace() -> None:
    bar = BarProgress()
    bar.advance(1, 0, 1, EngineLoad())
    bar.close()
