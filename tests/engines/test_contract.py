"""What `Engine` says, of every engine: the local one, with workers that hold no model, and the fake one."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace

import pytest

from batchcap.core.errors import WorkerError
from batchcap.core.prompts import Prompt, Sampling
from batchcap.core.records import Duplicate, Failure, ImageRow, Outcome, Request
from batchcap.core.sources import Bytes
from batchcap.engines import supervisor
from batchcap.engines.base import Engine
from batchcap.engines.drive import drive
from batchcap.engines.fake import FakeEngine
from batchcap.inputs.encoded import digest
from tests.engines import doubles

PATIENCE_S = 60.0
PROMPTS = (Prompt("What is it?", "what"), Prompt("Where is it?", "where"))
SAMPLING = Sampling(16)

Make = Callable[..., Engine]


def _local(monkeypatch: pytest.MonkeyPatch, *, dying: bool) -> AbstractContextManager[Engine]:
    if dying:
        monkeypatch.setattr(supervisor, "MAX_CONSECUTIVE_CRASHES", 1)
    return doubles.engine(monkeypatch, decoder="killed" if dying else "work", slots=3)


@pytest.fixture(params=["fake", "fake, all at once", "local"])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes an engine that is not started; `dying`: of which a worker ends in the middle of its work."""
    with ExitStack() as stack:

        def made(*, dying: bool = False) -> Engine:
            if request.param == "local":
                return stack.enter_context(_local(monkeypatch, dying=dying))
            size = {"room": 4} if request.param == "fake" else {"room": 50, "per_poll": 50}
            return FakeEngine(**size, dies_after=1 if dying else None, reads_images=True)

        yield made


def never() -> bool:
    return False


def asked(index: int, content: str | None = None, name: str = "seen") -> Request:
    """A request for an image of its own, or one of this content."""
    data = (content or f"image {index}").encode()
    return Request(ImageRow(index, f"{name}-{index}", "/in", index, Bytes(data)), PROMPTS, SAMPLING)


@contextmanager
def patience() -> Iterator[Callable[[], bool]]:
    ends_s = time.monotonic() + PATIENCE_S
    yield lambda: time.monotonic() > ends_s
    assert time.monotonic() < ends_s, "it takes for ever"


def outcomes(engine: Engine, requests: list[Request]) -> list[Outcome]:
    """In the order in which they come."""
    found: list[Outcome] = []
    with patience() as is_late:
        drive(engine, iter(requests), found.extend, is_late, 0.05)
    return found


def test_made_it_has_started_nothing(make: Make) -> None:
    engine = make()
    assert engine.in_flight == 0
    assert engine.memory_bytes() == 0
    with pytest.raises(RuntimeError, match="not started"):
        engine.submit(asked(0))
    assert engine.in_flight == 0
    engine.close()


def test_a_stop_ends_the_start(make: Make) -> None:
    engine = make()
    began_s = time.monotonic()
    engine.start(lambda: True)
    assert time.monotonic() - began_s < PATIENCE_S / 2
    engine.close()


def test_every_request_has_one_outcome(make: Make) -> None:
    engine = make()
    engine.start(never)
    requests = [asked(index, name="bad" if index % 5 == 2 else "seen") for index in range(60)]
    requests[7] = replace(requests[7], prompts=PROMPTS[:1], attempt=3)
    found = outcomes(engine, requests)
    assert sorted(outcome.request.index for outcome in found) == list(range(60))
    for outcome in found:
        given = requests[outcome.request.index]
        assert outcome.request == given.without_image(), (
            "prompts, sampling and attempt come with it; the image does not"
        )
        assert outcome.row.image is None
        if given.row.id.startswith("bad"):
            assert isinstance(outcome.result, Failure)
            assert (outcome.result.index, outcome.facts) == (given.index, None)
        else:
            assert isinstance(outcome.result, tuple)
            assert outcome.facts is not None
            told = [(caption.index, caption.prompt) for caption in outcome.result]
            assert told == [(given.index, number) for number in range(len(given.prompts))]
    assert engine.in_flight == 0
    engine.close()


def test_room_is_bounded_and_comes_back(make: Make) -> None:
    engine = make()
    engine.start(never)
    assert engine.has_room
    given = 0
    while engine.has_room:
        assert given < 1000
        engine.submit(asked(given))
        given += 1
        assert engine.in_flight == given
    found: list[Outcome] = []
    with patience() as is_late:
        while engine.in_flight and not is_late():
            assert engine.in_flight == given - len(found)
            found += engine.poll(0.05)
    assert len(found) == given
    assert engine.has_room
    engine.close()


def test_with_nothing_in_flight_a_poll_ends_in_time(make: Make) -> None:
    engine = make()
    engine.start(never)
    began_s = time.monotonic()
    assert engine.poll(0.05) == []
    assert time.monotonic() - began_s < PATIENCE_S / 2
    engine.close()


def test_equal_images_are_captioned_once(make: Make) -> None:
    engine = make()
    engine.start(never)
    requests = [asked(index, f"content {index % 3}") for index in range(12)]
    found = {outcome.request.index: outcome for outcome in outcomes(engine, requests)}
    assert len(found) == 12
    order = list(found)
    duplicates = {index: one.result for index, one in found.items() if isinstance(one.result, Duplicate)}
    assert len(duplicates) == 9
    for index, result in duplicates.items():
        assert result.index == index
        assert index % 3 == result.of % 3
        assert isinstance(found[result.of].result, tuple)
        assert order.index(index) > order.index(result.of)
    engine.close()


def test_equal_images_of_which_other_things_are_asked_are_captioned_each(make: Make) -> None:
    engine = make()
    engine.start(never)
    first = asked(0, "one image")
    others = [
        {},
        {"prompts": PROMPTS[:1]},
        {"prompts": PROMPTS[::-1]},
        {"sampling": Sampling(17)},
        {"sampling": Sampling(16, temperature=0.5)},
        {"sampling": Sampling(16, temperature=0.5)},  # draws depend on the row
    ]
    requests = [replace(first, row=replace(first.row, index=index), **other) for index, other in enumerate(others)]  # type: ignore[arg-type]
    found = outcomes(engine, requests)
    assert len(found) == 6
    assert all(isinstance(outcome.result, tuple) for outcome in found)
    engine.close()


def test_images_of_earlier_runs(make: Make) -> None:
    engine = make()
    engine.start(never)
    key, other = asked(0).caption_key, asked(0)
    assert key is not None
    engine.seed_dedup(key, [(digest(b"known"), 3), (digest(b"known, too"), 5)])
    engine.seed_dedup(key, [])
    other = replace(asked(12, "known"), sampling=Sampling(99))
    found = {
        outcome.request.index: outcome.result
        for outcome in outcomes(engine, [asked(10, "known, too"), asked(11, "known"), other])
    }
    assert [found[index].of for index in (10, 11) if isinstance(found[index], Duplicate)] == [5, 3]
    assert isinstance(found[12], tuple), "the known captions answer something else"
    engine.close()


def test_the_load_says_where_requests_are(make: Make) -> None:
    engine = make()
    engine.start(never)
    for index in range(3):
        engine.submit(asked(index))
    busy_s = 0.0
    with patience() as is_late:
        while engine.in_flight and not is_late():
            load = engine.load()
            assert load.reading_rows + load.queue_rows + load.decoding_rows <= engine.in_flight
            assert sum(load.busy_s.values()) >= busy_s
            busy_s = sum(load.busy_s.values())
            assert engine.memory_bytes() >= 0
            engine.poll(0.05)
    load = engine.load()
    assert (load.reading_rows, load.queue_rows, load.queue_mib, load.decoding_rows) == (0, 0, 0.0, 0)
    assert load.busy_s["vision"] == 3 * 0.5
    engine.close()


def test_a_worker_that_can_not_be_replaced_ends_all(make: Make) -> None:
    engine = make(dying=True)
    engine.start(never)
    for index in range(4):
        engine.submit(asked(index, name="bad" if index == 0 else "seen"))
    found: list[Outcome] = []
    with patience() as is_late, pytest.raises(WorkerError):
        drive(engine, iter(()), found.extend, is_late, 0.05)
    assert len({outcome.request.index for outcome in found}) == len(found) == 1, "what came before goes out first"
    assert engine.in_flight == 3
    with pytest.raises(WorkerError):
        engine.poll(0)
    engine.close()


def test_a_close_gives_up_what_is_in_flight(make: Make) -> None:
    engine = make()
    engine.start(never)
    for index in range(3):
        engine.submit(asked(index))
    engine.close()
    engine.close()
