"""Owns Parquet files as inputs: how one is opened, its number of rows, and its row groups."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batchcap.inputs.columns import shown
from batchcap.inputs.storage import source_for_arrow
from batchcap.inputs.table import Table, readable, require_names
from batchcap.inputs.table_files import TableFiles
from batchcap.inputs.tables import table_above

# A plan of more would take days to make. Only a footer that lies has them.
_MAX_ROWS = 1_000_000_000
_MAX_BATCH_BYTES = 1 << 30


class ParquetTable(Table):
    """A Parquet file.

    Raises:
        UsageError: it can't be read.
    """

    noun = "Parquet file"

    def __init__(self, path: Path) -> None:
        self.path = path
        with readable(path, self.noun):
            self._file = open_parquet(path)
            self.schema = self._file.schema_arrow
            require_names(self.schema)
            self.group_rows = row_group_sizes(self._file.metadata)

    def batches(self, group: int, columns: Sequence[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        """Some columns of a row group."""
        at_once = rows_at_once(self._file.metadata.row_group(group).total_byte_size, max_rows)
        return iter(self._file.iter_batches(at_once, row_groups=[group], columns=list(columns)))

    def group_name(self, group: int) -> str:
        """A row group."""
        return f"row group {group} of {shown(self.path)}"


class ParquetFiles(TableFiles):
    """Parquet files, each row of which has an image or says where it is."""

    kind = "parquet"
    noun = ParquetTable.noun
    suffixes = frozenset({".parquet", ".pq"})

    @classmethod
    def count_records(cls, path: Path) -> int:
        """Rows of a file, of which only the footer is read."""
        with readable(path, ParquetTable.noun):
            return sum(row_group_sizes(pq.read_metadata(source_for_arrow(path))))

    @staticmethod
    def open_table(path: Path) -> ParquetTable:
        """The file."""
        return ParquetTable(path)

    @staticmethod
    def warning(folder: Path) -> str | None:
        """Say of a table that its folder holds more rows than it has."""
        table = table_above(folder)
        return None if table is None else table.warning

    @staticmethod
    def refusal(folder: Path) -> str | None:
        """Refuse a table whose folder holds more rows than it has."""
        table = table_above(folder)
        return None if table is None else table.refusal


def open_parquet(path: Path) -> pq.ParquetFile:
    """An input, opened for its rows; every reading of rows or types goes through here.

    Old timestamps of 96 bits come in microseconds: in nanoseconds, which PyArrow takes by default, every date after
    2262 would be another one without a word, such as the 9999-12-31 that stands for "for ever" in many tables.

    Raises:
        pa.ArrowException, OSError, UnicodeDecodeError: it can't be read; see `table.readable`.
    """
    # Checksums are verified where a file has them: an image with a flipped bit would be another image.
    return pq.ParquetFile(
        source_for_arrow(path),
        memory_map=False,
        buffer_size=1 << 20,
        coerce_int96_timestamp_unit="us",
        page_checksum_verification=True,
    )


def row_group_sizes(metadata: pq.FileMetaData) -> list[int]:
    """The rows of each row group.

    Raises:
        pa.ArrowInvalid: the footer contradicts itself, or has more rows than a job can have.
    """
    # No column of a row group is looked at: where its statistics are damaged, pyarrow ends the process.
    sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if metadata.num_rows != sum(sizes) or any(size < 0 for size in sizes):
        raise pa.ArrowInvalid(f"its footer says {metadata.num_rows} rows, its row groups have {sum(sizes)}")
    if metadata.num_rows > _MAX_ROWS:
        raise pa.ArrowInvalid(f"it says it has {metadata.num_rows} rows, and {_MAX_ROWS} are the most a file may have")
    return sizes


def rows_at_once(group_bytes: int, most: int) -> int:
    """How many rows of a row group are decoded at once: each may have a cell as large as all that is in the group."""
    return max(1, min(most, _MAX_BATCH_BYTES // max(1, group_bytes)))
