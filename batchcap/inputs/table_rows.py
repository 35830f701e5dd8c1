"""Owns the streaming of a table's rows: ranges of it, images and carried columns, and what can't be read."""

import logging
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchcap.core.errors import ErrorKind
from batchcap.core.records import ImageRow
from batchcap.core.sources import Bytes
from batchcap.core.text import printable_name
from batchcap.inputs.cells import image_of_text
from batchcap.inputs.columns import listed
from batchcap.inputs.reader import Unreadable
from batchcap.inputs.source import source_name
from batchcap.inputs.table import Table, list_value, readable, reason_of
from batchcap.inputs.table_layout import PATH, TableLayout, rank_of

log = logging.getLogger(__name__)

# Rows decoded at once. Images come one by one: a file of some kilobytes may hold hundreds of megabytes in each cell,
# and to decode one alone takes a tenth of a millisecond more.
_IMAGE_BATCH_ROWS = 1
SMALL_BATCH_ROWS = 1024


class RowReader:
    """Some columns of one table, by ranges of rows; one pass over the file where the ranges come in order.

    A range that lies after the last one goes on in the open group. Opened again for every part, a group of a million
    rows would be decoded a thousand times.

    Args:
        table: the table.
        columns: names of the columns.
        batch_rows: most rows decoded at once.
    """

    def __init__(self, table: Table, columns: list[str], batch_rows: int) -> None:
        self._table = table
        self._columns = columns
        self._batch_rows = batch_rows
        self._group_starts = [0, *accumulate(table.group_rows)]
        self._group = -1
        self._batches: Iterator[pa.RecordBatch | Unreadable] = iter(())
        self._rest: pa.RecordBatch | Unreadable | None = None  # decoded, but not reached yet
        self._next = 0  # row of the file that `_rest` or the next batch begins with
        self._fault: str | None = None  # why nothing follows in the open group
        self._lost: set[tuple[int, str]] = set()  # row groups and columns that a warning has told of

    @property
    def path(self) -> Path:
        """The file."""
        return self._table.path

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return self._group_starts[-1]

    def place_of(self, row: int) -> tuple[int, int | None]:
        """As `Table.place_of`."""
        return self._table.place_of(row)

    def read(self, start: int, count: int) -> Iterator[pa.RecordBatch | Unreadable]:
        """Record batches that hold exactly rows `start` to `start + count`.

        Where a row group is damaged, what is left of it comes as `Unreadable`, the same in each run. An error of the
        disk or the network is no damage: it may be over soon.

        Raises:
            UsageError: the file can't be read.
        """
        starts, stop = self._group_starts, start + count
        with readable(self.path, self._table.noun):
            for group in range(bisect_right(starts, start) - 1, bisect_left(starts, stop)):
                yield from self._read_group(group, max(start, starts[group]), min(stop, starts[group + 1]))

    def _read_group(self, group: int, low: int, high: int) -> Iterator[pa.RecordBatch | Unreadable]:
        while low < high:
            if group != self._group or low < self._next:  # looked at each time: another range may have been read since
                self._open(group)
            batch = self._rest if self._rest is not None else self._decode()
            if batch is None:
                yield Unreadable(high - low, self._fault or "")
                return
            skip, take = max(0, low - self._next), min(len(batch), high - self._next)
            self._rest = batch.slice(take) if take < len(batch) else None
            self._next += take
            if skip < take:
                low = self._next
                yield batch.slice(skip, take - skip)

    def _open(self, group: int) -> None:
        self._batches = self._table.batches(group, self._columns, self._batch_rows)
        self._group, self._next, self._rest, self._fault = group, self._group_starts[group], None, None

    def _decode(self) -> pa.RecordBatch | Unreadable | None:
        """The next batch of the open group; None where it is damaged, now and for the rest of it."""
        if self._fault is None:
            try:
                return next(self._batches)
            except StopIteration:
                reason = f"it ends after {self._next - self._group_starts[self._group]} rows"
            except (pa.ArrowException, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    self._group = -1
                    raise
                reason = reason_of(error)
            self._fault = f"{self._table.group_name(self._group)} is damaged: {reason}"
        return None

    def read_apart(self, start: int, count: int) -> pa.Table:
        """Rows `start` to `start + count` of the open group, column by column; null where one can't be read.

        Raises:
            UsageError: the file can't be read.
        """
        group, schema = self._group, self._table.schema
        if not self._table.has_column_chunks:  # the image is lost, too, and its row says why
            return pa.table({name: pa.nulls(count, schema.field(name).type) for name in self._columns})
        skip = start - self._group_starts[group]
        columns, lost = [], []
        for name in self._columns:
            try:
                pieces = self._table.batches(group, [name], self._batch_rows)
                table = pa.Table.from_batches(_within(pieces, skip, count), pa.schema([schema.field(name)]))
            except (pa.ArrowException, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    with readable(self.path, self._table.noun):
                        raise
                table = pa.table({})
            if len(table) < count:
                lost.append(name)
                columns.append(pa.chunked_array([pa.nulls(count, schema.field(name).type)]))
            else:
                columns.append(table.column(0))
        new = [name for name in lost if (group, name) not in self._lost]
        if new:
            self._lost.update((group, name) for name in new)
            log.warning("%s; carried as null from row %d on: %s", self._fault, start, listed(new))
        return pa.table(columns, names=self._columns)


def _within(batches: Iterator[pa.RecordBatch | Unreadable], skip: int, count: int) -> Iterator[pa.RecordBatch]:
    """Rows `skip` to `skip + count` of some batches; nothing after them, or after what can't be read, is decoded."""
    first, stop = 0, skip + count
    while first < stop and isinstance(batch := next(batches, None), pa.RecordBatch):
        low = max(0, skip - first)
        if low < len(batch):
            yield batch.slice(low, stop - first - low)
        first += len(batch)


def image_reader(table: Table, layout: TableLayout) -> RowReader:
    """The reader for `read_rows`."""
    columns = list(dict.fromkeys([layout.image, *([] if layout.id is None else [layout.id])]))
    return RowReader(table, columns, SMALL_BATCH_ROWS if layout.rank == PATH else _IMAGE_BATCH_ROWS)


def read_rows(reader: RowReader, start: int, count: int) -> Iterator[dict[str, Any] | Unreadable]:
    """Rows `start` to `start + count` of the image and id columns, a few at a time; `Unreadable` comes for each row.

    Raises:
        UsageError: the file can't be read.
    """
    for piece in reader.read(start, count):
        if isinstance(piece, Unreadable):
            for _row in range(piece.rows):
                yield piece
            continue
        try:
            values = piece.to_pylist()
        except (ValueError, OverflowError, pa.ArrowException):  # of a million rows one must not end the job
            values = _undecoded(piece)
        yield from values


def _undecoded(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows of a batch with values that Python has none for.

    Text that is not UTF-8 is taken as file names are, byte for byte; a time out of range as Arrow writes it.
    """
    columns = [column.cast(_bytes_type(column.type)) for column in batch.columns]
    rows: list[dict[str, Any]] = [{} for _row in range(len(batch))]
    for field, column in zip(batch.schema, columns, strict=True):
        is_text = rank_of(field.with_type(list_value(field.type) or field.type)) == PATH
        for values, value in zip(rows, _values(column), strict=True):
            values[field.name] = _with_text(value, is_text=is_text)
    return rows


def _with_text(value: Any, *, is_text: bool) -> Any:  # noqa: ANN401 - whatever a column holds
    """A value with file names in the place of bytes that are text."""
    if isinstance(value, list):
        return [_with_text(one, is_text=is_text) for one in value]
    if is_text and value is not None:
        return os.fsdecode(value)
    if isinstance(value, dict) and isinstance(value.get("path"), bytes):
        value["path"] = os.fsdecode(value["path"])
    return value


def _values(column: pa.Array) -> list[Any]:
    """Python values of a column; of an Image only its parts count, and a value without any is null."""
    if list_value(column.type) is not None:
        return [_values(cell.values) if cell.is_valid else None for cell in column]
    if pa.types.is_struct(column.type):
        parts = {field.name: part for field, part in zip(column.type, column.flatten(), strict=True)}
        names = [name for name in ("bytes", "path") if name in parts]
        cells = zip(*(_values(parts[name]) for name in names), strict=True)
        return [dict(zip(names, values, strict=True)) for values in cells]
    return [_value(cell) for cell in column]


def _value(cell: pa.Scalar) -> Any:  # noqa: ANN401 - whatever a column holds
    with suppress(ValueError, OverflowError, pa.ArrowException):
        return cell.as_py()
    with suppress(ValueError, OverflowError, pa.ArrowException):
        return cell.cast(pa.string()).as_py()
    return None


def _bytes_type(kind: pa.DataType) -> pa.DataType:
    """The type with bytes in the place of text."""
    if pa.types.is_dictionary(kind):
        return _bytes_type(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([part.with_type(_bytes_type(part.type)) for part in kind])
    if (value := list_value(kind)) is not None:
        return pa.large_list(_bytes_type(value))
    is_text = rank_of(pa.field("", kind)) == PATH and not pa.types.is_null(kind)
    return pa.large_binary() if is_text else kind


def carried_reader(table: Table, layout: TableLayout) -> RowReader:
    """The reader for `read_columns`."""
    return RowReader(table, layout.kept.names, SMALL_BATCH_ROWS)


def read_columns(reader: RowReader, layout: TableLayout, start: int, count: int) -> pa.Table:
    """The carried columns of rows `start` to `start + count`, with their types in the file, their names in the output.

    A column that is damaged is null from there to the end of its row group, and a warning says so: the captions of
    these rows are whole.

    Raises:
        UsageError: the file can't be read.
    """
    names = layout.kept.names
    if not names:
        return pa.table([pa.nulls(count)], [""]).select([])
    # Not `empty_table`: some types that can be read have no such way.
    tables = [pa.table([pa.nulls(0, field.type) for field in layout.kept], schema=layout.kept)]
    for piece in reader.read(start, count):
        if isinstance(piece, Unreadable):
            table = reader.read_apart(start, piece.rows)
            start += piece.rows
        else:
            table = pa.Table.from_batches([piece])
            start += len(piece)
        # Not a cast: it would refuse nulls in the place of a damaged struct whose parts are never null.
        tables.append(pa.Table.from_arrays(table.select(names).columns, schema=layout.kept))
    return pa.concat_tables(tables).rename_columns(list(layout.kept_as))


def image_row(
    values: dict[str, Any] | Unreadable, layout: TableLayout, position: tuple[int, str, Path, int, int | None]
) -> ImageRow:
    """The `ImageRow` of one row's values.

    Args:
        values: image and id as Python values, or why there are none.
        layout: the file's columns.
        position: row index in the job, id of the source, path of the source, row in the source, and which of the row's
            images it is, if it is one of several.
    """
    index, source_id, path, row, item = position
    source, name = source_name(str(path)), f"{source_id}:{row}"
    end = "" if item is None else f"#{item}"
    if isinstance(values, Unreadable):
        return ImageRow(index, name + end, source, row, failure=(ErrorKind.UNREADABLE, values.reason))
    given = values.get(layout.id) if layout.id is not None else None
    name = (name if given is None else printable_name(str(given))) + end
    cell = values[layout.image]
    if isinstance(cell, list):
        if not cell:
            return ImageRow(index, name, source, row, failure=(ErrorKind.MISSING, "the list of images is empty"))
        cell = cell[0]
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        return ImageRow(index, name, source, row, Bytes(cell))
    if cell is None:
        return ImageRow(index, name, source, row)
    found = image_of_text(cell, layout.paths)
    if isinstance(found, tuple):
        return ImageRow(index, name, source, row, failure=found)
    return ImageRow(index, name, source, row, found)
