"""Owns image files as inputs: which suffixes they have, and the one row of each."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from batchcap.core.records import ImageRow
from batchcap.core.sources import FileAt, Piece
from batchcap.inputs.reader import Reader
from batchcap.inputs.source import source_name
from batchcap.inputs.suffix import suffix_set


class ImageFiles(Reader):
    """Files that are images."""

    kind = "image"
    noun = "image"
    suffixes = suffix_set(
        """
        apng avif avifs bmp bw cur dds dib gif icns ico im j2c j2k jfif jp2 jpc jpe jpeg jpf jpg jpx mpo pbm pcx pfm pgm
        png pnm ppm psd qoi ras rgb rgba sgi tga tif tiff webp xbm xpm
        """
    )
    is_container = False

    @staticmethod
    def count(path: Path) -> int:  # noqa: ARG004 - it is not looked at: its row says what is wrong with it
        """One."""
        return 1

    def rows(self, piece: Piece, indexes: Sequence[int]) -> Iterator[ImageRow]:  # noqa: ARG002 - there is one
        """The row."""
        yield ImageRow(piece.first_row, piece.source_id, source_name(piece.path), 0, FileAt(piece.path))
