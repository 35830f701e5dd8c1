"""Owns an engine without a model, for tests and for measurements of everything around the model."""

from collections.abc import Callable

from batchcap.core.errors import ErrorKind, RowError, WorkerError
from batchcap.core.records import Caption, Duplicate, Failure, FinishReason, ImageFacts, Outcome, Request, Verdict
from batchcap.engines.base import EngineLoad
from batchcap.engines.dedup import SeenImages
from batchcap.inputs.encoded import digest, read_encoded

# What it says of the time that it takes for a row.
VISION_S = 0.5


def outcome_of(request: Request) -> Outcome:
    """Captions made of the row's id; a failure where the id says `bad`."""
    if "bad" in request.row.id:
        return Outcome(request, Failure(request.index, ErrorKind.CORRUPT, "cut"))
    facts = ImageFacts(width=64, height=48, sha256="0" * 64, read_ms=1.0, vision_ms=2.0)
    captions = tuple(
        Caption(
            index=request.index,
            token_ids=(1, 2, 3),
            text=f"of {request.row.id}",
            finish_reason=FinishReason.STOP,
            verdict=Verdict.OK,
            prompt_tokens=9,
            visual_tokens=4,
            prefill_ms=3.0,
            decode_ms=5.0,
            prompt=number,
        )
        for number in range(len(request.prompts))
    )
    return Outcome(request, captions, facts)


class FakeEngine:
    """Keeps the contract of `Engine`; the last request submitted comes out first.

    Args:
        answer: makes the outcome of a request.
        room: requests that it holds.
        per_poll: outcomes of one poll at most.
        dies_after: after so many outcomes it is as if its only worker had been killed; None: never.
        reads_images: whether each row's image is read: what can't be read fails, and equal images, also those of
            earlier runs, are answered once. Otherwise no image is looked at, so none is known to equal another.
    """

    def __init__(
        self,
        answer: Callable[[Request], Outcome] = outcome_of,
        *,
        room: int = 4,
        per_poll: int = 1,
        dies_after: int | None = None,
        reads_images: bool = False,
    ) -> None:
        self._answer = answer
        self._room = room
        self._per_poll = per_poll
        self._dies_after = dies_after
        self._reads_images = reads_images
        self._seen = SeenImages()
        self._requests: list[Request] = []
        self._given = 0
        self._is_started = False

    def start(self, should_stop: Callable[[], bool]) -> None:  # noqa: ARG002 - there is nothing to wait for
        """Take requests from now on."""
        self._is_started = True

    @property
    def has_room(self) -> bool:
        """Whether one more request may be submitted now."""
        return len(self._requests) < self._room

    @property
    def in_flight(self) -> int:
        """Requests submitted whose outcome has not been returned yet."""
        return len(self._requests)

    def seed_dedup(self, caption_key: str, images: list[tuple[str, int]]) -> None:
        """Tell of images captioned by earlier runs."""
        for sha256, index in images:
            self._seen.first_row(sha256, caption_key, index)

    def submit(self, request: Request) -> None:
        """Take one request in.

        Raises:
            RuntimeError: the engine was not started.
        """
        if not self._is_started:
            raise RuntimeError("the engine was not started")
        self._requests.append(request)

    def poll(self, timeout_s: float) -> list[Outcome]:  # noqa: ARG002 - never has to wait
        """Outcomes of the last requests.

        Raises:
            WorkerError: it has died.
        """
        if self._dies_after is not None and self._given >= self._dies_after:
            raise WorkerError("the decoder 0 process was killed by signal 9.")
        outcomes: list[Outcome] = []
        while self._requests and len(outcomes) < self._per_poll and self._given != self._dies_after:
            outcomes.append(self._outcome(self._requests.pop()))
            self._given += 1
        return outcomes

    def _outcome(self, request: Request) -> Outcome:
        if self._reads_images:
            result = self._read(request)
            if result is not None:
                return Outcome(request.without_image(), result)
        outcome = self._answer(request)
        return Outcome(request.without_image(), outcome.result, outcome.facts)

    def _read(self, request: Request) -> Failure | Duplicate | None:
        """What comes of reading the image; None where it is to be answered."""
        try:
            encoded = read_encoded(request.row)
        except RowError as error:
            return Failure(request.index, error.kind, error.message)
        key = request.caption_key
        first = request.index if key is None else self._seen.first_row(digest(encoded), key, request.index)
        return None if first == request.index else Duplicate(request.index, first, read_ms=0.5)

    def load(self) -> EngineLoad:
        """What it holds, and what it says to have done."""
        return EngineLoad(busy_s={"vision": VISION_S * self._given}, decoding_rows=len(self._requests))

    def memory_bytes(self) -> int:
        """It has no worker of its own."""
        return 0

    def close(self) -> None:
        """Give up what is in flight."""
        self._requests.clear()
