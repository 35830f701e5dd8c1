"""Owns the columns that folder names hold: `split=train/` says that all files below it have `split` `train`."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa

from batchcap.core.text import printable_name
from batchcap.inputs.reader import Unreadable
from batchcap.inputs.storage import is_beside
from batchcap.inputs.table import Table

# What Hugging Face `datasets` keeps the names of splits in, beside a folder for each of them.
_SPLITS = "dataset_dict.json"
# What Hive, Spark and others write for null.
_NULL = "__HIVE_DEFAULT_PARTITION__"


@lru_cache(1024)
def partition_values(folder: Path) -> dict[str, str | None]:
    """The keys and values in the names of a folder and of those right above it; the topmost first.

    A folder of a `DatasetDict` of Hugging Face, written by `save_to_disk`, is a `split`.

    All are text: of `year=2024` and `year=unknown` one column must be made.
    """
    found: dict[str, str | None] = {}
    if is_beside(folder.parent / _SPLITS):
        found["split"] = printable_name(folder.name)
    for name in (folder.name, *(above.name for above in folder.parents)):
        key, sign, value = name.partition("=")
        if not sign or not key:
            break
        found.setdefault(printable_name(unquote(key)), None if value == _NULL else printable_name(unquote(value)))
    return dict(reversed(found.items()))


class PartitionedTable(Table):
    """A table with the columns that its folders' names hold; a column of the file of the same name counts instead."""

    def __init__(self, table: Table, values: dict[str, str | None]) -> None:
        self._table = table
        self._values = {name: value for name, value in values.items() if name not in table.schema.names}
        self.path, self.noun, self.group_rows = table.path, table.noun, table.group_rows
        self.has_column_chunks = table.has_column_chunks
        fields = [*table.schema, *(pa.field(name, pa.string()) for name in self._values)]
        self.schema = pa.schema(fields, table.schema.metadata)

    def batches(self, group: int, columns: Sequence[str], max_rows: int) -> Iterator[pa.RecordBatch | Unreadable]:
        """Some columns of a group; those of folders are the same in every row."""
        inside = [name for name in columns if name not in self._values]
        if not inside:
            for start in range(0, self.group_rows[group], max_rows):
                yield self._with_values({}, columns, min(max_rows, self.group_rows[group] - start))
            return
        for batch in self._table.batches(group, inside, max_rows):
            if isinstance(batch, Unreadable):
                yield batch
            else:
                found = dict(zip(batch.schema.names, batch.columns, strict=True))
                yield self._with_values(found, columns, len(batch))

    def group_name(self, group: int) -> str:
        """As the file's."""
        return self._table.group_name(group)

    def _with_values(self, found: dict[str, pa.Array], columns: Sequence[str], rows: int) -> pa.RecordBatch:
        arrays = [
            found[name] if name in found else pa.repeat(pa.scalar(self._values[name], pa.string()), rows)
            for name in columns
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema([self.schema.field(name) for name in columns]))


def partitioned(table: Table) -> Table:
    """The table with what its folders' names say of it."""
    values = partition_values(table.path.parent)
    return PartitionedTable(table, values) if values.keys() - set(table.schema.names) else table
