"""Owns the groups of rows that a text file is read by, and the index that remembers where they are."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from batchcap.inputs.text_split import Offsets, Rules, records_in

MAX_GROUP_ROWS = 1024
GROUP_BYTES = 4 << 20
# Of a longer record nothing is read: it would not fit into memory, and is no row that anybody meant.
MAX_RECORD_BYTES = 1 << 30
_SCHEMA_KEY = b"columns"
_NUMBERS = ("start", "size", "line", "rows")


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive rows of a text file; blank lines may lie among them.

    Attributes:
        start: byte of the file that it begins with.
        size: how many bytes.
        line: number of its first line, from 1.
        rows: how many.
    """

    start: int
    size: int
    line: int
    rows: int

    @property
    def is_too_large(self) -> bool:
        """Whether it is a record that is not read."""
        return self.size > MAX_RECORD_BYTES


def groups_in(file: BinaryIO, start: int, line: int, rules: Rules) -> Iterator[Group]:
    """All groups of a file from a byte on, which a line begins with; a large record has a group of its own."""
    open_group = _OpenGroup(start, line)
    lines_before = line  # the number of the line that the next records' first newline ends
    for records in records_in(file, start, rules):
        taken = 0
        while taken < len(records):
            if open_group.rows and records.ends[taken] - records.starts[taken] > GROUP_BYTES:
                yield open_group.close()
            stop = open_group.room(records.ends, taken)
            end = int(records.ends[stop - 1])
            open_group.take(stop - taken, end, lines_before + int(np.searchsorted(records.newlines, end)))
            taken = stop
            if open_group.is_full:
                yield open_group.close()
        lines_before += len(records.newlines)
    if open_group.rows:
        yield open_group.close()


class _OpenGroup:
    """A group that rows are added to."""

    def __init__(self, start: int, line: int) -> None:
        self._start, self._line = start, line
        self._end, self._end_line = start, line
        self.rows = 0

    @property
    def is_full(self) -> bool:
        """Whether no row is to be added."""
        return self.rows >= MAX_GROUP_ROWS or self._end - self._start >= GROUP_BYTES

    def room(self, ends: Offsets, taken: int) -> int:
        """How many of some records are in the group once it is full, or all are taken."""
        full = int(np.searchsorted(ends, self._start + GROUP_BYTES)) + 1
        return min(len(ends), taken + MAX_GROUP_ROWS - self.rows, max(full, taken + 1))

    def take(self, rows: int, end: int, end_line: int) -> None:
        """Add rows, up to a byte, and the line that it begins."""
        self.rows += rows
        self._end, self._end_line = end, end_line

    def close(self) -> Group:
        """The group; what follows is another one."""
        group = Group(self._start, self._end - self._start, self._line, self.rows)
        self._start, self._line, self.rows = self._end, self._end_line, 0
        return group


def index_with(groups: list[Group], schema: pa.Schema) -> pa.Table:
    """The index of a file, as it is kept."""
    columns = {name: pa.array([getattr(group, name) for group in groups], pa.int64()) for name in _NUMBERS}
    return pa.table(columns).replace_schema_metadata({_SCHEMA_KEY: schema.serialize().to_pybytes()})


def rows_of_index(index: pa.Table) -> list[int]:
    """The rows of each group."""
    rows: list[int] = index["rows"].to_pylist()
    return rows


def group_of_index(index: pa.Table, number: int) -> Group:
    """One group."""
    return Group(*(index[name][number].as_py() for name in _NUMBERS))


def schema_of_index(index: pa.Table) -> pa.Schema:
    """The columns of the file."""
    return pa.ipc.read_schema(pa.py_buffer(index.schema.metadata[_SCHEMA_KEY]))
