"""Owns the metadata of Hugging Face imagefolders: which file describes a folder's images, and its values for each.

Of the files `metadata.jsonl`, `metadata.csv` and `metadata.parquet` the nearest at or above an image counts, up to the
folder that is the input. Its column `file_name`, and those whose names end in `_file_name`, hold paths of images from
its own folder on.
"""

import logging
import os
import posixpath
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchcap.core.errors import UsageError
from batchcap.inputs.column_type import taken
from batchcap.inputs.columns import listed, shown
from batchcap.inputs.delimited import CsvTable
from batchcap.inputs.index_cache import index_of
from batchcap.inputs.jsonl import JsonlTable
from batchcap.inputs.parquet import ParquetTable
from batchcap.inputs.reader import Unreadable
from batchcap.inputs.storage import FileStatus, is_beside, is_regular, open_binary, status_of
from batchcap.inputs.table import Table, readable
from batchcap.inputs.table_layout import PATH, rank_of
from batchcap.inputs.table_rows import SMALL_BATCH_ROWS, RowReader
from batchcap.inputs.text_table import UTF16_MARKS
from batchcap.inputs.walk import searched_folders

log = logging.getLogger(__name__)

PARQUET_NAME = "metadata.parquet"
_TABLES: dict[str, type[JsonlTable] | type[CsvTable] | type[ParquetTable]] = {
    "metadata.jsonl": JsonlTable,
    "metadata.csv": CsvTable,
    PARQUET_NAME: ParquetTable,
}
METADATA_NAMES = frozenset(_TABLES)
_KEY, _KEY_ENDING = "file_name", "_file_name"
# Of a text file: one without the name of the column here is not read to its end.
_BEGINNING_BYTES = 1 << 20
_INDEX = "imagefolder-1"
_DOUBLES = b"doubles"
_HASH_BYTES = 8
# Folders that were looked into, whose outcome is held.
_MAX_FOLDERS = 4096
# Rows with the name of one image that are looked at; 64 bits are never the same for so many different names.
_MAX_CANDIDATES = 16

Hashes = npt.NDArray[np.uint64]


class MetadataSearch:
    """The search for the metadata files of a job.

    Args:
        inputs: of the job; above the folders that these name nothing is looked at.
    """

    def __init__(self, inputs: Sequence[str]) -> None:
        self._inputs = inputs
        self._found: dict[Path, Path | None] = {}

    @cached_property
    def _roots(self) -> list[Path]:
        return searched_folders(self._inputs)

    def above(self, folder: Path) -> Path | None:
        """The file that describes the images of a folder; None where there is none.

        Raises:
            UsageError: a file that may be the one can't be read.
        """
        for place in (folder, *folder.parents):
            if place != folder and not any(root in (place, *place.parents) for root in self._roots):
                return None
            if place not in self._found:
                if len(self._found) >= _MAX_FOLDERS:
                    self._found.clear()
                self._found[place] = _metadata_in(place)
            if (found := self._found[place]) is not None:
                return found
        return None


def _metadata_in(folder: Path) -> Path | None:
    found = [folder / name for name in _TABLES if is_beside(folder / name)]
    found = [path for path in found if _may_describe(path) and key_columns(open_table(path).schema)]
    if len(found) > 1:
        log.warning("%s is read, and not %s beside it", shown(found[0]), listed(path.name for path in found[1:]))
    return found[0] if found else None


def open_table(path: Path) -> Table:
    """A metadata file.

    Raises:
        UsageError: it can't be read.
    """
    return _TABLES[path.name](path)


def version_of(path: Path) -> FileStatus:
    """What differs after a file has changed.

    Raises:
        UsageError: it can't be looked at.
    """
    with readable(path, _TABLES[path.name].noun):
        return status_of(path)


def key_columns(schema: pa.Schema) -> list[str]:
    """The columns that name images; none where a table is no metadata."""
    return [
        field.name
        for field in schema
        if (field.name == _KEY or field.name.endswith(_KEY_ENDING)) and rank_of(field) == PATH
    ]


def _may_describe(path: Path) -> bool:
    """Whether a file is worth to be read to its end: other programs have tables of such names, too."""
    with readable(path, _TABLES[path.name].noun):
        if not is_regular(path) or path.name == PARQUET_NAME:
            return is_regular(path)
        with open_binary(path) as file:
            beginning = file.read(_BEGINNING_BYTES)
    return _KEY.encode() in beginning or beginning.startswith(UTF16_MARKS)


class Metadata:
    """One metadata file, open for reading.

    Attributes:
        path: the file.
        version: of the file when it was opened; see `version_of`.
        schema: its columns.

    Raises:
        UsageError: it can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = version_of(path)
        self._table = open_table(path)
        self.schema = self._table.schema
        self._keys = key_columns(self.schema)
        if doubles := [name for name, count in Counter(self.schema.names).items() if count > 1]:
            raise UsageError(f"{shown(path)} has several columns called {listed(sorted(doubles))}: rename them")
        self._group_starts = [0, *accumulate(self._table.group_rows)]
        self._reader: RowReader | None = None
        self._names: Sequence[str] = ()

    def of_images(self, images: Sequence[Path], names: Sequence[str]) -> pa.Table:
        """Some columns, one row for each image; null where an image is not listed. What comes first counts.

        Images that come in the order of the file are read in one pass over it, call after call.

        Raises:
            UsageError: the file can't be read.
        """
        searched = [_ImageName(image, self.path.parent) for image in images]
        pieces: list[pa.Table] = []
        places: list[int | None] = [None] * len(images)
        count = 0
        wanted = self._candidates(searched)
        for start, table in self._rows_around([row for row, _image in wanted], names):
            low, high = (bisect_left(wanted, (row, 0)) for row in (start, start + len(table)))
            around = _rows_of(table, [row - start for row, _image in wanted[low:high]])
            for place, (_row, image) in enumerate(wanted[low:high], count):
                if places[image] is None and searched[image].is_one_of(self._texts(around, place - count)):
                    places[image] = place
            pieces.append(around.select(names))
            count += len(around)
        schema = pa.schema([(name, self.schema.field(name).type) for name in names])
        found = pa.Table.from_arrays(pa.concat_tables(pieces).columns, schema=schema) if pieces else None
        if found is None:
            return pa.table([pa.nulls(len(images), kind) for kind in schema.types], schema=schema)
        return _rows_of(found, places)

    def values(self, names: Sequence[str]) -> Iterator[pa.RecordBatch | Unreadable]:
        """All values of some columns.

        Raises:
            UsageError: the file can't be read.
        """
        return RowReader(self._table, list(names), SMALL_BATCH_ROWS).read(0, self._group_starts[-1])

    @property
    def doubles(self) -> int:
        """How many rows name an image that an earlier one has named."""
        return int(self._index.schema.metadata[_DOUBLES])

    @cached_property
    def _index(self) -> pa.Table:
        """Digest of each name, rising, and its row."""
        with readable(self.path, self._table.noun):
            return index_of(self.path, _INDEX, self._build_index)

    def _build_index(self) -> pa.Table:
        rows = self._group_starts[-1] * len(self._keys)
        hashes, numbers = np.empty(rows, np.uint64), np.empty(rows, np.uint32)
        filled = row = 0
        for piece in self.values(self._keys):
            if isinstance(piece, pa.RecordBatch):
                for key in self._keys:
                    texts = _bytes_in(piece[key])
                    there = [offset for offset, text in enumerate(texts) if text]
                    end = filled + len(there)
                    hashes[filled:end] = _hashes([_plain(text) for text in texts if text])
                    numbers[filled:end] = np.array(there, np.uint32) + row
                    filled = end
            row += len(piece)
        hashes, numbers = hashes[:filled], numbers[:filled]
        order = np.lexsort((numbers, hashes))
        hashes, numbers = hashes[order], numbers[order]
        doubles = int(((hashes[1:] == hashes[:-1]) & (numbers[1:] != numbers[:-1])).sum())
        return pa.table({"hash": hashes, "row": numbers}).replace_schema_metadata({_DOUBLES: str(doubles).encode()})

    def _candidates(self, images: "Sequence[_ImageName]") -> list[tuple[int, int]]:
        """Rows that may name an image, and which, rising."""
        hashes, rows = (self._index[name].combine_chunks().to_numpy() for name in ("hash", "row"))
        found = set[tuple[int, int]]()
        for names in ([image.relative for image in images], [image.absolute for image in images]):
            wanted = _hashes([name.replace(b"\\", b"/") for name in names])
            starts, stops = np.searchsorted(hashes, wanted), np.searchsorted(hashes, wanted, "right")
            for image in np.flatnonzero(starts < stops).tolist():
                start, stop = int(starts[image]), int(stops[image])
                found.update((row, image) for row in rows[start : min(stop, start + _MAX_CANDIDATES)].tolist())
        return sorted(found)

    def _rows_around(self, wanted: Sequence[int], names: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        """Pieces of the file that hold wanted rows, each with its first row; the wanted ones rise."""
        if self._reader is None or self._names != names:
            self._reader, self._names = self._open(names), names
        done = 0
        while done < len(wanted):
            group = bisect_right(self._group_starts, wanted[done]) - 1
            first, done = done, bisect_left(wanted, self._group_starts[group + 1])
            start = wanted[first]
            for piece in self._reader.read(start, wanted[done - 1] + 1 - start):
                stop = start + len(piece)
                if first < done and wanted[first] < stop:
                    is_lost = isinstance(piece, Unreadable)
                    yield start, self._reader.read_apart(start, len(piece)) if is_lost else pa.table(piece)
                    first = bisect_left(wanted, stop, first, done)
                start = stop

    def _open(self, names: Sequence[str]) -> RowReader:
        return RowReader(self._table, list(dict.fromkeys([*self._keys, *names])), SMALL_BATCH_ROWS)

    def _texts(self, table: pa.Table, row: int) -> list[bytes]:
        """The names of images in a row."""
        texts = (_bytes_in(table[key].slice(row, 1).combine_chunks())[0] for key in self._keys)
        return [text for text in texts if text]


class _ImageName:
    """How metadata may name an image.

    Attributes:
        relative: its path from the folder of the metadata on.
        absolute: its path.
    """

    def __init__(self, image: Path, folder: Path) -> None:
        self._folder = os.fsencode(folder)
        self.absolute = os.fsencode(image)
        self.relative = self.absolute.removeprefix(self._folder.rstrip(b"/") + b"/")

    def is_one_of(self, texts: Sequence[bytes]) -> bool:
        """Whether one of some names is its own; back-slashes lead to folders unless a file has them in its name."""
        mine = (self.relative, self.absolute)
        return any(
            _normal(text) in mine
            or (b"\\" in text and _plain(text) in mine and not os.path.lexists(os.path.join(self._folder, text)))  # noqa: PTH118 - bytes
            for text in texts
        )


def _bytes_in(column: pa.Array) -> list[bytes | None]:
    """The bytes of text, which need not be UTF-8."""
    values: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return values


def _normal(name: bytes) -> bytes:
    """A path without `.`, `..` and doubled slashes."""
    is_odd = b"//" in name or b"/." in name or name.startswith(b".") or name.endswith(b"/")
    return posixpath.normpath(name) if is_odd else name


def _plain(name: bytes) -> bytes:
    """A path as it is looked for."""
    return _normal(name.replace(b"\\", b"/"))


def _hashes(names: Sequence[bytes]) -> Hashes:
    digests = b"".join(blake2b(name, digest_size=_HASH_BYTES).digest() for name in names)
    return np.frombuffer(digests, "<u8").astype(np.uint64, copy=False)


def _rows_of(table: pa.Table, places: Sequence[int | None]) -> pa.Table:
    """Some rows of a table; null where there is no place."""
    return pa.Table.from_arrays([taken(column, places) for column in table.columns], names=table.column_names)


def describes_images(path: Path) -> bool:
    """Whether a `metadata.parquet` that lies among images is about them, and no table with rows of its own.

    One that can't be read is, and a warning says so.
    """
    try:
        return bool(key_columns(open_table(path).schema))
    except UsageError as error:
        log.warning("%s", error)
        return True
