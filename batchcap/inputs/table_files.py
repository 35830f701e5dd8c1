"""Owns files with tables as inputs: each is looked at once a job, and one is open at a time for images and columns."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from batchcap.config import ImagesOf, InputConfig
from batchcap.core.records import ImageRow
from batchcap.core.sources import Piece
from batchcap.inputs.image_lists import EachImageTable
from batchcap.inputs.partitions import partitioned
from batchcap.inputs.reader import PassthroughColumns, Reader, Unreadable
from batchcap.inputs.table import Table
from batchcap.inputs.table_layout import TableLayout, layout_of
from batchcap.inputs.table_rows import (
    SMALL_BATCH_ROWS,
    RowReader,
    carried_reader,
    image_reader,
    image_row,
    read_columns,
    read_rows,
)


class TableFiles(Reader):
    """Files of one format, each row of which has an image or says where it is."""

    def __init__(self, config: InputConfig, own_columns: frozenset[str] = frozenset()) -> None:
        super().__init__(config, own_columns)
        self._layouts: dict[Path, TableLayout] = {}
        # One file open for each purpose: a job may have thousands.
        self._images: RowReader | None = None
        self._columns: RowReader | None = None

    def count(self, path: Path) -> int:
        """Rows of a file; with `--images each` every image of its lists is one."""
        if self.config.images is not ImagesOf.EACH:
            return self.count_records(path)
        return sum(self._opened(path).group_rows)

    @classmethod
    def count_records(cls, path: Path) -> int:
        """Rows of a file as they stand in it.

        Raises:
            UsageError: it can't be read.
        """
        return sum(cls.open_table(path).group_rows)

    @staticmethod
    @abstractmethod
    def open_table(path: Path) -> Table:
        """A file of this format.

        Raises:
            UsageError: it can't be read.
        """

    def rows(self, piece: Piece, indexes: Sequence[int]) -> Iterator[ImageRow]:
        """Rows of a file; a group that is open already is gone on with."""
        file = Path(piece.path)
        layout = self._layout(file)
        if self._images is None or self._images.path != file:
            self._images = image_reader(self._opened(file), layout)
        wanted = frozenset(indexes)
        skip = indexes[0] - piece.first_row
        found = read_rows(self._images, piece.start + skip, 1 + indexes[-1] - indexes[0])
        for offset, values in enumerate(found, skip):
            index = piece.first_row + offset
            if index in wanted:
                place = self._images.place_of(piece.start + offset)
                yield image_row(values, layout, (index, piece.source_id, file, *place))

    def passthrough(self, path: Path) -> PassthroughColumns:
        """Those that `--keep-columns` names."""
        layout = self._layout(path)
        return PassthroughColumns(path, layout.kept, layout.kept_as)

    def columns(self, piece: Piece) -> pa.Table:
        """Those of a piece; see `read_columns`."""
        file = Path(piece.path)
        layout = self._layout(file)
        if self._columns is None or self._columns.path != file:
            self._columns = carried_reader(self._opened(file), layout)
        return read_columns(self._columns, layout, piece.start, piece.rows)

    def all_columns(self, path: Path) -> pa.Schema:
        """Those of the file, and of its folders' names."""
        image = self._layout(path).image
        return pa.schema([field for field in partitioned(self.open_table(path)).schema if field.name != image])

    def values(self, path: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch | Unreadable]:
        """The columns, and no others, piece by piece; of a damaged group nothing."""
        reader = RowReader(self._opened(path), list(names), SMALL_BATCH_ROWS)
        return reader.read(0, reader.rows)

    def _layout(self, path: Path) -> TableLayout:
        if path not in self._layouts:
            schema = partitioned(self.open_table(path)).schema
            self._layouts[path] = layout_of(path, schema, self.config, self.own_columns)
        return self._layouts[path]

    def _opened(self, path: Path) -> Table:
        """A file as the job sees it: with the columns of its folders' names, and a row for each image."""
        table = partitioned(self.open_table(path))
        if self.config.images is ImagesOf.EACH:
            layout = self._layout(path)
            if layout.has_lists:
                return EachImageTable(table, layout.image)
        return table
