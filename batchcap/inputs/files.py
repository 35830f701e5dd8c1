"""Owns image files as inputs: which suffixes they have, the one row of each, and the columns that folders give it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from batchcap.core.records import ImageRow
from batchcap.core.sources import FileAt, Piece
from batchcap.inputs.columns import ALL_COLUMNS, output_names
from batchcap.inputs.partitions import partition_values
from batchcap.inputs.plugins import plugin_suffixes
from batchcap.inputs.reader import PassthroughColumns, Reader
from batchcap.inputs.source import source_name
from batchcap.inputs.suffix import suffix_set


class ImageFiles(Reader):
    """Files that are images."""

    kind = "image"
    noun = "image"
    suffixes = (
        suffix_set(
            """
            apng avif avifs bmp bw cur dds dib gif icns ico im j2c j2k jfif jp2 jpc jpe jpeg jpf jpg jpx mpo pbm pcx pfm
            pgm png pnm ppm psd qoi ras rgb rgba sgi tga tif tiff webp xbm xpm
            """
        )
        | plugin_suffixes()
    )
    is_container = False

    def count(self, path: Path) -> int:  # noqa: ARG002 - it is not looked at: its row says what is wrong with it
        """One."""
        return 1

    def passthrough(self, path: Path) -> PassthroughColumns | None:
        """Those of its folders' names that were asked for."""
        names = self._kept(path)
        if not names:
            return None
        schema = pa.schema([(name, pa.string()) for name in names])
        return PassthroughColumns(path, schema, output_names(path, names, self.own_columns))

    def columns(self, piece: Piece) -> pa.Table | None:
        """Those of its folders' names."""
        path = Path(piece.path)
        names, values = self._kept(path), partition_values(path.parent)
        if not names:
            return None
        arrays = [pa.array([values[name]], pa.string()) for name in names]
        return pa.table(arrays, names=list(output_names(path, names, self.own_columns)))

    def _kept(self, path: Path) -> list[str]:
        wanted = self.config.keep_columns
        return (
            [name for name in partition_values(path.parent) if name in wanted or ALL_COLUMNS in wanted]
            if wanted
            else []
        )

    def rows(self, piece: Piece, indexes: Sequence[int]) -> Iterator[ImageRow]:  # noqa: ARG002 - there is one
        """The row."""
        yield ImageRow(piece.first_row, piece.source_id, source_name(piece.path), 0, FileAt(piece.path))
