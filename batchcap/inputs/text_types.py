"""Owns the type of a column of text: the one that holds each of its values exactly as the file has it.

While rows are looked at, a type stands for what was seen: `SMALL_WHOLE` for whole numbers that a double holds as they
are, `WHOLE` for others of 64 bits, `TEXT` for values that only text can hold together.
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

NOTHING, SMALL_WHOLE, WHOLE, REAL = pa.null(), pa.int32(), pa.int64(), pa.float64()
STRING, BOOL, TEXT = pa.string(), pa.bool_(), pa.binary()
# A whole number that is no value of 64 bits.
HUGE = object()
# Objects with more keys than that are no columns: their keys are data, such as names of files.
MAX_FIELDS = 1000
# Deeper ones are no columns either, and other readers of Parquet don't take them.
MAX_DEPTH = 32
_SCALARS = {type(None): NOTHING, bool: BOOL, float: REAL, str: STRING}
_MAX_EXACT = 1 << 53
_BITS = 63


class NotCertainError(Exception):
    """Arrow's values do not tell what the file has: whole numbers may have been rounded."""


def joined(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """What stands for the values of both."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if {one, other} in ({SMALL_WHOLE, WHOLE}, {SMALL_WHOLE, REAL}):
        return other if one == SMALL_WHOLE else one
    if pa.types.is_list(one) and pa.types.is_list(other):
        return _list_of(joined(one.value_type, other.value_type))
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        kinds = {field.name: field.type for field in one}
        for field in other:
            kinds[field.name] = joined(kinds.get(field.name, NOTHING), field.type)
        return _struct_of(kinds)
    return TEXT


def kind_of_value(value: Any, depth: int = 0) -> pa.DataType:  # noqa: ANN401 - whatever JSON has
    """What stands for a value of `json`."""
    if type(value) in _SCALARS:
        return _SCALARS[type(value)]
    if isinstance(value, int):
        return kind_of_whole(value)
    if value is HUGE or depth == MAX_DEPTH:
        return TEXT
    if isinstance(value, dict):
        if len(value) > MAX_FIELDS:
            return TEXT
        return _struct_of({name: kind_of_value(part, depth + 1) for name, part in value.items()})
    kind = NOTHING
    for part in value:
        kind = joined(kind, kind_of_value(part, depth + 1))
    return _list_of(kind)


def kind_of_whole(*values: int) -> pa.DataType:
    """What stands for whole numbers of which these are the outermost."""
    if all(-_MAX_EXACT <= value <= _MAX_EXACT for value in values):
        return SMALL_WHOLE
    return WHOLE if all(-(1 << _BITS) <= value < 1 << _BITS for value in values) else TEXT


def kind_of_array(array: pa.Array) -> pa.DataType:
    """What stands for values that Arrow has read as JSON.

    Raises:
        NotCertainError: one was larger than what a double holds exactly.
    """
    kind = array.type
    if pa.types.is_timestamp(kind):  # text that looks like a time
        return STRING
    if pa.types.is_integer(kind):
        bounds = pc.min_max(array).as_py()
        return NOTHING if bounds["min"] is None else kind_of_whole(*bounds.values())
    if pa.types.is_floating(kind):
        largest = pc.max(pc.abs(pc.if_else(pc.is_nan(array), 0.0, array))).as_py()
        if largest is not None and largest >= _MAX_EXACT:  # among them infinite ones: it had too many digits
            raise NotCertainError
        return REAL
    if pa.types.is_list(kind):
        return _list_of(kind_of_array(array.values))
    if pa.types.is_struct(kind):
        return _struct_of({field.name: kind_of_array(array.field(field.name)) for field in kind})
    return kind


def _list_of(kind: pa.DataType) -> pa.DataType:
    return TEXT if kind == TEXT else pa.list_(kind)


def _struct_of(kinds: dict[str, pa.DataType]) -> pa.DataType:
    return TEXT if len(kinds) > MAX_FIELDS or TEXT in kinds.values() else pa.struct(list(kinds.items()))


def column_type(kind: pa.DataType) -> pa.DataType:
    """The type of a column for what was seen in it."""
    stored = _stored(kind)
    return STRING if stored is None else stored


def _stored(kind: pa.DataType) -> pa.DataType | None:
    """The type that is kept; None where only text can be: objects without any key are no type of Parquet's."""
    if kind == TEXT:
        return None
    if kind == SMALL_WHOLE:
        return WHOLE
    if pa.types.is_list(kind):
        value = _stored(kind.value_type)
        return None if value is None else pa.list_(value)
    if pa.types.is_struct(kind):
        parts = {field.name: _stored(field.type) for field in kind}
        return pa.struct(list(parts.items())) if parts and None not in parts.values() else None
    return kind
