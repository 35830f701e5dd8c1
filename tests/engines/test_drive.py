"""The loop around an engine: what is submitted when, and what is left where it stops."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from batchcap.core.errors import ErrorKind, WorkerError
from batchcap.core.records import Failure, ImageRow, Outcome, Request
from batchcap.core.sources import FileAt
from batchcap.engines.drive import drive
from batchcap.engines.fake import FakeEngine
from tests.fake_engine import request_of


def started(**options: int) -> FakeEngine:
    engine = FakeEngine(**options)  # type: ignore[arg-type]
    engine.start(lambda: False)
    return engine


def requests(taken: list[int], rows: int | None = None) -> Iterator[Request]:
    """So many requests; None: without an end."""
    for index in count() if rows is None else range(rows):
        taken.append(index)
        yield request_of(ImageRow(index, f"row-{index}", "s", index))


def test_each_request_has_its_outcome() -> None:
    taken, found = list[int](), list[Outcome]()
    drive(started(room=3), requests(taken, 10), found.extend)
    assert taken == list(range(10))
    assert sorted(outcome.request.index for outcome in found) == taken


def test_no_more_is_read_than_there_is_room_for_and_one() -> None:
    taken, found = list[int](), list[Outcome]()

    def take(outcomes: list[Outcome]) -> None:
        assert len(taken) <= len(found) + 3 + 1
        found.extend(outcomes)

    drive(started(room=3), requests(taken, 20), take)
    assert len(found) == 20


def test_a_stop_leaves_what_is_in_flight_for_another_call() -> None:
    taken, found = list[int](), list[Outcome]()
    engine = started(room=4)
    drive(engine, requests(taken), found.extend, lambda: len(found) >= 5)
    assert (len(found), engine.in_flight) == (5, 3)
    drive(engine, iter(()), found.extend)
    assert (len(found), engine.in_flight) == (8, 0)
    drive(engine, iter(()), found.extend)
    assert len(found) == 8


def test_a_stop_before_the_first_look_submits_nothing() -> None:
    engine = started()
    drive(engine, requests([]), lambda _outcomes: None, lambda: True)
    assert engine.in_flight == 0


def test_each_look_is_told_also_where_nothing_has_come() -> None:
    looks = list[int]()
    drive(started(per_poll=0), requests([], 2), lambda outcomes: looks.append(len(outcomes)), lambda: len(looks) == 3)
    assert looks == [0, 0, 0]


def test_what_came_before_an_error_is_handed_on() -> None:
    found: list[Outcome] = []
    with pytest.raises(WorkerError):
        drive(started(dies_after=4), requests([]), found.extend)
    assert len(found) == 4


def test_an_image_that_is_not_there_fails_alone(tmp_path: Path) -> None:
    """Of the fake engine, where it reads images."""
    (tmp_path / "a.png").write_bytes(b"image")
    engine = FakeEngine(reads_images=True)
    engine.start(lambda: False)
    rows = [
        ImageRow(index, name, "s", 0, FileAt(str(tmp_path / name))) for index, name in enumerate(("a.png", "b.png"))
    ]
    found: list[Outcome] = []
    drive(engine, map(request_of, rows), found.extend)
    results = {outcome.request.index: outcome.result for outcome in found}
    assert isinstance(results[0], tuple)
    assert isinstance(results[1], Failure)
    assert results[1].kind is ErrorKind.MISSING
