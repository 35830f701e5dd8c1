"""The package's engine without a model, with a memory of what it was given; and rows as requests."""

from collections.abc import Callable
from types import SimpleNamespace

from batchcap.core.prompts import Prompt, Sampling
from batchcap.core.records import ImageRow, Outcome, Request
from batchcap.engines import fake
from batchcap.engines.base import EngineLoad

PROMPTS = (Prompt("What is it?"),)
SAMPLING = Sampling(max_new_tokens=128)


def fake_bundle() -> SimpleNamespace:
    """What a job asks of a bundle whose model nobody loads."""
    named = {"id": "b" * 64, "source": "none", "precision": "int4"}
    return SimpleNamespace(**named, named=named)


class SilentProgress:
    """A `Progress` that nobody looks at."""

    def start(self, rows: int, done: int) -> None: ...
    def advance(self, done: int, failed: int, images: int, load: EngineLoad) -> None: ...
    def close(self) -> None: ...


class FakeEngine(fake.FakeEngine):
    """Remembers which rows it was given, and which images it was told of."""

    def __init__(
        self,
        room: int = 4,
        dies_after: int | None = None,
        end: Callable[[Request], Outcome] = fake.outcome_of,
        *,
        reads_images: bool = False,
    ) -> None:
        super().__init__(end, room=room, dies_after=dies_after, reads_images=reads_images)
        self.submitted: list[int] = []
        self.remembered: list[tuple[str, int]] = []
        self.closed = False

    def seed_dedup(self, caption_key: str, images: list[tuple[str, int]]) -> None:
        self.remembered += images
        super().seed_dedup(caption_key, images)

    def submit(self, request: Request) -> None:
        assert self.has_room, "a row was submitted without room"
        self.submitted.append(request.index)
        super().submit(request)

    def close(self) -> None:
        super().close()
        self.closed = True


def request_of(row: ImageRow, prompts: tuple[Prompt, ...] = PROMPTS, sampling: Sampling = SAMPLING) -> Request:
    """What is asked about a row where that does not matter."""
    return Request(row, prompts, sampling)


def outcome_of(row: ImageRow) -> Outcome:
    """A caption made of the row's id; a failure where the id says `bad`."""
    return fake.outcome_of(request_of(row))
