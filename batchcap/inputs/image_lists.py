"""Owns tables whose cells hold several images: with `--images each` every image of a list is a row."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchcap.inputs.index_cache import index_of
from batchcap.inputs.reader import Unreadable
from batchcap.inputs.table import Table, list_value
from batchcap.inputs.table_rows import RowReader

_LENGTH_BATCH_ROWS = 64


class EachImageTable(Table):
    """A table with a row for each image of its image column; an empty list or null has one row without an image.

    Args:
        table: the table.
        image: its column with lists.
    """

    def __init__(self, table: Table, image: str) -> None:
        self._table = table
        self._image = image
        self.path, self.noun, self.has_column_chunks = table.path, table.noun, table.has_column_chunks
        kind = list_value(table.schema.field(image).type)
        self.schema = pa.schema([field.with_type(kind) if field.name == image else field for field in table.schema])
        index = index_of(table.path, f"each-1 {image}", lambda: pa.table({"images": _counts(table, image)}))
        self._counts: NDArray[np.int64] = index["images"].to_numpy().astype(np.int64)
        self._starts = [0, *accumulate(table.group_rows)]
        self._ends = np.cumsum(self._counts)
        self.group_rows = np.diff(np.concatenate([[0], self._ends])[self._starts]).tolist()

    def batches(self, group: int, columns: Sequence[str], max_rows: int) -> Iterator[pa.RecordBatch | Unreadable]:
        """Some columns of a group."""
        row = self._starts[group]
        # Without any column a batch has no length.
        for batch in self._table.batches(group, columns or [self._image], max_rows):
            counts = self._counts[row : row + len(batch)]
            if isinstance(batch, Unreadable):
                yield Unreadable(int(counts.sum()), batch.reason)
            else:
                yield self._exploded(batch, columns, counts)
            row += len(batch)

    def group_name(self, group: int) -> str:
        """As the file's."""
        return self._table.group_name(group)

    def place_of(self, row: int) -> tuple[int, int | None]:
        """The row of the file, and the place of the image in its list."""
        parent = int(np.searchsorted(self._ends, row, side="right"))
        return parent, row - int(self._ends[parent] - self._counts[parent])

    def _exploded(self, batch: pa.RecordBatch, columns: Sequence[str], counts: NDArray[np.int64]) -> pa.RecordBatch:
        parents = np.repeat(np.arange(len(batch)), counts)
        arrays: list[Any] = []
        for name in columns:
            if name == self._image:
                arrays.append(_flattened(batch[name], counts))
            else:
                arrays.append(batch[name].take(pa.array(parents)))
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema([self.schema.field(name) for name in columns]))


def _counts(table: Table, image: str) -> NDArray[np.int32]:
    """Of each row of a table, how many rows it becomes; what can't be read is one, and says so when it is read."""
    reader = RowReader(table, [image], _LENGTH_BATCH_ROWS)
    found = [np.zeros(0, np.int32)]
    for batch in reader.read(0, reader.rows):
        if isinstance(batch, Unreadable):
            found.append(np.ones(batch.rows, np.int32))
        else:
            found.append(np.maximum(1, _lengths(batch[image])).astype(np.int32))
    return np.concatenate(found)


def _lengths(lists: pa.Array) -> NDArray[Any]:
    """Values of each list; 0 for null."""
    lengths: NDArray[Any] = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return lengths


def _flattened(lists: pa.Array, counts: NDArray[np.int64]) -> pa.Array:
    """The values of lists, end to end; null for each list without any."""
    is_empty = np.repeat(_lengths(lists) == 0, counts)
    places = np.cumsum(~is_empty) - 1
    values = pc.list_flatten(lists)
    return values.take(pa.array(places, pa.int64(), mask=is_empty))
