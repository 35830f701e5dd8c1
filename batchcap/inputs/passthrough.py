"""Owns the carried columns of a job: which there are, with which type, and what is told of those that can't be.

All of it before the work: a column that turns out not to be writable once the captions are there would keep them from
ever becoming a part.
"""

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from batchcap.core.errors import UsageError
from batchcap.core.text import one_line
from batchcap.inputs.column_type import (
    can_become,
    fitted,
    is_certain,
    joined,
    keeps,
    taken,
    writable,
)
from batchcap.inputs.columns import listed, quoted, shown
from batchcap.inputs.reader import PassthroughColumns, Reader, Unreadable

log = logging.getLogger(__name__)

_SHOWN_LETTERS = 200
# Of what decided a type: other inputs, or the parts that are there.
_WHY = (
    "its type in these inputs together: leave it out with --keep-columns, or caption these files apart",
    "its type in the parts that this job has written: caption this file with another --output",
)


@dataclass(slots=True)
class _Column:
    """A carried column as far as it is known.

    Attributes:
        kind: its type so far.
        owner: the file that it was first found in; None: the parts that are there.
        found: the types it has in files, each with the first file.
    """

    kind: pa.DataType
    owner: Path | None
    found: dict[pa.DataType, Path] = field(default_factory=dict)


def passthrough_schema(sources: Iterable[PassthroughColumns], written: pa.Schema | None) -> pa.Schema:
    """The carried columns of all sources of a job, in their order.

    Args:
        sources: which columns of each source are carried.
        written: the carried columns of the parts that are there, which all others must have, too; None: no part is.

    Raises:
        UsageError: the types of two files don't fit together, or not to those of the parts; or one can't be written.
    """
    columns = {one.name: _Column(writable(one.type) or one.type, None) for one in written or ()}
    left_out: dict[str, Path] = {}
    for source in sources:
        path = source.path
        for kept, name in zip(source.schema, source.names, strict=True):
            if name in columns:
                _add(columns[name], name, kept.type, path)
            elif written is None:
                columns[name] = _Column(_writable(path, kept), path, {kept.type: path})
            else:
                left_out.setdefault(name, path)
    for name, column in columns.items():
        for kind, path in column.found.items():
            if kind != column.kind and not can_become(kind, column.kind):
                raise UsageError(_clash(column, name, kind, path))
    if left_out:
        log.warning(
            "the parts that this job has written have no column %s, as %s has: what is new is left out, so that all "
            "parts have the same columns; another --output carries it",
            listed(left_out),
            shown(next(iter(left_out.values()))),
        )
    return pa.schema([(name, column.kind) for name, column in columns.items()])


def _add(column: _Column, name: str, kind: pa.DataType, path: Path) -> None:
    """Let a column be found in another file."""
    if kind in column.found:
        return
    column.found[kind] = path
    if column.owner is None:
        if not keeps(column.kind, kind):
            raise UsageError(_clash(column, name, kind, path))
        return
    together = joined(column.kind, _writable(path, pa.field(name, kind)))
    if together is None:
        raise UsageError(_clash(column, name, kind, path))
    column.kind = together


def _writable(path: Path, kept: pa.Field) -> pa.DataType:
    kind = writable(kept.type)
    if kind is None:
        raise UsageError(
            f"column {quoted(kept.name)} of {shown(path)} is {_cut(kept.type)}, which can't be written to Parquet: "
            "name the columns to carry, without it, with --keep-columns"
        )
    return kind


def _clash(column: _Column, name: str, kind: pa.DataType, path: Path) -> str:
    """What to say of a file whose column doesn't fit to that of the files before, or of the parts."""
    if column.owner is None:
        return (
            f"column {quoted(name)} is {_cut(column.kind)} in the parts that this job has written and {_cut(kind)} in "
            f"{shown(path)}: convert it, or caption this file with another --output"
        )
    first = next(iter(column.found))
    return (
        f"column {quoted(name)} is {_cut(first)} in {shown(column.owner)} and {_cut(kind)} in {shown(path)}: "
        "leave it out with --keep-columns, or caption these files apart"
    )


def require_values_fit(reader: Reader, source: PassthroughColumns, passthrough: pa.Schema, *, is_written: bool) -> None:
    """Look whether the values of a source fit the types that its columns are carried with.

    Only columns are read whose type does not tell, and of a damaged row group nothing.

    Args:
        reader: of the source.
        source: which of its columns are carried.
        passthrough: the columns as they are carried.
        is_written: whether parts that are there have decided these types.

    Raises:
        UsageError: one does not, or the source can't be read.
    """
    kinds = dict(zip(passthrough.names, passthrough.types, strict=True))
    wanted = {
        kept.name: kinds[name]
        for kept, name in zip(source.schema, source.names, strict=True)
        if name in kinds and not is_certain(kept.type, kinds[name])
    }
    if not wanted:
        return
    row = 0
    for piece in reader.values(source.path, list(wanted)):
        if isinstance(piece, Unreadable):
            row += piece.rows
            continue
        for name, target in wanted.items():
            _column, misfits = fitted(pa.chunked_array([piece[name]]), target)
            if misfits:
                value = f"column {quoted(name)} of {shown(source.path)} has a value in row {row + misfits[0]}"
                raise UsageError(f"{value} that does not fit {_cut(target)}, {_WHY[is_written]}")
        row += len(piece)


def _cut(kind: pa.DataType) -> str:
    text = str(kind)
    return one_line(text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}…")


def fitted_columns(columns: pa.Table, passthrough: pa.Schema, path: Path) -> pa.Table:
    """Rows of a file's carried columns as they are written; null where the file lacks a column.

    A value that does not fit is null as well, and a warning says so: new files were looked at before the work, but not
    those whose earlier rows are in parts already.
    """
    there = dict(zip(columns.column_names, columns.columns, strict=True))
    arrays = []
    for target in passthrough:
        if target.name not in there:
            arrays.append(pa.chunked_array([pa.nulls(len(columns), target.type)]))
            continue
        column, lost = fitted(there[target.name], target.type)
        arrays.append(column)
        if lost:
            log.warning(
                "column %s of %s is carried as null in %d rows of a part, since their values do not fit %s, its type "
                "in the parts before; another --output carries them",
                quoted(target.name),
                shown(path),
                len(lost),
                _cut(target.type),
            )
    return pa.Table.from_arrays(arrays, schema=passthrough)


def carried_again(was: pa.Table, now: pa.Table, reopened: Collection[int]) -> pa.Table:
    """The carried columns of a part that is written again.

    Rows that are not captioned again keep their values: what lies beside an image may be its caption by now. So do
    those that the inputs no longer have a value for.

    Args:
        was: the columns of the part.
        now: the columns as the inputs have them.
        reopened: offsets of the rows that were captioned again.
    """
    rows = len(was)
    for place, kept in enumerate(was.schema):
        before = was.column(place)
        if kept.name not in now.column_names:
            now = now.append_column(kept, before)
            continue
        new = now[kept.name]
        if new.type == before.type:
            has_value = new.is_valid().to_pylist()
            places = [row + rows if row in reopened and has_value[row] else row for row in range(rows)]
            column = taken(pa.chunked_array([*before.chunks, *new.chunks], kept.type), places)
            now = now.set_column(now.schema.get_field_index(kept.name), kept.name, column)
    return now
