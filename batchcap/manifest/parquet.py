"""Owns Parquet inputs: which column holds the picture, and streaming its rows."""

import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchcap.config import InputConfig
from batchcap.errors import UsageError
from batchcap.manifest.source import printable_name
from batchcap.records import ImageRow
from batchcap.store.parts import SCHEMA as OUTPUT_SCHEMA

# Rows decoded at once: pictures may be tens of megabytes each, paths are short.
_PICTURE_BATCH_ROWS = 16
_SMALL_BATCH_ROWS = 1024
PATH_NAMES = ("image", "image_path", "path", "file_name", "filename", "filepath", "file")
ALL_COLUMNS = "*"
RENAMED_PREFIX = "input_"
_IMAGE_STRUCT, _BYTES, _PATH = 3, 2, 1
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True, slots=True)
class ParquetLayout:
    """Which columns of a Parquet file mean what.

    Attributes:
        image: column with the picture.
        id: column with the row's id, or None.
        kept: the columns to carry, as they are in the file.
        kept_as: their names in the output.
        image_root: folder that relative paths start from.
        batch_rows: rows to decode at once.
    """

    image: str
    id: str | None
    kept: pa.Schema
    kept_as: tuple[str, ...]
    image_root: Path
    batch_rows: int


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UsageError(f"the Parquet file {_shown(path)} is missing: put it back to go on") from None
    except UnicodeEncodeError:
        raise UsageError(f"the name of the Parquet file {_shown(path)} is not UTF-8: rename it") from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"can't read the Parquet file {_shown(path)} ({reason}): mend it or leave it out") from None


def _shown(path: Path) -> str:
    return printable_name(str(path))


def count_rows(path: Path) -> int:
    """Rows of a Parquet file.

    Raises:
        UsageError: it can't be read.
    """
    with _readable(path):
        return int(pq.read_metadata(path).num_rows)


def read_layout(
    path: Path, config: InputConfig, own_columns: frozenset[str] = frozenset(OUTPUT_SCHEMA.names)
) -> ParquetLayout:
    """Decide which columns of a file are used.

    Args:
        path: the file.
        config: which columns were asked for.
        own_columns: names in the output that carried columns can't have.

    Raises:
        UsageError: no column or several may hold the picture, or a column that was named is missing.
    """
    with _readable(path):
        schema: pa.Schema = pq.read_schema(path)
    doubles = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if doubles:
        raise UsageError(f"{_shown(path)} has several columns called {', '.join(doubles)}: rename them")
    for option, name in (("--image-column", config.image_column), ("--id-column", config.id_column)):
        if name is not None and name not in schema.names:
            raise UsageError(f"{_shown(path)} has no column {name!r} ({option}); it has {', '.join(schema.names)}")
    image = config.image_column or _find_image_column(path, schema)
    rank = _rank(schema.field(image))
    if not rank:
        raise UsageError(
            f"column {image!r} of {_shown(path)} is {schema.field(image).type}: neither bytes, an Image, nor a path"
        )
    wanted = _wanted_columns(path, schema, image, config.keep_columns)
    return ParquetLayout(
        image=image,
        id=config.id_column,
        kept=pa.schema([schema.field(name) for name in wanted]),
        kept_as=_output_names(path, wanted, own_columns),
        image_root=Path(config.image_root).expanduser().absolute() if config.image_root else path.parent,
        batch_rows=_SMALL_BATCH_ROWS if rank == _PATH else _PICTURE_BATCH_ROWS,
    )


def _rank(field: pa.Field) -> int:
    """How surely a column holds pictures: an Image, bytes, a path, or 0 for not at all."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if pa.types.is_struct(kind):
        parts = {part.name: part for part in kind}
        fits = ("bytes" in parts and _rank(parts["bytes"]) == _BYTES) or (
            "path" in parts and _rank(parts["path"]) == _PATH
        )
        return _IMAGE_STRUCT if fits else 0
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return _BYTES
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    # Without any value pandas leaves a column without a type.
    return _PATH if is_text or pa.types.is_null(kind) else 0


def _find_image_column(path: Path, schema: pa.Schema) -> str:
    for rank in (_IMAGE_STRUCT, _BYTES, _PATH):
        names = [field.name for field in schema if _rank(field) == rank]
        if rank == _PATH:  # any text may be a path: only the usual names count, the most usual first
            names = [name for name in PATH_NAMES if name in names][:1]
        if len(names) == 1:
            return str(names[0])
        if names:
            raise UsageError(
                f"{_shown(path)} has several columns that may hold the picture ({', '.join(names)}): "
                "name one with --image-column"
            )
    raise UsageError(
        f"{_shown(path)} has no column with pictures; it has {', '.join(schema.names)}. Name one with "
        "--image-column: bytes, a Hugging Face Image, or a path"
    )


def _wanted_columns(path: Path, schema: pa.Schema, image: str, wanted: tuple[str, ...]) -> list[str]:
    if ALL_COLUMNS in wanted:
        wanted = tuple(name for name in schema.names if name != image)
    wanted = tuple(dict.fromkeys(wanted))
    for name in wanted:
        if name not in schema.names:
            raise UsageError(
                f"{_shown(path)} has no column {name!r} (--keep-columns); it has {', '.join(schema.names)}"
            )
    return list(wanted)


def _output_names(path: Path, wanted: list[str], own_columns: frozenset[str]) -> tuple[str, ...]:
    """The names of carried columns in the output: `input_` before one that is called like a column of ours."""
    names = [RENAMED_PREFIX + name if name in own_columns else name for name in wanted]
    for name, new in zip(wanted, names, strict=True):
        if new != name and new in wanted:
            raise UsageError(
                f"{_shown(path)} has columns {name!r} and {new!r}, and the first would get the name of "
                "the second in the output: rename one, or keep one with --keep-columns"
            )
    return tuple(names)


class RowReader:
    """Some columns of one Parquet file, by ranges of rows; one pass over the file where the ranges come in order.

    A range that lies after the last one goes on in the open row group. Opened for every part anew, a row group of a
    million rows would be decoded a thousand times.

    Args:
        path: the file.
        columns: names of the columns.
        batch_rows: rows decoded at once.

    Raises:
        UsageError: the file can't be read.
    """

    def __init__(self, path: Path, columns: list[str], batch_rows: int) -> None:
        self.path = path
        self._columns = columns
        self._batch_rows = batch_rows
        with _readable(path):
            self._file = pq.ParquetFile(path, memory_map=False, buffer_size=1 << 20)
            metadata = self._file.metadata
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._group_starts = [0, *accumulate(sizes)]
        self._group = -1
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None  # decoded, but not reached yet
        self._next = 0  # row of the file that `_rest` or the next batch begins with

    def read(self, start: int, count: int) -> Iterator[pa.RecordBatch]:
        """Record batches that hold exactly rows `start` to `start + count`.

        Raises:
            UsageError: the file can't be read.
        """
        starts, stop = self._group_starts, start + count
        with _readable(self.path):
            for group in range(bisect_right(starts, start) - 1, bisect_left(starts, stop)):
                yield from self._read_group(group, max(start, starts[group]), min(stop, starts[group + 1]))

    def _read_group(self, group: int, low: int, high: int) -> Iterator[pa.RecordBatch]:
        while low < high:
            if group != self._group or low < self._next:  # looked at each time: another range may have been read since
                self._batches = self._file.iter_batches(self._batch_rows, row_groups=[group], columns=self._columns)
                self._group, self._next, self._rest = group, self._group_starts[group], None
            batch = next(self._batches) if self._rest is None else self._rest
            skip, take = max(0, low - self._next), min(len(batch), high - self._next)
            self._rest = batch.slice(take) if take < len(batch) else None
            self._next += take
            if skip < take:
                low = self._next
                yield batch.slice(skip, take - skip)


def picture_reader(path: Path, layout: ParquetLayout) -> RowReader:
    """The reader for `read_rows`.

    Raises:
        UsageError: the file can't be read.
    """
    columns = [layout.image] if layout.id is None else [layout.image, layout.id]
    return RowReader(path, columns, layout.batch_rows)


def read_rows(reader: RowReader, start: int, count: int) -> Iterator[dict[str, Any]]:
    """Rows `start` to `start + count` of the picture and id columns, a few at a time.

    Raises:
        UsageError: the file can't be read.
    """
    for batch in reader.read(start, count):
        try:
            yield from batch.to_pylist()
        except UnicodeDecodeError:  # of a million rows one must not end the job
            yield from _undecoded(batch)


def _undecoded(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows of a batch with text that is not UTF-8: it is taken as file names are, byte for byte."""
    texts = {field.name for field in batch.schema if _rank(field) == _PATH}
    columns = [column.cast(_bytes_type(column.type)) for column in batch.columns]
    for values in pa.RecordBatch.from_arrays(columns, names=batch.schema.names).to_pylist():
        for name, value in values.items():
            if name in texts and value is not None:
                values[name] = os.fsdecode(value)
            elif isinstance(value, dict) and value.get("path") is not None:
                value["path"] = os.fsdecode(value["path"])
        yield values


def _bytes_type(kind: pa.DataType) -> pa.DataType:
    """The type with bytes in the place of text."""
    if pa.types.is_dictionary(kind):
        return _bytes_type(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([part.with_type(_bytes_type(part.type)) for part in kind])
    is_text = _rank(pa.field("", kind)) == _PATH and not pa.types.is_null(kind)
    return pa.large_binary() if is_text else kind


def carried_reader(path: Path, layout: ParquetLayout) -> RowReader:
    """The reader for `read_columns`.

    Raises:
        UsageError: the file can't be read.
    """
    return RowReader(path, layout.kept.names, _SMALL_BATCH_ROWS)


def read_columns(reader: RowReader, layout: ParquetLayout, start: int, count: int) -> pa.Table:
    """The carried columns of rows `start` to `start + count`, under their names in the output.

    Raises:
        UsageError: the file can't be read.
    """
    names = layout.kept.names
    batches = list(reader.read(start, count))
    table = pa.Table.from_batches(batches) if batches else layout.kept.empty_table()
    return table.select(names).rename_columns(list(layout.kept_as))


def image_row(values: dict[str, Any], layout: ParquetLayout, place: tuple[int, str, Path, int]) -> ImageRow:
    """The `ImageRow` of one row's values.

    A web or store address stays as it is; the picture stage then reports a file that is missing.

    Args:
        values: picture and id as Python values.
        layout: the file's columns.
        place: row index in the job, id of the source, path of the source, row in the source.
    """
    index, source_id, path, row = place
    given = values.get(layout.id) if layout.id is not None else None
    name = f"{source_id}:{row}" if given is None else printable_name(str(given))
    cell = values[layout.image]
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        return ImageRow(index, name, _shown(path), row, data=cell)
    if cell is not None and not _URL.match(cell):
        cell = os.path.join(layout.image_root, cell)  # noqa: PTH118 - pathlib interns each name
    return ImageRow(index, name, _shown(path), row, path=cell)
