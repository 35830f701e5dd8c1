"""Owns the shard: the rows that become one part file."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """Consecutive rows of a job. Once planned, a shard never changes."""

    seq: int
    first_row: int
    rows: int

    @property
    def span(self) -> tuple[int, int]:
        """First row and the row after the last."""
        return self.first_row, self.first_row + self.rows
