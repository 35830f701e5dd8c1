"""Owns what a place to run must offer: rows go in, exactly one outcome a row comes out."""

from dataclasses import dataclass, field
from typing import Protocol

from batchcap.core.records import ImageRow, Outcome


@dataclass(slots=True)
class EngineLoad:
    """What the stages are doing now and have done so far in this run.

    Attributes:
        busy_s: seconds of work by stage, summed over workers: read, vision, prefill, decode.
        reading_rows: rows given to the vision worker and not back yet.
        queue_rows: rows whose features wait for a decoder.
        queue_mib: memory these features hold.
        decoding_rows: rows given to decoders and not back yet.
    """

    busy_s: dict[str, float] = field(default_factory=dict)
    reading_rows: int = 0
    queue_rows: int = 0
    queue_mib: float = 0.0
    decoding_rows: int = 0


class Engine(Protocol):
    """A place where the stages run."""

    @property
    def has_room(self) -> bool:
        """Whether one more row may be submitted now."""

    @property
    def in_flight(self) -> int:
        """Rows submitted whose outcome has not been returned yet."""

    def seed_dedup(self, images: list[tuple[str, int]]) -> None:
        """Images captioned by earlier runs, as digest and row index: rows with an equal image are their twins."""

    def submit(self, row: ImageRow) -> None:
        """Take one row in; never waits."""

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Outcomes that have arrived, waiting at most `timeout_s` for the first.

        Raises:
            WorkerError: a worker ended or can't go on; rows in flight have no outcome.
        """

    def load(self) -> EngineLoad:
        """What the stages are doing."""

    def process_ids(self) -> list[int]:
        """Processes whose memory belongs to the job, this one left out."""

    def close(self) -> None:
        """End at once; rows in flight are given up (they stay undone)."""
