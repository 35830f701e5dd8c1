"""Owns the search for the rows of sources that match a condition, stretch by stretch."""

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, islice
from pathlib import Path

import pyarrow as pa

from batchcap.inputs.condition import Condition
from batchcap.inputs.partitions import partition_values
from batchcap.inputs.reader import Reader, Unreadable
from batchcap.store.chosen_rows import PlannedSource, Stretch

# Rows asked about together, unless they are large: a question takes milliseconds, however few they are.
_ROWS_AT_ONCE, _BYTES_AT_ONCE = 16_384, 8 << 20
_ID = "id"


def matching_rows(sources: Iterable[PlannedSource], readers: Mapping[str, Reader], text: str) -> Iterator[Stretch]:
    """The rows that match, as few stretches as they make; what can't be read does not match.

    An image file has its `id` and the columns of its folders' names, all else its columns without the image.

    Raises:
        UsageError: the condition can't be used, or a source can't be read.
    """
    last: Stretch | None = None
    for one in _matching(sources, readers, Condition(text)):
        if last is not None and (last.source, last.start + last.rows) == (one.source, one.start):
            last = last._replace(rows=last.rows + one.rows)
            continue
        if last is not None:
            yield last
        last = one
    if last is not None:
        yield last


def _matching(
    sources: Iterable[PlannedSource], readers: Mapping[str, Reader], condition: Condition
) -> Iterator[Stretch]:
    for kind, several in groupby(sources, key=lambda source: source.kind):
        reader = readers[kind]
        if reader.is_container:
            for source in several:
                yield from _in_container(source, reader, condition)
        else:
            yield from _among_images(several, condition)


def _in_container(source: PlannedSource, reader: Reader, condition: Condition) -> Iterator[Stretch]:
    path = _path(source)
    schema = reader.all_columns(path)
    names = condition.require(schema, path)
    row = 0
    # Where no column is needed, nothing is read.
    for batch in _together(reader.values(path, names)) if names else [Unreadable(source.rows, "")]:
        for start, rows in _in_batch(batch, condition, path) if names else condition.matching_numbers(len(batch), path):
            yield Stretch(source.number, row + start, rows)
        row += len(batch)


def _together(batches: Iterable[pa.RecordBatch | Unreadable]) -> Iterator[pa.RecordBatch | Unreadable]:
    """The same rows in larger batches."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        if not isinstance(batch, Unreadable):
            waiting.append(batch)
            if sum(map(len, waiting)) < _ROWS_AT_ONCE and sum(one.nbytes for one in waiting) < _BYTES_AT_ONCE:
                continue
        yield from pa.Table.from_batches(waiting).combine_chunks().to_batches() if waiting else ()
        waiting = []
        if isinstance(batch, Unreadable):
            yield batch
    yield from pa.Table.from_batches(waiting).combine_chunks().to_batches() if waiting else ()


def _in_batch(batch: pa.RecordBatch | Unreadable, condition: Condition, path: Path) -> Iterator[tuple[int, int]]:
    return iter(()) if isinstance(batch, Unreadable) else condition.matching(batch, path)


def _among_images(sources: Iterable[PlannedSource], condition: Condition) -> Iterator[Stretch]:
    for columns, several in groupby(sources, key=lambda source: tuple(partition_values(_path(source).parent))):
        names = [_ID, *(name for name in columns if name != _ID)]
        schema = pa.schema([(name, pa.string()) for name in names])
        while some := list(islice(several, _ROWS_AT_ONCE)):
            path = _path(some[0])
            condition.require(schema, path)
            rows = [{**partition_values(_path(source).parent), _ID: source.id} for source in some]
            batch = pa.RecordBatch.from_pylist(rows, schema=schema)
            for start, count in condition.matching(batch, path):
                yield from (Stretch(source.number, 0, 1) for source in some[start : start + count])


def _path(source: PlannedSource) -> Path:
    return Path(os.fsdecode(source.path))
