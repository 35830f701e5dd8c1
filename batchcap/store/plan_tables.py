"""Owns the statements of the plan's tables: sources, which rows of the job are theirs, and the shards.

Nothing is held for each source: a million of them are compared, numbered and given rows in SQL.
"""

import os
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from batchcap.core.records import Shard
from batchcap.core.sources import Piece, Source
from batchcap.core.text import printable_name
from batchcap.store.chosen_rows import ChosenRows
from batchcap.store.journal import Journal

# Spans lie end to end, so the first one of a shard is the last that begins at or before it: no other span is looked at.
_PIECES = """
SELECT spans.first_row, sources.id, sources.path, sources.kind, spans.start, spans.rows
FROM spans JOIN sources ON sources.seq = spans.source
WHERE spans.first_row >= (SELECT max(first_row) FROM spans WHERE first_row <= ?) AND spans.first_row < ?
ORDER BY spans.first_row
"""
# What a known source looks like now, where that is not how it looked before. It lives as long as the connection.
_TOUCHED = """
CREATE TEMP TABLE IF NOT EXISTS changed (
    source INTEGER PRIMARY KEY, rows INTEGER NOT NULL, size_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL)
"""
# A source's rows are planned from its first one on: in one span, or in several where it grew or a limit cut it.
_PLAN_SPANS = """
WITH planned AS (SELECT source, sum(rows) AS rows FROM spans GROUP BY source),
waiting AS (
    SELECT seq, coalesce(planned.rows, 0) AS start, sources.rows - coalesce(planned.rows, 0) AS rows
    FROM sources LEFT JOIN planned ON planned.source = seq
    WHERE sources.rows > coalesce(planned.rows, 0)),
placed AS (SELECT seq, start, rows, :planned + sum(rows) OVER (ORDER BY seq) - rows AS first_row FROM waiting)
INSERT INTO spans
SELECT first_row, seq, start, min(rows, :end - first_row) FROM placed WHERE first_row < :end
"""


class KnownSource(NamedTuple):
    """A source of the plan, with its number there and how it looked when it was planned or accepted."""

    number: int
    rows: int
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class ChangedSource:
    """A source of earlier runs whose number of rows, size or time is another one now.

    Attributes:
        number: its number in the plan.
        path: as bytes of the file system.
        kind: what it is.
        rows_before: how many it had when it was planned or accepted.
        rows: how many it has now.
        pieces: its rows in the job, in order, end to end or apart; empty where none are planned.
    """

    number: int
    path: bytes
    kind: str
    rows_before: int
    rows: int
    pieces: tuple[Piece, ...]


class PlanChange:
    """Statements that change the plan, inside one transaction.

    Attributes:
        chosen: those about the rows that a job with a choice has.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.chosen = ChosenRows(connection)
        connection.execute(_TOUCHED)

    def known(self, paths: Sequence[bytes]) -> dict[bytes, KnownSource]:
        """Those of the sources that the plan has, by their paths."""
        return self._stored("path", paths)

    def note_changed(self, number: int, source: Source) -> None:
        """A known source looks like this now."""
        self._connection.execute(
            "INSERT OR REPLACE INTO changed VALUES (?, ?, ?, ?)",
            (number, source.rows, source.size_bytes, source.mtime_ns),
        )

    def accept(self, changed: Iterable[ChangedSource]) -> None:
        """What these sources look like now is how they are to look at the next run."""
        self._take_over("rows, size_bytes, mtime_ns", changed)

    def accept_looks(self, changed: Iterable[ChangedSource]) -> None:
        """As `accept`, for a job whose rows are fixed: to it these sources have the rows that it began with."""
        self._take_over("size_bytes, mtime_ns", changed)

    def accept_rows(self, changed: Iterable[ChangedSource]) -> None:
        """These sources have as many rows as they have now; the next run looks at them again."""
        self._take_over("rows", changed)

    def _take_over(self, columns: str, changed: Iterable[ChangedSource]) -> None:
        self._connection.executemany(
            f"UPDATE sources SET ({columns}) = (SELECT {columns} FROM changed WHERE source = seq) WHERE seq = ?",  # noqa: S608 - our names
            ((one.number,) for one in changed),
        )

    def add(self, new: Mapping[bytes, Source]) -> None:
        """Keep sources by their paths; where an id is taken the whole path is used."""
        (count,) = self._connection.execute("SELECT coalesce(max(seq) + 1, 0) FROM sources").fetchone()
        taken = set(self._stored("id", [source.id for source in new.values()]))
        insert = "INSERT INTO sources VALUES (?, ?, ?, ?, ?, ?, ?)"
        rows: list[tuple[int, str, bytes, Source]] = []
        clashing: list[tuple[int, str, bytes, Source]] = []
        for number, (path, source) in enumerate(new.items(), count):
            (clashing if source.id in taken else rows).append((number, source.id, path, source))
            taken.add(source.id)
        self._connection.executemany(insert, (_row_of(*row) for row in rows))
        for number, name, path, source in clashing:
            free = self._free_id(name, printable_name(os.fsdecode(path)))
            self._connection.execute(insert, _row_of(number, free, path, source))

    def plan_rows(self, rows_per_part: int, limit: int, *, is_choice: bool = False) -> int:
        """Give rows and shards of the job to source rows that have none yet; how many these are.

        Args:
            rows_per_part: rows of a new shard.
            limit: plan no more than so many rows in all; 0: no limit.
            is_choice: whether only the chosen rows are given some.
        """
        query = self._connection.execute
        (before,) = query("SELECT coalesce(sum(rows), 0) FROM shards").fetchone()
        if is_choice:
            self.chosen.plan(before, limit)
        else:
            (there,) = query("SELECT coalesce(sum(rows), 0) FROM sources").fetchone()
            if there <= before:  # else each source is looked at: of a million, that takes a second
                return 0
            query(_PLAN_SPANS, {"planned": before, "end": limit or sys.maxsize})
        (after,) = query("SELECT coalesce(max(first_row + rows), 0) FROM spans").fetchone()
        (seq,) = query("SELECT count(*) FROM shards").fetchone()
        starts = range(before, after, rows_per_part)
        self._connection.executemany(
            "INSERT INTO shards VALUES (?, ?, ?)",
            ((seq + number, start, min(rows_per_part, after - start)) for number, start in enumerate(starts)),
        )
        return int(after - before)

    def _stored(self, column: str, values: Sequence[Any]) -> dict[Any, KnownSource]:
        marks = ", ".join("?" * len(values))
        found = self._connection.execute(
            f"SELECT {column}, seq, rows, size_bytes, mtime_ns FROM sources WHERE {column} IN ({marks})",  # noqa: S608 - our names
            values,
        )
        return {value: KnownSource(*known) for value, *known in found}

    def _free_id(self, wanted: str, path: str) -> str:
        """The path of a source whose id an earlier source has."""
        name = path if path != wanted else f"{wanted}#"
        while self._stored("id", [name]):
            name += "#"
        return name


class PlanTables:
    """The plan as it lies in a journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    @contextmanager
    def change(self) -> Iterator[PlanChange]:
        """Changes that become durable together, or not at all.

        Raises:
            StorageError: the journal can't be written.
        """
        with self._journal.transaction() as connection:
            yield PlanChange(connection)

    @property
    def total_rows(self) -> int:
        """Rows of the job."""
        return int(next(self._journal.query("SELECT coalesce(sum(rows), 0) FROM shards"))[0])

    def sources(self, kinds: Sequence[str]) -> Iterator[tuple[str, Path]]:
        """Kind and path of each source that is of some kinds, in the order they were planned."""
        marks = ", ".join("?" * len(kinds))
        found = self._journal.query(f"SELECT kind, path FROM sources WHERE kind IN ({marks}) ORDER BY seq", *kinds)  # noqa: S608 - question marks
        return ((kind, Path(os.fsdecode(path))) for kind, path in found)

    def named_sources(self, kinds: Sequence[str]) -> Iterator[tuple[str, Path]]:
        """Id and path of each source that is of some kinds and has rows, in the order they were planned."""
        marks = ", ".join("?" * len(kinds))
        statement = f"SELECT id, path FROM sources WHERE kind IN ({marks}) AND seq IN (SELECT source FROM spans)"  # noqa: S608 - question marks
        return (
            (name, Path(os.fsdecode(path))) for name, path in self._journal.query(f"{statement} ORDER BY seq", *kinds)
        )

    def kinds(self) -> frozenset[str]:
        """The kinds of the sources that have rows."""
        statement = "SELECT DISTINCT kind FROM sources WHERE seq IN (SELECT source FROM spans)"
        return frozenset(kind for (kind,) in self._journal.query(statement))

    def source_in_part(self) -> tuple[Path, int, int] | None:
        """The first source of which the job has some rows only, or none: its path, its rows and those of the job."""
        statement = """
            SELECT path, rows, coalesce(planned, 0) FROM sources LEFT JOIN
              (SELECT source, sum(rows) AS planned FROM spans GROUP BY source) ON source = seq
            WHERE coalesce(planned, 0) < rows ORDER BY seq LIMIT 1
        """
        found = next(iter(self._journal.query(statement)), None)
        return None if found is None else (Path(os.fsdecode(found[0])), int(found[1]), int(found[2]))

    def look_of(self, path: Path) -> tuple[int, int]:
        """Size and time of a source of the plan when it was planned or accepted; 0 where it could not be looked at."""
        statement = "SELECT size_bytes, mtime_ns FROM sources WHERE path = ?"
        size_bytes, mtime_ns = next(self._journal.query(statement, os.fsencode(path)))
        return int(size_bytes), int(mtime_ns)

    def pieces(self, shard: Shard) -> list[Piece]:
        """The pieces of sources that make up a shard, cut to it.

        All at once: a SELECT left open while the shard is captioned would keep the write-ahead log from shrinking.
        """
        low, high = shard.span
        pieces = []
        for first_row, name, path, kind, start, count in self._journal.query(_PIECES, low, high):
            skip = max(0, low - first_row)
            rows = min(count, high - first_row) - skip
            pieces.append(Piece(first_row + skip, name, os.fsdecode(path), kind, start + skip, rows))
        return pieces

    def changed(self) -> Iterator[ChangedSource]:
        """The sources that were noted as changed in this connection, in the order of their rows."""
        found = self._journal.query(
            """
            SELECT sources.seq, sources.path, sources.kind, sources.rows, changed.rows, sources.id,
                spans.first_row, spans.start, spans.rows
            FROM changed JOIN sources ON sources.seq = changed.source LEFT JOIN spans ON spans.source = sources.seq
            ORDER BY sources.seq, spans.first_row
            """
        )
        for (number, path, kind, before, now, name), spans in groupby(found, key=lambda row: row[:6]):
            pieces = (
                Piece(first_row, name, os.fsdecode(path), kind, start, rows)
                for *_, first_row, start, rows in spans
                if first_row is not None
            )
            yield ChangedSource(number, path, kind, before, now, tuple(pieces))


def _row_of(number: int, name: str, path: bytes, source: Source) -> tuple[Any, ...]:
    return number, name, path, source.kind, source.rows, source.size_bytes, source.mtime_ns
