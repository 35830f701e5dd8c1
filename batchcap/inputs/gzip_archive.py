"""Owns the reading of archives that are packed with gzip, by offsets into what is in them.

gzip has no way to begin in the middle. With the library indexed_gzip (the extra `gzip`), points to begin from are made
in one pass and kept in the cache folder; without it everything before an offset is unpacked, once for each run.
"""

import gzip
import io
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from batchcap.inputs.index_cache import index_of
from batchcap.inputs.storage import open_binary, status_of

try:
    import indexed_gzip
except ImportError:  # an extra
    indexed_gzip = None

_MAGIC = b"\x1f\x8b"
_POINTS = "gzip-points-1"
# A point takes 32 KiB, and what is unpacked for nothing after a jump is half of what lies between two.
_MIN_SPACING_BYTES, _MAX_POINTS = 4 << 20, 1000


def is_gzip(file: BinaryIO) -> bool:
    """Whether a file that is at its beginning is packed with gzip; it is there again."""
    beginning = file.read(len(_MAGIC))
    file.seek(0)
    return beginning == _MAGIC


def has_points() -> bool:
    """Whether points to begin from can be made and used here."""
    return indexed_gzip is not None


def unpacked(file: BinaryIO) -> BinaryIO:
    """What is in a file that is at its beginning."""
    return cast("BinaryIO", gzip.GzipFile(fileobj=file, mode="rb"))


def unpacked_by_offset(path: Path) -> tuple[BinaryIO, BinaryIO]:
    """What is in a file, to be read from anywhere, and the file, to be closed after it.

    Raises:
        OSError: the disk can't be read.
    """
    points = index_of(path, _POINTS, lambda: _points(path))["points"].to_pylist() if has_points() else []
    for kept in points:
        file = open_binary(path)
        with suppress(Exception):  # made by another version of the library
            spacing = _spacing(path)
            found = indexed_gzip.IndexedGzipFile(fileobj=file, auto_build=False, spacing=spacing, buffer_size=spacing)
            found.import_index(fileobj=io.BytesIO(kept))
            return cast("BinaryIO", found), file
        file.close()  # the library has moved in it past Python's buffer
    file = open_binary(path)
    return unpacked(file), file


def _points(path: Path) -> pa.Table:
    """The points of a file; without a row where it is damaged: then it is read as far as it goes."""
    found = io.BytesIO()
    points = []
    # It is given a file that is open: where it can't open one, it ends the process.
    with open_binary(path) as file, suppress(Exception):  # it has errors of its own for each kind of damage
        with indexed_gzip.IndexedGzipFile(fileobj=file, spacing=_spacing(path)) as whole:
            whole.build_full_index()
            # Of a file that ends within its checksum an index is made, with which nothing can be read.
            whole.seek(-1, os.SEEK_END)
            whole.read(1)
            whole.export_index(fileobj=found)
        points.append(found.getvalue())
    return pa.table({"points": pa.array(points, pa.large_binary())})


def _spacing(path: Path) -> int:
    return max(_MIN_SPACING_BYTES, status_of(path).size_bytes // _MAX_POINTS)
