"""Owns the plan of a job: which rows there are, in which order and in which shard, kept in the journal's file.

What is planned once never moves: sources that appear later get rows and shards after all others. So a part file that
is there stays right, whatever is added to the inputs.
"""

import os
import sqlite3
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchcap.config import InputConfig
from batchcap.errors import ChangedInputError, UsageError
from batchcap.manifest.parquet import ParquetLayout, read_layout
from batchcap.manifest.row_reader import (
    RowReader,
    carried_reader,
    image_row,
    picture_reader,
    read_columns,
    read_rows,
)
from batchcap.manifest.shard import Shard
from batchcap.manifest.source import Source, SourceKind, printable_name, source_name
from batchcap.records import ImageRow
from batchcap.store.journal import Journal
from batchcap.store.parts import SCHEMA, UNNAMED, output_schema
from batchcap.terminal import shown_name

# Sources looked up and kept with one statement.
_SOURCES_AT_ONCE = 1000
# A piece of a source: row in the job, source id, path, kind, first row inside the source, rows. Spans lie end to end,
# so the first one of a shard is the last that begins at or before it: no other span is looked at.
_PIECES = """
SELECT spans.first_row, sources.id, sources.path, sources.kind, spans.start, spans.rows
FROM spans JOIN sources ON sources.seq = spans.source
WHERE spans.first_row >= (SELECT max(first_row) FROM spans WHERE first_row <= ?) AND spans.first_row < ?
ORDER BY spans.first_row
"""
_Piece = tuple[int, str, bytes, str, int, int]
# What a known source looks like now, where that is not how it looked before. It lives as long as the connection.
_TOUCHED = """
CREATE TEMP TABLE IF NOT EXISTS touched (
    source INTEGER PRIMARY KEY, size_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL)
"""


@dataclass(frozen=True, slots=True)
class TouchedSource:
    """A source of earlier runs whose size or time is another one now.

    Attributes:
        number: its number in the plan.
        path: as bytes of the file system.
        kind: what it is.
        spans: its rows in the job: the first one and how many, end to end or apart.
    """

    number: int
    path: bytes
    kind: SourceKind
    spans: tuple[tuple[int, int], ...]


class Plan:
    """The rows of a job.

    Args:
        journal: where the plan is kept.
        config: how the inputs are read.
        prompts: names of the prompts, whose columns the carried ones must not take.
    """

    def __init__(self, journal: Journal, config: InputConfig, prompts: Sequence[str] = UNNAMED) -> None:
        self._journal = journal
        self._config = config
        # Also the plain names: a carried `caption` beside `caption_short` would be taken for ours.
        self._own_columns = frozenset((*SCHEMA.names, *output_schema(prompts).names))
        self._layouts: dict[Path, ParquetLayout] = {}
        self._carried: pa.Schema | None = None
        # One file open for each purpose: a job may have thousands.
        self._pictures: RowReader | None = None
        self._columns: RowReader | None = None

    @property
    def total_rows(self) -> int:
        """Rows of the job."""
        return int(next(self._journal.query("SELECT coalesce(sum(rows), 0) FROM shards"))[0])

    def shards(self) -> list[Shard]:
        """All shards in order."""
        return self._journal.shards()

    def extend(self, sources: Iterable[Source], rows_per_part: int, limit: int) -> int:
        """Take in what was found; gives the number of rows that are new.

        Known sources keep their rows; new ones come after all others, in new shards. A file that comes twice counts
        once, and where an id is taken the whole path is used. What has changed or vanished keeps its rows; `touched`
        tells of it. Everything is planned together or not at all, and nothing is held for each source.

        Args:
            sources: the sources found now.
            rows_per_part: rows of a new shard.
            limit: plan no more than so many rows in all; 0: no limit.

        Raises:
            ChangedInputError: a known Parquet file has another number of rows.
            UsageError: a Parquet file's columns don't fit, or not together with those of another.
        """
        with self._journal.transaction() as connection:
            connection.execute(_TOUCHED)
            before = self.total_rows
            self._take_in(connection, sources)
            self._carried = self._carried_schema()
            _plan_spans(connection, before, limit)
            (after,) = connection.execute("SELECT coalesce(max(first_row + rows), 0) FROM spans").fetchone()
            (seq,) = connection.execute("SELECT count(*) FROM shards").fetchone()
            starts = range(before, after, rows_per_part)
            connection.executemany(
                "INSERT INTO shards VALUES (?, ?, ?)",
                ((seq + number, start, min(rows_per_part, after - start)) for number, start in enumerate(starts)),
            )
        return int(after - before)

    def _take_in(self, connection: sqlite3.Connection, sources: Iterable[Source]) -> None:
        (seq,) = connection.execute("SELECT count(*) FROM sources").fetchone()
        unread = iter(sources)
        while batch := list(islice(unread, _SOURCES_AT_ONCE)):
            new: dict[bytes, Source] = {}
            paths = [os.fsencode(source.path) for source in batch]
            known = _stored(connection, "path", paths)
            for path, source in zip(paths, batch, strict=True):
                if source.kind is SourceKind.PARQUET:
                    self._layout(source.path)  # columns that don't fit are told before any work
                if path in known:
                    _compare(connection, known[path], source)
                else:
                    new.setdefault(path, source)
            _add_sources(connection, seq, new)
            seq += len(new)

    def vanished(self) -> frozenset[str]:
        """Parquet files of the plan that are gone, as the rows' `source` has them."""
        files = self._journal.query("SELECT path FROM sources WHERE kind = ?", SourceKind.PARQUET)
        names = (os.fsdecode(path) for (path,) in files)
        return frozenset(source_name(name) for name in names if not Path(name).exists())

    def touched(self) -> Iterator[TouchedSource]:
        """The sources that `extend` found to look otherwise than before, in the order of their rows."""
        found = self._journal.query(
            """
            SELECT sources.seq, sources.path, sources.kind, spans.first_row, spans.rows FROM touched
            JOIN sources ON sources.seq = touched.source JOIN spans ON spans.source = sources.seq
            ORDER BY sources.seq, spans.first_row
            """
        )
        for (number, path, kind), spans in groupby(found, key=lambda row: row[:3]):
            yield TouchedSource(number, path, SourceKind(kind), tuple((first, rows) for *_, first, rows in spans))

    def accept(self, touched: Sequence[TouchedSource]) -> None:
        """What these sources look like now is how they are to look at the next run."""
        with self._journal.transaction() as connection:
            connection.executemany(
                """
                UPDATE sources SET (size_bytes, mtime_ns) =
                (SELECT size_bytes, mtime_ns FROM touched WHERE source = seq) WHERE seq = ?
                """,
                ((one.number,) for one in touched),
            )

    def shard_rows(self, shard: Shard, wanted: Collection[int] | None = None) -> Iterator[ImageRow]:
        """The rows of a shard, in order.

        Args:
            shard: the shard.
            wanted: indexes of the rows that are given; None: all. Files without any are not opened.

        Raises:
            UsageError: a Parquet file can't be read.
        """
        wanted = range(*shard.span) if wanted is None else wanted
        for first_row, name, path, kind, start, count in self._pieces(shard):
            inside = [index for index in range(first_row, first_row + count) if index in wanted]
            if not inside:
                continue
            if kind == SourceKind.IMAGE:
                text = os.fsdecode(path)
                yield ImageRow(first_row, name, source_name(text), 0, path=text)
                continue
            file = Path(os.fsdecode(path))
            layout = self._layout(file)
            if self._pictures is None or self._pictures.path != file:
                self._pictures = picture_reader(file, layout)
            skip = inside[0] - first_row
            for offset, values in enumerate(read_rows(self._pictures, start + skip, 1 + inside[-1] - inside[0]), skip):
                if first_row + offset in wanted:
                    yield image_row(values, layout, (first_row + offset, name, file, start + offset))

    def shard_columns(self, shard: Shard) -> pa.Table | None:
        """The carried columns of a shard, one row for each of its rows; None where none are carried.

        Every shard has the same columns: null for a picture file, and where a Parquet file lacks a column that another
        one has.

        Raises:
            UsageError: a Parquet file can't be read, or the columns of two files don't fit together.
        """
        if self._carried is None:
            self._carried = self._carried_schema()
        schema = self._carried
        if not schema.names:
            return None
        tables = []
        for _first_row, _name, path, kind, start, count in self._pieces(shard):
            columns = pa.table({})
            if kind == SourceKind.PARQUET:
                file = Path(os.fsdecode(path))
                layout = self._layout(file)
                if self._columns is None or self._columns.path != file:
                    self._columns = carried_reader(file, layout)
                columns = read_columns(self._columns, layout, start, count)
            there = dict(zip(columns.column_names, columns.columns, strict=True))
            values = [there[field.name] if field.name in there else pa.nulls(count, field.type) for field in schema]
            tables.append(pa.table(values, names=schema.names).cast(schema))
        return pa.concat_tables(tables)

    def _carried_schema(self) -> pa.Schema:
        """The carried columns of all Parquet files of the job, in the order they were planned."""
        carried = pa.schema([])
        owners: dict[str, Path] = {}
        if not self._config.keep_columns:
            return carried
        files = self._journal.query("SELECT path FROM sources WHERE kind = ? ORDER BY seq", SourceKind.PARQUET)
        for file in [Path(os.fsdecode(path)) for (path,) in files]:
            if not file.exists():  # captioned already, or reported when its rows are read
                continue
            layout = self._layout(file)
            fields = [pa.field(name, kept.type) for kept, name in zip(layout.kept, layout.kept_as, strict=True)]
            try:
                carried = pa.unify_schemas([carried, pa.schema(fields)])
            except pa.ArrowException:
                raise UsageError(_clash(carried, owners, layout, file)) from None
            for field in fields:
                owners.setdefault(field.name, file)
        return carried

    def _pieces(self, shard: Shard) -> list[_Piece]:
        """The pieces of sources that make up a shard, cut to it.

        All at once: a SELECT left open while the shard is captioned would keep the write-ahead log from shrinking.
        """
        low, high = shard.span
        pieces = []
        for first_row, name, path, kind, start, count in self._journal.query(_PIECES, low, high):
            skip = max(0, low - first_row)
            take = min(count, high - first_row) - skip
            pieces.append((first_row + skip, name, path, kind, start + skip, take))
        return pieces

    def _layout(self, path: Path) -> ParquetLayout:
        if path not in self._layouts:
            self._layouts[path] = read_layout(path, self._config, self._own_columns)
        return self._layouts[path]


_Known = tuple[int, int, int, int]


def _clash(carried: pa.Schema, owners: dict[str, Path], layout: ParquetLayout, file: Path) -> str:
    """What to say of a file whose carried columns don't fit to those of the files before."""
    for kept, name in zip(layout.kept, layout.kept_as, strict=True):
        try:
            pa.unify_schemas([carried, pa.schema([(name, kept.type)])])
        except pa.ArrowException:
            owner, type_before = shown_name(str(owners[name])), carried.field(name).type
            return (
                f"column {kept.name!r} is {type_before} in {owner} and {kept.type} in {shown_name(str(file))}: "
                "leave it out with --keep-columns, or caption these files apart"
            )
    raise AssertionError(file)


def _stored(connection: sqlite3.Connection, column: str, values: list[Any]) -> dict[Any, _Known]:
    """Number, rows, size and time of the sources that have one of the values in a column, by that value."""
    marks = ", ".join("?" * len(values))
    found = connection.execute(
        f"SELECT {column}, seq, rows, size_bytes, mtime_ns FROM sources WHERE {column} IN ({marks})",  # noqa: S608 - our names
        values,
    )
    return {value: tuple(known) for value, *known in found}


def _compare(connection: sqlite3.Connection, known: _Known, source: Source) -> None:
    """Note a known source that looks otherwise now; one that can't be looked at says nothing."""
    number, rows, *looks = known
    looks_now = [source.size_bytes, source.mtime_ns]
    if rows != source.rows:
        raise ChangedInputError(
            f"{shown_name(str(source.path))} had {rows} rows when this job began and has {source.rows} now, so "
            "its captions belong to others: put the old file back, or use another --output"
        )
    if looks != looks_now and any(looks_now):
        connection.execute("INSERT OR REPLACE INTO touched VALUES (?, ?, ?)", (number, *looks_now))


def _add_sources(connection: sqlite3.Connection, seq: int, new: dict[bytes, Source]) -> None:
    """Keep sources by their paths, numbered from `seq` on."""
    taken = set(_stored(connection, "id", [source.id for source in new.values()]))
    insert = "INSERT INTO sources VALUES (?, ?, ?, ?, ?, ?, ?)"
    rows: list[tuple[int, str, bytes, Source]] = []
    clashing: list[tuple[int, str, bytes, Source]] = []
    for number, (path, source) in enumerate(new.items(), seq):
        (clashing if source.id in taken else rows).append((number, source.id, path, source))
        taken.add(source.id)
    connection.executemany(insert, (_row_of(*row) for row in rows))
    for number, name, path, source in clashing:
        free = _free_id(connection, name, printable_name(os.fsdecode(path)))
        connection.execute(insert, _row_of(number, free, path, source))


def _row_of(number: int, name: str, path: bytes, source: Source) -> tuple[Any, ...]:
    return number, name, path, source.kind, source.rows, source.size_bytes, source.mtime_ns


def _free_id(connection: sqlite3.Connection, wanted: str, path: str) -> str:
    """The path of a source whose id an earlier source has."""
    name = path if path != wanted else f"{wanted}#"
    while _stored(connection, "id", [name]):
        name += "#"
    return name


def _plan_spans(connection: sqlite3.Connection, planned: int, limit: int) -> None:
    """Give rows of the job to source rows that have none yet, as far as the limit allows.

    Sources get their rows in order: those before the last one that has any have all of theirs. One statement: a million
    sources never come to Python.
    """
    connection.execute(
        """
        WITH last AS (SELECT source, start + rows AS rows FROM spans ORDER BY first_row DESC LIMIT 1),
        waiting AS (
            SELECT seq, coalesce(last.rows, 0) AS start, sources.rows - coalesce(last.rows, 0) AS rows
            FROM sources LEFT JOIN last ON last.source = seq
            WHERE seq >= coalesce((SELECT source FROM last), 0) AND sources.rows > coalesce(last.rows, 0)),
        placed AS (SELECT seq, start, rows, :planned + sum(rows) OVER (ORDER BY seq) - rows AS first_row FROM waiting)
        INSERT INTO spans
        SELECT first_row, seq, start, min(rows, :end - first_row) FROM placed WHERE first_row < :end
        """,
        {"planned": planned, "end": limit or sys.maxsize},
    )
