"""Owns the type of a carried column: the one that columns of several files have together, and how values become it.

pandas, Polars, PyArrow and Spark store one and the same column as different Arrow types. Here such types are one, and a
narrower type becomes a wider one where no value can change. Nothing else is joined.
"""

import io
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

# What PyArrow raises where a type or a value is not one of another type, or can't be made at all.
CAST_ERRORS = (pa.ArrowException, NotImplementedError, ValueError, TypeError, OverflowError)
_UNITS = ("s", "ms", "us", "ns")
_TIME_TYPES = {"s": pa.time32("s"), "ms": pa.time32("ms"), "us": pa.time64("us"), "ns": pa.time64("ns")}
_UNSIGNED = {8: pa.uint8(), 16: pa.uint16(), 32: pa.uint32(), 64: pa.uint64()}
_SIGNED = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}
_MAX_DIGITS = 38, 76  # of a decimal128 and a decimal256
_LARGE_INDEX_BITS = 32
_LISTS = (
    (types.is_list, pa.list_),
    (types.is_large_list, pa.large_list),
    (types.is_list_view, pa.list_view),
    (types.is_large_list_view, pa.large_list_view),
)
_PLAIN = (
    (types.is_string_view, pa.string),
    (types.is_binary_view, pa.binary),
    (types.is_fixed_size_binary, pa.binary),
    (types.is_list_view, pa.list_),
    (types.is_large_list_view, pa.large_list),
    (types.is_fixed_size_list, pa.list_),
)


def joined(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both; None where there is none.

    Of two that differ in storage only (string, large_string), it is the first one, so that a file that comes later
    changes nothing; but a view or a dictionary, which not everything can become, gives way to what it stands for.
    Timestamps of two time zones are one in UTC; only their range may be too small: see `is_certain`.
    """
    if one == other or types.is_null(other):
        return one
    if types.is_null(one):
        return other
    first, second = _plain(one), _plain(other)
    if first == second:
        return first
    for join in (_join_numbers, _join_times, _join_nested):
        if (found := join(first, second)) is not None:
            return found
    return first if any(is_one(first) and is_one(second) for is_one in (_is_text, _is_bytes)) else None


def is_certain(kind: pa.DataType, target: pa.DataType) -> bool:
    """Whether all values of a type are values of another one; else some may be too large for it, or too precise."""
    if kind == target:
        return True
    return joined(target, kind) == target and not _has_clock(kind)


def keeps(target: pa.DataType, kind: pa.DataType) -> bool:
    """Whether a type that can't change any more may take values of another one: those that fit, as `fitted` finds."""
    if types.is_null(target) or kind == target:
        return True
    if types.is_dictionary(target) and target.index_type.bit_width < _LARGE_INDEX_BITS:
        return False  # it holds a hundred values, and nobody knows how many there will be
    return joined(target, kind) is not None and not _loses_digits(kind, target) and _takes_nulls(kind, target)


def converted(column: pa.ChunkedArray, target: pa.DataType) -> pa.ChunkedArray:
    """A column as another type, each value as it was.

    Raises:
        One of CAST_ERRORS: there is no way, or a value is none of that type.
    """
    if column.type == target:
        return column
    if column.null_count == len(column):
        return pa.chunked_array([pa.nulls(len(column), target)])
    return _cast(column, target)


def _cast(column: pa.ChunkedArray, target: pa.DataType) -> pa.ChunkedArray:
    if _has_list_view(column.type) or _has_list_view(target):
        # PyArrow makes lists of list views without a buffer for their offsets, and knows no other way at all.
        return pa.chunked_array([pa.array(column.to_pylist(), target)])
    try:
        return column.cast(target)
    except pa.ArrowNotImplementedError:  # between views and dictionaries there is no direct way
        return column.cast(_plain(column.type)).cast(target)


def fitted(column: pa.ChunkedArray, target: pa.DataType) -> tuple[pa.ChunkedArray, list[int]]:
    """A column as another type, null where a value is none of it, and the rows of these."""
    try:
        return converted(column, target), []
    except CAST_ERRORS:
        pass
    cells: list[pa.Array] = []
    lost = []
    slices = (chunk.slice(index, 1) for chunk in column.chunks for index in range(len(chunk)))
    for row, cell in enumerate(slices):
        try:
            # A slice of lists has the values of all of them, and a cast looks at all; a copy has its own.
            cells += converted(pa.chunked_array([pa.concat_arrays([cell, cell.slice(1)])]), target).chunks
        except CAST_ERRORS:
            cells.append(pa.nulls(1, target))
            lost.append(row)
    return pa.chunked_array(cells, target), lost


def taken(column: pa.ChunkedArray, places: Sequence[int | None]) -> pa.ChunkedArray:
    """Some cells of a column; null where there is no place."""
    try:
        return column.take(pa.array(places, pa.int64()))
    except pa.ArrowNotImplementedError:  # of views and runs
        nothing = pa.chunked_array([pa.nulls(1, column.type)])
        cells = (nothing if place is None else column.slice(place, 1) for place in places)
        return pa.chunked_array([chunk for cell in cells for chunk in cell.chunks], column.type)


def writable(kind: pa.DataType) -> pa.DataType | None:
    """The type to carry a column with: its own, that of its storage, or a plain one; None where there is no way.

    Inside of the latter two may be nulls, which a row without the column needs in some of its types.
    """
    return next((one for one in (kind, _stored(kind), _plain(kind)) if can_become(kind, one)), None)


@lru_cache(1024)
def can_become(kind: pa.DataType, target: pa.DataType) -> bool:
    """Whether values and nulls of a type can be made another one, written to Parquet and read back."""
    buffer = io.BytesIO()
    try:
        column = pa.chunked_array([_sample(kind)])
        cast = column if kind == target or types.is_null(target) else _cast(column, target)
        pieces = [
            pa.table([one], ["column"]) for one in (pa.chunked_array([pa.nulls(1, target)]), cast.slice(0, 0), cast)
        ]
        table = pa.concat_tables(pieces) if cast.type == target else pieces[0]
        pq.write_table(table, buffer)
        buffer.seek(0)
        return bool(pq.read_table(buffer).num_rows == len(table))
    except CAST_ERRORS:
        return False


def _sample(kind: pa.DataType) -> pa.Array:
    """A few values of a type, nulls among them; nulls alone where no others can be made."""
    try:
        value = _value(_stored(kind))
        return pa.array([value, None, value], _stored(kind)).cast(kind)
    except CAST_ERRORS:
        return pa.nulls(3, kind)


def _value(kind: pa.DataType) -> Any:  # noqa: ANN401 - of any type
    if types.is_dictionary(kind):
        return _value(kind.value_type)
    if types.is_struct(kind):
        return {field.name: _value(field.type) for field in kind}
    if types.is_map(kind):
        return [(_value(kind.key_type), _value(kind.item_type))]
    if _is_list(_plain(kind)):
        return [_value(kind.value_type)] * (kind.list_size if types.is_fixed_size_list(kind) else 1)
    if types.is_fixed_size_binary(kind):
        return bytes(kind.byte_width)
    plain = _plain(kind)
    return "a" if _is_text(plain) else b"a" if _is_bytes(plain) else 0


def _stored(kind: pa.DataType) -> pa.DataType:
    """The type without extension types, inside of it neither."""
    if isinstance(kind, pa.BaseExtensionType):
        return _stored(kind.storage_type)
    return _rebuilt(kind, [_free(field, _stored(field.type)) for field in _children(kind)])


def _plain(kind: pa.DataType) -> pa.DataType:
    """What a type holds, without extension, dictionary, view or fixed size, inside of it neither."""
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type)
    if types.is_dictionary(kind):
        return _plain(kind.value_type)
    children = [_free(field, _plain(field.type)) for field in _children(kind)]
    for is_one, make in _PLAIN:
        if is_one(kind):
            return make(*children)
    return _rebuilt(kind, children)


def _children(kind: pa.DataType) -> list[pa.Field]:
    if types.is_map(kind):
        return [kind.key_field, kind.item_field]
    return [kind.field(index) for index in range(kind.num_fields)] if types.is_nested(kind) else []


def _free(field: pa.Field, kind: pa.DataType) -> pa.Field:
    """A child with another type, which may hold nulls."""
    return field.with_type(kind).with_nullable(True)  # noqa: FBT003 - PyArrow's own


def _rebuilt(kind: pa.DataType, children: list[pa.Field]) -> pa.DataType:
    """A nested type with other children; any other one as it is."""
    if types.is_struct(kind):
        return pa.struct(children)
    if types.is_map(kind):
        return pa.map_(children[0].type, children[1], keys_sorted=kind.keys_sorted)
    for is_one, make in _LISTS:
        if is_one(kind):
            return make(children[0])
    return pa.list_(children[0], kind.list_size) if types.is_fixed_size_list(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind))


def _join_numbers(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if types.is_decimal(one) and types.is_decimal(other):
        scale = max(one.scale, other.scale)
        digits = scale + max(one.precision - one.scale, other.precision - other.scale)
        makers = zip(_MAX_DIGITS, (pa.decimal128, pa.decimal256), strict=True)
        return next((make(digits, scale) for most, make in makers if digits <= most), None)
    if types.is_floating(one) and types.is_floating(other):
        return max(one, other, key=lambda kind: kind.bit_width)
    if not types.is_integer(one) or not types.is_integer(other):
        return None  # a whole number beyond 2^53 would be another one as a floating-point number
    if types.is_signed_integer(one) == types.is_signed_integer(other):
        return max(one, other, key=lambda kind: kind.bit_width)
    signed, unsigned = (one, other) if types.is_signed_integer(one) else (other, one)
    return _SIGNED.get(max(signed.bit_width, 2 * unsigned.bit_width))


def _join_times(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    for is_one in (types.is_timestamp, types.is_duration, types.is_time):
        if is_one(one) and is_one(other):
            break
    else:
        return None
    unit = max(one.unit, other.unit, key=_UNITS.index)
    if types.is_duration(one):
        return pa.duration(unit)
    if types.is_time(one):
        return _TIME_TYPES[unit]
    if (one.tz is None) != (other.tz is None):
        return None  # nobody knows the zone of the one that has none
    return pa.timestamp(unit, one.tz if one.tz == other.tz else "UTC")


def _join_nested(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    firsts, seconds = _children(one), _children(other)
    if types.is_struct(one) and types.is_struct(other):
        by_name = {field.name: field for field in seconds}
        if sorted(by_name) != sorted(field.name for field in firsts) or len(by_name) < len(seconds):
            return None
        seconds = [by_name[field.name] for field in firsts]
    elif not any(is_one(one) and is_one(other) for is_one in (_is_list, types.is_map)):
        return None
    children = []
    for first, second in zip(firsts, seconds, strict=True):
        kind = joined(first.type, second.type)
        if kind is None:
            return None
        children.append(first.with_type(kind))
    return _rebuilt(one, children)


def _has_clock(kind: pa.DataType) -> bool:
    """Whether there are timestamps or durations in a type: those of a finer unit do not reach as far."""
    if types.is_dictionary(kind):
        return _has_clock(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _has_clock(kind.storage_type)
    inside = any(_has_clock(field.type) for field in _children(kind))
    return inside or bool(types.is_timestamp(kind) or types.is_duration(kind))


def _pairs(kind: pa.DataType, target: pa.DataType) -> list[tuple[pa.Field, pa.Field]]:
    """The children of two nested types that meet."""
    firsts, seconds = _children(kind), _children(target)
    if types.is_struct(kind) and types.is_struct(target):
        by_name = {field.name: field for field in seconds}
        return [(field, by_name[field.name]) for field in firsts if field.name in by_name]
    return list(zip(firsts, seconds, strict=False))


def _has_list_view(kind: pa.DataType) -> bool:
    is_one = types.is_list_view(kind) or types.is_large_list_view(kind)
    return bool(is_one) or any(_has_list_view(field.type) for field in _children(kind))


def _loses_digits(kind: pa.DataType, target: pa.DataType) -> bool:
    """Whether floating-point numbers would be rounded, which PyArrow does without a word."""
    if types.is_floating(kind) and types.is_floating(target):
        return bool(kind.bit_width > target.bit_width)
    return any(_loses_digits(one.type, other.type) for one, other in _pairs(kind, target))


def _takes_nulls(kind: pa.DataType, target: pa.DataType) -> bool:
    """Whether there may be nulls inside of a type wherever the other one may have them: a cast does not look."""
    return all(
        (other.nullable or not one.nullable) and _takes_nulls(one.type, other.type)
        for one, other in _pairs(kind, target)
    )
