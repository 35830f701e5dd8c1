"""Owns text files with one row a record as tables: groups are read by their bytes, and a bad row fails alone."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar, NamedTuple, TypeVar

import pyarrow as pa

from batchcap.inputs.columns import shown
from batchcap.inputs.index_cache import index_of
from batchcap.inputs.reader import PassthroughColumns, Unreadable
from batchcap.inputs.storage import is_regular, open_binary, status_of
from batchcap.inputs.table import Table, readable
from batchcap.inputs.table_files import TableFiles
from batchcap.inputs.text_groups import (
    MAX_RECORD_BYTES,
    Group,
    group_of_index,
    groups_in,
    index_with,
    rows_of_index,
    schema_of_index,
)
from batchcap.inputs.text_split import Records, Rules, records_of

log = logging.getLogger(__name__)

# Reading less takes a few seconds, which need no explanation.
_SLOW_BYTES = 1 << 30
_MAX_HELD_INDEXES = 16
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
UTF8_MARK = b"\xef\xbb\xbf"
Row = TypeVar("Row")


@dataclass(frozen=True)
class Block:
    """The text of one group.

    Attributes:
        path: the file.
        line: number of its first line.
        data: its bytes.
        records: where its rows are.
    """

    path: Path
    line: int
    data: bytes
    records: Records

    def line_of(self, row: int) -> int:
        """The number of the line that a row begins with."""
        return self.line + int(self.records.line_offsets[row])

    def where(self, row: int) -> str:
        """A row in messages."""
        return f"line {self.line_of(row)} of {shown(self.path)}"

    def record(self, row: int) -> bytes:
        """A row's bytes."""
        return self.data[self.records.starts[row] : self.records.ends[row]]

    def is_utf8(self) -> bool:
        """Whether all of it is."""
        text = pa.Array.from_buffers(pa.large_binary(), 1, [None, _offsets(len(self.data)), pa.py_buffer(self.data)])
        try:
            text.cast(pa.large_string())
        except pa.ArrowInvalid:
            return False
        return True


def _offsets(size: int) -> pa.Buffer:
    return pa.array([0, size], pa.int64()).buffers()[1]


class SchemaFinder(ABC):
    """Finds the columns of a file while its rows are counted."""

    @abstractmethod
    def add(self, block: Block) -> None:
        """Look at some rows."""

    @abstractmethod
    def schema(self) -> pa.Schema:
        """The columns of all rows that were looked at.

        Raises:
            UsageError: they are none of a table.
        """


class _Version(NamedTuple):
    """A file as it was at a time, and which index of it."""

    path: Path
    index_name: str
    size_bytes: int
    mtime_ns: int


class TextTable(Table):
    """A text file with one row a record.

    Attributes:
        index_name: of its index, with a version.
        rules: how its records are told apart.

    Raises:
        UsageError: it can't be read, or is no such file.
    """

    index_name: ClassVar[str]
    rules: ClassVar[Rules]
    has_column_chunks = False

    def __init__(self, path: Path) -> None:
        self.path = path
        with readable(path, self.noun):
            self._index = _index_of(self, _Version(path, self.index_name, *status_of(path)))
            self.schema = schema_of_index(self._index)
        self.group_rows = rows_of_index(self._index)

    @abstractmethod
    def _begin(self, file: BinaryIO) -> tuple[int, int, SchemaFinder]:
        """The byte and the line that the first row begins with, and what finds the columns.

        Raises:
            UsageError: it is no such file.
        """

    @abstractmethod
    def _parse(self, block: Block, columns: pa.Schema) -> Iterator[pa.RecordBatch | Unreadable]:
        """Some columns of all rows of a block.

        Raises:
            pa.ArrowException: they have other types than they had when the rows were counted.
        """

    def batches(self, group: int, columns: Sequence[str], max_rows: int) -> Iterator[pa.RecordBatch | Unreadable]:
        """Some columns of a group, of which all bytes are read at once."""
        place = group_of_index(self._index, group)
        if place.is_too_large:
            reason = f"line {place.line} of {shown(self.path)} has {place.size} bytes"
            hint = "; a quote that is not closed may be why" if self.rules.separator else ""
            yield Unreadable(place.rows, f"{reason}, and {MAX_RECORD_BYTES} are the most a row may have{hint}")
            return
        with open_binary(self.path) as file:
            block = self._block(file, place)
        if not columns:
            yield pa.record_batch({"": pa.nulls(len(block.records))}).select([])
            return
        wanted = pa.schema([self.schema.field(name) for name in columns])
        for piece in self._parse(block, wanted):
            if isinstance(piece, Unreadable):
                yield piece
                continue
            for start in range(0, len(piece), max_rows):
                yield piece.slice(start, max_rows)

    def group_name(self, group: int) -> str:
        """Its first line."""
        return f"what follows line {group_of_index(self._index, group).line} of {shown(self.path)}"

    def _block(self, file: BinaryIO, group: Group) -> Block:
        file.seek(group.start)
        data = file.read(group.size)
        return Block(self.path, group.line, data, records_of(data, self.rules))

    def build_index(self) -> pa.Table:
        """The index; the only time that all of the file is read."""
        if not is_regular(self.path):
            raise pa.ArrowInvalid("it is no regular file")
        groups = []
        with open_binary(self.path) as file, open_binary(self.path) as again:
            if (size := status_of(self.path).size_bytes) > _SLOW_BYTES:
                log.info("%s is read once to find its rows (%.1f GiB)", shown(self.path), size / (1 << 30))
            start, line, finder = self._begin(file)
            for group in groups_in(file, start, line, self.rules):
                groups.append(group)
                if not group.is_too_large:
                    finder.add(self._block(again, group))
        return index_with(groups, finder.schema())


_LAST_INDEXES: dict[_Version, pa.Table] = {}


def _index_of(table: TextTable, version: _Version) -> pa.Table:
    """The index of a file, which is held for a while: not everywhere there is a place to keep it."""
    if version not in _LAST_INDEXES:
        index = index_of(version.path, version.index_name, table.build_index)
        if len(_LAST_INDEXES) >= _MAX_HELD_INDEXES:
            _LAST_INDEXES.pop(next(iter(_LAST_INDEXES)))
        _LAST_INDEXES[version] = index
    return _LAST_INDEXES[version]


def pieces_of(
    rows: Iterable[Row | Unreadable], make: Callable[[list[Row]], pa.RecordBatch]
) -> Iterator[pa.RecordBatch | Unreadable]:
    """Rows in order: a batch of each run that can be read, and what is between them."""
    run: list[Row] = []
    for row in rows:
        if not isinstance(row, Unreadable):
            run.append(row)
            continue
        if run:
            yield make(run)
            run = []
        yield row
    if run:
        yield make(run)


class TextFiles(TableFiles):
    """Text files of one format, each row of which says where its image is.

    In a folder of images such a file describes them, or belongs to another program.
    """

    found_in_folders = False

    def passthrough(self, path: Path) -> PassthroughColumns:
        """Those that `--keep-columns` names; of a file without a row none."""
        table = self.open_table(path)
        if not table.group_rows:
            return PassthroughColumns(path, pa.schema([]), ())
        return super().passthrough(path)
