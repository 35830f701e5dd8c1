"""A coordinator that stands still says at what."""

import logging
import time
from collections.abc import Iterator

import pytest

from batchcap.job.watchdog import Watchdog


class Clock:
    def __init__(self) -> None:
        self.now_s = 5.0

    def __call__(self) -> float:
        return self.now_s


def test_what_takes_too_long_is_named_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    watchdog = Watchdog(60.0, clock)
    with watchdog.during("reading the inputs"):
        clock.now_s += 59
        watchdog.look()
        assert not caplog.messages
        for _ in range(62):
            clock.now_s += 1
            watchdog.look()
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "reading the inputs for 60 s now",
        "reading the inputs for 120 s now",
    ]
    clock.now_s += 1000
    watchdog.look()
    assert len(caplog.messages) == 2, "nothing is being done"


def test_steps_of_an_iterator_have_their_time_each(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    watchdog = Watchdog(60.0, clock)

    def slow_ones() -> Iterator[int]:
        for number in range(3):
            clock.now_s += 40 if number < 2 else 70
            watchdog.look()
            yield number

    assert list(watchdog.each("reading", slow_ones())) == [0, 1, 2]
    assert len(caplog.messages) == 1


def test_it_looks_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), Watchdog(0.05) as watchdog, watchdog.during("writing"):
        ends_s = time.monotonic() + 30
        while not caplog.messages and time.monotonic() < ends_s:
            time.sleep(0.01)
    assert caplog.messages[0].startswith("writing for 0 s now")
