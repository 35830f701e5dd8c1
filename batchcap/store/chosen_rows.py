"""Owns the statements about chosen rows: where only some rows of the inputs are rows of the job.

`chosen` holds them all, in the form of `spans`: a row's place in the job is known before a `--limit` lets it in.
"""

import sqlite3
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_CANDIDATES = """
CREATE TEMP TABLE IF NOT EXISTS candidates (
    seq INTEGER PRIMARY KEY, source INTEGER NOT NULL, start INTEGER NOT NULL, rows INTEGER NOT NULL)
"""
# The chosen stretches that are not planned yet, each as far as the limit lets it in.
_PLAN_CHOSEN = """
INSERT INTO spans
SELECT max(first_row, :planned), source, start + max(0, :planned - first_row),
    min(first_row + rows, :end) - max(first_row, :planned)
FROM chosen WHERE :planned < :end AND first_row < :end AND first_row + rows > :planned
    AND first_row >= (SELECT max(first_row) FROM chosen WHERE first_row <= :planned)
ORDER BY first_row
"""


class Stretch(NamedTuple):
    """Consecutive rows of a source.

    Attributes:
        source: its number in the plan.
        start: the first of the rows inside it.
        rows: how many.
    """

    source: int
    start: int
    rows: int


class PlannedSource(NamedTuple):
    """A source of the plan that has rows.

    Attributes:
        number: its number there.
        id: its name in the output.
        path: as bytes of the file system.
        kind: what it is.
        rows: how many it has.
    """

    number: int
    id: str
    path: bytes
    kind: str
    rows: int


class ChosenRows:
    """The chosen rows of a job, inside the transaction that plans it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def source_count(self) -> int:
        """Sources of the plan, those without rows too; a new one gets this number."""
        return self._number("SELECT coalesce(max(seq) + 1, 0) FROM sources")

    def sources(self, first: int) -> Iterator[PlannedSource]:
        """The sources that have rows, from a number on."""
        found = self._connection.execute(
            "SELECT seq, id, path, kind, rows FROM sources WHERE seq >= ? AND rows > 0 ORDER BY seq", (first,)
        )
        return map(PlannedSource._make, found)

    def rows_from(self, first: int) -> int:
        """Rows of the sources from a number on."""
        return self._number("SELECT coalesce(sum(rows), 0) FROM sources WHERE seq >= ?", first)

    def set_aside(self, stretches: Iterable[Stretch]) -> int:
        """Keep stretches for as long as the choice takes; how many rows they have."""
        self._connection.execute(_CANDIDATES)
        self._connection.execute("DELETE FROM candidates")
        self._connection.executemany("INSERT INTO candidates (source, start, rows) VALUES (?, ?, ?)", stretches)
        return self._number("SELECT coalesce(sum(rows), 0) FROM candidates")

    def aside(self) -> Iterator[Stretch]:
        """The stretches that were set aside, in their order."""
        return map(Stretch._make, self._connection.execute("SELECT source, start, rows FROM candidates ORDER BY seq"))

    def choose(self, stretches: Iterable[Stretch]) -> None:
        """These rows follow all others of the job."""
        next_row = self._number("SELECT coalesce(max(first_row + rows), 0) FROM chosen")
        self._connection.executemany("INSERT INTO chosen VALUES (?, ?, ?, ?)", _placed(stretches, next_row))

    def plan(self, planned: int, limit: int) -> None:
        """Give rows of the job to chosen rows that have none yet.

        Args:
            planned: rows that the job has.
            limit: as many as it may have; 0: all.
        """
        self._connection.execute(_PLAN_CHOSEN, {"planned": planned, "end": limit or sys.maxsize})

    def _number(self, statement: str, *values: int) -> int:
        return int(self._connection.execute(statement, values).fetchone()[0])


def _placed(stretches: Iterable[Stretch], next_row: int) -> Iterator[tuple[int, int, int, int]]:
    for source, start, rows in stretches:
        yield next_row, source, start, rows
        next_row += rows
