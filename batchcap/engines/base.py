"""Owns what a place to run must offer: requests go in, exactly one outcome a request comes out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from batchcap.core.records import Outcome, Request


@dataclass(frozen=True, slots=True)
class WorkerRestart:
    """A worker that has ended and has a successor: what it is called, and how it ended, in words that follow that."""

    worker: str
    reason: str


@dataclass(slots=True)
class EngineLoad:
    """What the stages are doing now and have done so far in this run.

    Attributes:
        busy_s: seconds of work by stage, summed over workers: read, vision, prefill, decode.
        reading_rows: rows given to the vision worker and not back yet.
        queue_rows: rows whose features wait for a decoder.
        queue_mib: memory these features hold.
        decoding_rows: rows given to decoders and not back yet.
        restarts: of workers, in their order; the engine adds to it.
    """

    busy_s: dict[str, float] = field(default_factory=dict)
    reading_rows: int = 0
    queue_rows: int = 0
    queue_mib: float = 0.0
    decoding_rows: int = 0
    restarts: Sequence[WorkerRestart] = ()


class Engine(Protocol):
    """A place where the stages run. `tests/engines/test_contract.py` holds every engine to what is said here.

    Made, it has started nothing and taken nothing of the machine; only `start` and `close` may be called then. Indexes
    of rows are unique among all requests of an engine.
    """

    def start(self, should_stop: Callable[[], bool]) -> None:
        """Start the workers and wait until they can work; when it is time to stop, leave them to their loading.

        How many slots fit into the memory and which cores are used is decided here, where the workers run.

        Raises:
            BatchcapError: a worker could not start; none is left behind.
        """

    @property
    def has_room(self) -> bool:
        """Whether one more request may be submitted now; always while nothing is in flight and nothing has failed."""

    @property
    def in_flight(self) -> int:
        """Requests submitted whose outcome has not been returned yet."""

    def seed_dedup(self, caption_key: str, images: list[tuple[str, int]]) -> None:
        """Tell of images captioned by earlier runs: requests of an equal image and key end as their duplicates.

        Args:
            caption_key: what decided these captions beside the image, see `Request.caption_key`.
            images: hex digest of the encoded bytes and row index.
        """

    def submit(self, request: Request) -> None:
        """Take one request in; never waits.

        Raises:
            RuntimeError: the engine was not started.
        """

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Outcomes that have arrived, waiting at most `timeout_s` for the first.

        Equal images with equal caption keys are captioned once: the others are duplicates, and come after the first.

        Raises:
            WorkerError: a worker ended or can't go on; requests in flight have no outcome, here or at any later call.
                What had arrived before was returned before.
        """

    def load(self) -> EngineLoad:
        """What the stages are doing."""

    def memory_bytes(self) -> int:
        """Memory that the workers hold where they run, this process left out."""

    def close(self) -> None:
        """End at once; requests in flight are given up. Also before `start`, after an error, and again."""
