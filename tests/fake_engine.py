"""An engine without a model: captions are made of ids, the last row given in comes out first."""

from collections.abc import Callable
from types import SimpleNamespace

from batchcap.core.errors import ErrorKind, WorkerError
from batchcap.core.records import Caption, Failure, FinishReason, ImageFacts, ImageRow, Outcome, Verdict
from batchcap.engines.base import EngineLoad


def fake_bundle() -> SimpleNamespace:
    """What a job asks of a bundle whose model nobody loads."""
    named = {"id": "b" * 64, "source": "none", "precision": "int4"}
    return SimpleNamespace(**named, named=named)


class SilentProgress:
    """A `Progress` that nobody looks at."""

    def start(self, rows: int, done: int) -> None: ...
    def advance(self, done: int, failed: int, images: int, load: EngineLoad) -> None: ...
    def close(self) -> None: ...


class FakeEngine:
    """Keeps the contract of `Engine`; `dies_after` rows it raises, and remembers which rows it was given."""

    def __init__(
        self,
        room: int = 4,
        dies_after: int | None = None,
        end: Callable[[ImageRow], Outcome] | None = None,
    ) -> None:
        self.submitted: list[int] = []
        self.remembered: list[tuple[str, int]] = []
        self.closed = False
        self._room = room
        self._dies_after = dies_after
        self._end = end or outcome_of
        self._rows: list[ImageRow] = []
        self._given = 0

    @property
    def has_room(self) -> bool:
        return len(self._rows) < self._room

    @property
    def in_flight(self) -> int:
        return len(self._rows)

    def seed_dedup(self, images: list[tuple[str, int]]) -> None:
        self.remembered += images

    def submit(self, row: ImageRow) -> None:
        assert self.has_room, "a row was submitted without room"
        self.submitted.append(row.index)
        self._rows.append(row)

    def poll(self, timeout_s: float) -> list[Outcome]:
        if self._dies_after is not None and self._given >= self._dies_after:
            raise WorkerError("the decoder 0 process was killed by signal 9.")
        self._given += 1
        return [self._end(self._rows.pop())] if self._rows else []

    def load(self) -> EngineLoad:
        return EngineLoad(busy_s={"vision": 0.5 * self._given}, decoding_rows=len(self._rows))

    def process_ids(self) -> list[int]:
        return []

    def close(self) -> None:
        self.closed = True


def outcome_of(row: ImageRow) -> Outcome:
    """A caption made of the row's id; a failure where the id says `bad`."""
    if "bad" in row.id:
        return Outcome(row, Failure(row.index, ErrorKind.CORRUPT, "cut"))
    facts = ImageFacts(width=64, height=48, sha256="0" * 64, read_ms=1.0, vision_ms=2.0)
    caption = Caption(row.index, (1, 2, 3), f"of {row.id}", FinishReason.STOP, Verdict.OK, 9, 4, 3.0, 5.0)
    return Outcome(row, (caption,), facts)
