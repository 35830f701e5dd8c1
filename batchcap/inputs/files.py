"""Owns image files as inputs: which suffixes they have, the one row of each, and the columns of what lies around it.

Columns come from the metadata of an imagefolder, from the names of folders, and from text beside an image.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow as pa

from batchcap.config import InputConfig
from batchcap.core.errors import RowError
from batchcap.core.records import ImageRow
from batchcap.core.sources import FileAt, Piece
from batchcap.inputs.beside import extensions_in, text_beside
from batchcap.inputs.columns import ALL_COLUMNS, output_names, quoted, shown
from batchcap.inputs.imagefolder import METADATA_NAMES, Metadata, MetadataSearch, key_columns, version_of
from batchcap.inputs.partitions import partition_values
from batchcap.inputs.plugins import plugin_suffixes
from batchcap.inputs.reader import ColumnRun, PassthroughColumns, Reader, Unreadable
from batchcap.inputs.source import source_name
from batchcap.inputs.suffix import suffix_set

log = logging.getLogger(__name__)

# Folders whose columns are known at once, and metadata files that are open.
_MAX_FOLDERS, _MAX_OPEN = 1024, 8


@dataclass(frozen=True, slots=True)
class _Layout:
    """The columns of the images in one folder.

    Attributes:
        metadata: the file that describes them, if columns of it are carried.
        described: names of those columns.
        folders: values of the columns that the names of the folders hold.
        kept: the columns to carry, with their types.
        kept_as: their names in the output.
    """

    metadata: Path | None
    described: list[str]
    folders: dict[str, str | None]
    kept: pa.Schema
    kept_as: tuple[str, ...]


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

    def __init__(self, config: InputConfig, own_columns: frozenset[str] = frozenset()) -> None:
        super().__init__(config, own_columns)
        self._search = MetadataSearch(config.inputs)
        self._layouts: dict[Path, _Layout] = {}
        self._opened: dict[Path, Metadata] = {}
        self._told: set[object] = set()  # what a warning has told of

    def count(self, path: Path) -> int:  # noqa: ARG002 - it is not looked at: its row says what is wrong with it
        """One."""
        return 1

    def passthrough(self, path: Path) -> PassthroughColumns | None:
        """Those of its metadata, of its folders' names and of text beside it that were asked for."""
        if not self.config.keep_columns:
            return None
        layout = self._layout(path.parent)
        return PassthroughColumns(layout.metadata or path, layout.kept, layout.kept_as) if layout.kept.names else None

    def columns(self, piece: Piece) -> pa.Table | None:
        """Those of one image."""
        return next(self.column_runs([piece])).columns

    def column_runs(self, pieces: Sequence[Piece]) -> Iterator[ColumnRun]:
        """The images of a folder at once."""
        for folder, run in groupby((Path(piece.path) for piece in pieces), lambda path: path.parent):
            images = list(run)
            layout = self._layout(folder)
            columns = self._columns_of(images, layout) if layout.kept.names else None
            yield ColumnRun(layout.metadata or images[0], len(images), columns)

    def values(self, path: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch | Unreadable]:
        """Those of a metadata file, once for all folders that it describes; the others are text, and fit."""
        if path.name not in METADATA_NAMES or not self._is_new((path, *names)):
            return
        metadata = self._metadata(path)
        described = [name for name in names if name in metadata.schema.names]
        others = {name: pa.string() for name in names if name not in described}
        for piece in metadata.values(described):
            yield piece if isinstance(piece, Unreadable) else _with_nulls(piece, others)

    def _layout(self, folder: Path) -> _Layout:
        if folder not in self._layouts:
            if len(self._layouts) >= _MAX_FOLDERS:
                self._layouts.clear()
            self._layouts[folder] = self._layout_of(folder)
        return self._layouts[folder]

    def _layout_of(self, folder: Path) -> _Layout:
        wanted = self.config.keep_columns
        file = self._search.above(folder)
        schema = pa.schema([]) if file is None else self._metadata(file).schema
        folders = partition_values(folder)
        types = dict(zip(schema.names, schema.types, strict=True))
        for name in (*folders, *extensions_in(folder, wanted)):
            types.setdefault(name, pa.string())
        every = [name for name in (*schema.names, *folders) if name not in key_columns(schema)]
        asked = (name for one in wanted for name in (every if one == ALL_COLUMNS else [one]) if name in types)
        names = list(dict.fromkeys(asked))
        described = [name for name in names if name in schema.names]
        owner = file if described else None
        kept = pa.schema([(name, types[name]) for name in names])
        return _Layout(owner, described, folders, kept, output_names(owner or folder, names, self.own_columns))

    def _metadata(self, path: Path) -> Metadata:
        """A metadata file as it is now: a job may run for days."""
        if path not in self._opened or self._opened[path].version != version_of(path):
            self._opened.pop(path, None)
            if len(self._opened) >= _MAX_OPEN:
                self._opened.pop(next(iter(self._opened)))
            self._opened[path] = Metadata(path)
        return self._opened[path]

    def _columns_of(self, images: list[Path], layout: _Layout) -> pa.Table:
        described = pa.table({})
        if layout.metadata is not None:
            metadata = self._metadata(layout.metadata)
            if metadata.doubles and self._is_new(layout.metadata):
                log.warning(
                    "%s names images more than once, in %d rows too many: the first row of each counts",
                    shown(layout.metadata),
                    metadata.doubles,
                )
            there = [name for name in layout.described if name in metadata.schema.names]
            described = metadata.of_images(images, there)
        arrays = []
        for name, kind in zip(layout.kept.names, layout.kept.types, strict=True):
            if name in layout.described:
                is_there = name in described.column_names
                arrays.append(described[name] if is_there else pa.nulls(len(images), kind))
            elif name in layout.folders:
                arrays.append(pa.array([layout.folders[name]] * len(images), pa.string()))
            else:
                arrays.append(pa.array([self._text(image, name) for image in images], pa.string()))
        return pa.table(arrays, names=list(layout.kept_as))

    def _text(self, image: Path, extension: str) -> str | None:
        try:
            return text_beside(image, extension)
        except RowError as error:
            if self._is_new(extension):
                log.warning(
                    "column %s is null where the file beside an image can't be read, first for %s: %s",
                    quoted(extension),
                    shown(image),
                    error.message,
                )
            return None

    def _is_new(self, subject: object) -> bool:
        """Whether no warning has told of it yet."""
        is_new = subject not in self._told
        self._told.add(subject)
        return is_new

    def rows(self, piece: Piece, indexes: Sequence[int]) -> Iterator[ImageRow]:  # noqa: ARG002 - there is one
        """The row."""
        yield ImageRow(piece.first_row, piece.source_id, source_name(piece.path), 0, FileAt(piece.path))


def _with_nulls(batch: pa.RecordBatch, columns: dict[str, pa.DataType]) -> pa.RecordBatch:
    for name, kind in columns.items():
        batch = batch.append_column(name, pa.nulls(len(batch), kind))
    return batch
