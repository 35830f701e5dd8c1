"""Owns the plan of a job that several were joined to: what their plans must have in common, and how one is made."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

from batchcap.core.records import Shard
from batchcap.store.journal import Journal

_SOURCES = "SELECT seq, id, path, kind, rows FROM sources ORDER BY seq"


class PlanEnds(NamedTuple):
    """Where the rows of a plan lie in the inputs.

    Attributes:
        rows: how many were chosen.
        first: number of the source of the first one, and its place there; None: no row was chosen.
        last: the same of the last one.
    """

    rows: int
    first: tuple[int, int] | None
    last: tuple[int, int] | None


def ends_of(journal: Journal) -> PlanEnds:
    """Where the chosen rows of a plan lie, those behind a limit too."""
    (rows,) = next(journal.query("SELECT coalesce(sum(rows), 0) FROM chosen"))
    if not rows:
        return PlanEnds(0, None, None)
    first = next(journal.query("SELECT source, start FROM chosen ORDER BY first_row LIMIT 1"))
    last = next(journal.query("SELECT source, start + rows - 1 FROM chosen ORDER BY first_row DESC LIMIT 1"))
    return PlanEnds(int(rows), (first[0], first[1]), (last[0], last[1]))


def have_same_sources(one: Journal, other: Journal) -> bool:
    """Whether two plans have the same sources with as many rows, in the same order."""
    pairs = zip_longest(one.query(_SOURCES), other.query(_SOURCES))
    return all(source == same for source, same in pairs)


class MovedShard(NamedTuple):
    """A shard that has another place in the joined job.

    Attributes:
        job: which of the jobs it is of.
        seq: its number there.
        shard: what it is in the joined job.
    """

    job: int
    seq: int
    shard: Shard


def write_merged_plan(merged: Journal, journals: Sequence[Journal], *, is_choice: bool) -> list[MovedShard]:
    """Join plans whose rows follow each other; nothing is kept for each row.

    Args:
        merged: a new journal.
        journals: of the jobs, in the order of their rows.
        is_choice: whether the joined job has only chosen rows, too.

    Returns:
        The shards of the joined job, in order.
    """
    moved: list[MovedShard] = []
    with merged.transaction() as connection:
        connection.executemany(
            "INSERT INTO sources VALUES (?, ?, ?, ?, ?, ?, ?)",
            journals[0].query("SELECT seq, id, path, kind, rows, size_bytes, mtime_ns FROM sources ORDER BY seq"),
        )
        first_row = 0
        for number, journal in enumerate(journals):
            spans = "SELECT first_row + ?, source, start, rows FROM spans ORDER BY first_row"
            for table in ("spans", "chosen") if is_choice else ("spans",):
                insert = f"INSERT INTO {table} VALUES (?, ?, ?, ?)"  # noqa: S608 - our names
                connection.executemany(insert, journal.query(spans, first_row))
            for shard in journal.shards():
                moved.append(MovedShard(number, shard.seq, Shard(len(moved), first_row, shard.rows)))
                first_row += shard.rows
        connection.executemany(
            "INSERT INTO shards VALUES (?, ?, ?)", ((one.seq, one.first_row, one.rows) for *_from, one in moved)
        )
    return moved
