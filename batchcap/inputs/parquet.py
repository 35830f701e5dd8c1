"""Owns Parquet files as inputs: each is looked at once a job, and one is open at a time for images and for columns."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from batchcap.config import InputConfig
from batchcap.core.records import ImageRow
from batchcap.core.sources import Piece
from batchcap.core.text import shown_name
from batchcap.inputs.parquet_layout import ParquetLayout, count_rows, read_layout
from batchcap.inputs.parquet_rows import (
    SMALL_BATCH_ROWS,
    RowReader,
    carried_reader,
    image_reader,
    image_row,
    read_columns,
    read_rows,
)
from batchcap.inputs.reader import PassthroughColumns, Reader, Unreadable
from batchcap.inputs.tables import table_above


class ParquetFiles(Reader):
    """Parquet files, each row of which has an image or says where it is."""

    kind = "parquet"
    noun = "Parquet file"
    suffixes = frozenset({".parquet", ".pq"})

    def __init__(self, config: InputConfig, own_columns: frozenset[str] = frozenset()) -> None:
        super().__init__(config, own_columns)
        self._layouts: dict[Path, ParquetLayout] = {}
        # One file open for each purpose: a job may have thousands.
        self._images: RowReader | None = None
        self._columns: RowReader | None = None

    @staticmethod
    def count(path: Path) -> int:
        """Rows of a file; see `count_rows`."""
        return count_rows(path)

    @staticmethod
    def warning(folder: Path) -> str | None:
        """Say of a table that its folder holds more rows than it has."""
        table = table_above(folder)
        if table is None:
            return None
        path, table_format = table
        return (
            f"{shown_name(str(path))} is a {table_format} table: its folder also holds the files of deleted rows and "
            "old versions, and these are read, too. Export the current version of the table to Parquet and caption "
            "that."
        )

    def rows(self, piece: Piece, indexes: Sequence[int]) -> Iterator[ImageRow]:
        """Rows of a file; a row group that is open already is gone on with."""
        file = Path(piece.path)
        layout = self._layout(file)
        if self._images is None or self._images.path != file:
            self._images = image_reader(file, layout)
        wanted = frozenset(indexes)
        skip = indexes[0] - piece.first_row
        found = read_rows(self._images, piece.start + skip, 1 + indexes[-1] - indexes[0])
        for offset, values in enumerate(found, skip):
            index = piece.first_row + offset
            if index in wanted:
                yield image_row(values, layout, (index, piece.source_id, file, piece.start + offset))

    def passthrough(self, path: Path) -> PassthroughColumns:
        """Those that `--keep-columns` names."""
        layout = self._layout(path)
        return PassthroughColumns(path, layout.kept, layout.kept_as)

    def columns(self, piece: Piece) -> pa.Table:
        """Those of a piece; see `read_columns`."""
        file = Path(piece.path)
        layout = self._layout(file)
        if self._columns is None or self._columns.path != file:
            self._columns = carried_reader(file, layout)
        return read_columns(self._columns, layout, piece.start, piece.rows)

    def values(self, path: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch | Unreadable]:
        """The columns, and no others, piece by piece; of a damaged row group nothing."""
        reader = RowReader(path, list(names), SMALL_BATCH_ROWS)
        return reader.read(0, reader.rows)

    def _layout(self, path: Path) -> ParquetLayout:
        if path not in self._layouts:
            self._layouts[path] = read_layout(path, self.config, self.own_columns)
        return self._layouts[path]
