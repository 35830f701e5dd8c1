"""Types of carried columns: joined where no value can change, and not at all where one could."""

import datetime as dt
import decimal
import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcap.inputs.column_type import _sample, can_become, converted, fitted, is_certain, joined, keeps, writable

TEXTS = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.uint32(), pa.large_string()),
    pa.dictionary(pa.int32(), pa.string(), ordered=True),
    pa.json_(),
]
BYTES = [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary()), pa.binary(3)]
NUMBERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32()]
FLOATS = [pa.float16(), pa.float32(), pa.float64()]
DECIMALS = [pa.decimal32(5, 2), pa.decimal64(12, 4), pa.decimal128(20, 0), pa.decimal256(40, 6)]
TIMES = [pa.time32("ms"), pa.time64("us"), pa.time64("ns")]
STAMPS = [pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("ns")]
ZONED = [pa.timestamp("ms", "UTC"), pa.timestamp("us", "Europe/Berlin"), pa.timestamp("ns", "+02:00")]
DURATIONS = [pa.duration("ms"), pa.duration("us"), pa.duration("ns")]
NOON = dt.datetime(2024, 2, 29, 12, tzinfo=dt.UTC)
FAMILIES: list[tuple[list[pa.DataType], Any]] = [
    (TEXTS, "abc"),
    (BYTES, b"abc"),
    (NUMBERS, 7),
    (FLOATS, 1.5),
    (DECIMALS, decimal.Decimal(7)),
    (TIMES, dt.time(12, 30)),
    (STAMPS, NOON.replace(tzinfo=None)),
    (ZONED, NOON),
    (DURATIONS, dt.timedelta(hours=1)),
    ([pa.bool_()], True),
    ([pa.date32()], NOON.date()),
]


@st.composite
def two_types(draw: st.DrawFn, depth: int = 2) -> tuple[pa.DataType, pa.DataType, Any]:
    """Two types that differ in storage and width alone, and a value of both."""
    wrap = draw(st.sampled_from(["", "list", "struct", "map"])) if depth else ""
    if not wrap:
        family, value = draw(st.sampled_from(FAMILIES))
        return draw(st.sampled_from(family)), draw(st.sampled_from(family)), value
    first, second, value = draw(two_types(depth - 1))
    if wrap == "struct":
        fields = [[("a", kind), ("b", pa.int8())] for kind in (first, second)]
        if draw(st.booleans()):
            fields[1].reverse()
        return pa.struct(fields[0]), pa.struct(fields[1]), {"a": value, "b": None}
    if wrap == "map":
        return pa.map_(pa.string(), first), pa.map_(pa.large_string(), second), [("k", value), ("l", None)]
    lists = [pa.list_, pa.large_list, pa.list_view, pa.large_list_view, lambda kind: pa.list_(kind, 2)]
    one, other = draw(st.sampled_from(lists)), draw(st.sampled_from(lists))
    return one(first), other(second), [value, None]


def column_of(kind: pa.DataType, value: Any) -> pa.ChunkedArray:
    """A column with a value and a null, as Parquet gives it back."""
    try:
        cells = pa.array([value, None], kind)
    except (pa.ArrowException, NotImplementedError):  # no way from Python values to this type
        cells = pa.array([value, None]).cast(kind)
    buffer = io.BytesIO()
    try:
        pq.write_table(pa.table({"c": cells}), buffer)
    except pa.ArrowNotImplementedError:  # such as views inside of lists, which PyArrow reads and does not write
        assert writable(kind) != kind
        return pa.chunked_array([cells])
    return pq.read_table(buffer)["c"]


@given(two_types())
def test_columns_of_one_kind_become_one(pair: tuple[pa.DataType, pa.DataType, Any]) -> None:
    one, other = (column_of(kind, pair[2]) for kind in pair[:2])
    target = joined(one.type, other.type)
    assert target is not None
    assert can_become(one.type, target)
    assert can_become(other.type, target)
    assert joined(target, one.type) == joined(target, other.type) == target, "a file that comes later changes nothing"
    assert joined(other.type, one.type) is not None
    for column in (one, other):
        values = converted(column, target)
        values.validate(full=True)
        assert values.type == target
        assert converted(values, column.type).equals(column) or values.to_pylist() == column.to_pylist()
    both = pa.chunked_array([*converted(one, target).chunks, *converted(other, target).chunks])
    buffer = io.BytesIO()
    pq.write_table(pa.table({"c": both}), buffer)
    assert pq.read_table(buffer)["c"].type == target


@given(st.sampled_from([kind for family, _value in FAMILIES for kind in family]))
def test_a_type_alone_stays_as_it_is(kind: pa.DataType) -> None:
    assert joined(kind, kind) is kind
    assert joined(kind, pa.null()) is kind
    assert joined(pa.null(), kind) is kind
    assert writable(kind) is kind
    assert keeps(kind, kind)
    assert is_certain(kind, kind)


@given(st.permutations(FAMILIES), st.data())
def test_what_is_not_of_one_kind_is_not_joined(families: list[Any], data: st.DataObject) -> None:
    one, other = (data.draw(st.sampled_from(kinds)) for kinds, _value in families[:2])
    assert joined(one, other) is None
    assert not keeps(one, other)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.uint8(), pa.int8(), pa.int16()),
        (pa.uint32(), pa.int8(), pa.int64()),
        (pa.uint64(), pa.int8(), None),
        (pa.int64(), pa.float64(), None),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.decimal128(10, 2), pa.decimal128(12, 1), pa.decimal128(13, 2)),
        (pa.decimal128(38, 0), pa.decimal128(38, 10), pa.decimal256(48, 10)),
        (pa.decimal256(76, 0), pa.decimal128(38, 10), None),
        (pa.timestamp("us"), pa.timestamp("ns"), pa.timestamp("ns")),
        (pa.timestamp("us"), pa.timestamp("us", "UTC"), None),
        (pa.timestamp("us", "Europe/Berlin"), pa.timestamp("us", "UTC"), pa.timestamp("us", "UTC")),
        (pa.date32(), pa.timestamp("us"), None),
        (pa.string(), pa.binary(), None),
        (pa.string(), pa.large_string(), pa.string()),
        (pa.large_string(), pa.string(), pa.large_string()),
        (pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int16(), pa.string()), pa.string()),
        (pa.uuid(), pa.binary(16), pa.binary()),
        (pa.struct([("a", pa.int32())]), pa.struct([("b", pa.int32())]), None),
        (pa.struct([("a", pa.int32())]), pa.struct([("a", pa.int32()), ("b", pa.int32())]), None),
        (pa.struct([("a", pa.int32())]), pa.struct([("a", pa.string())]), None),
        (pa.list_(pa.null()), pa.large_list(pa.int32()), pa.list_(pa.int32())),
        (pa.list_(pa.int32()), pa.map_(pa.string(), pa.int32()), None),
    ],
    ids=str,
)
def test_joined_types(one: pa.DataType, other: pa.DataType, expected: pa.DataType | None) -> None:
    assert joined(one, other) == expected


def test_a_list_that_may_hold_nulls_makes_one_that_may() -> None:
    strict, free = (pa.list_(pa.field("item", pa.string(), nullable=nullable)) for nullable in (False, True))
    assert joined(strict, free) == joined(free, strict) == joined(strict, pa.large_list(pa.string())) == free
    assert joined(strict, strict) == strict
    assert not keeps(strict, free), "a cast does not look for nulls, and nobody could read them"
    assert keeps(free, strict)


@pytest.mark.parametrize(
    ("target", "kind", "values", "lost"),
    [
        (pa.int32(), pa.int64(), [1, 2**40, None], [1]),
        (pa.timestamp("ns"), pa.timestamp("us"), [0, 2**60, None], [1]),
        (pa.timestamp("us"), pa.timestamp("ns"), [1000, 1001, None], [1]),
        (pa.decimal128(3, 0), pa.decimal128(10, 1), [decimal.Decimal("7.0"), decimal.Decimal("7.5"), None], [1]),
        (pa.null(), pa.string(), [None, "x", None], [1]),
        (pa.list_(pa.int8()), pa.large_list(pa.int64()), [[1], [2, 1000], None], [1]),
        (pa.binary(2), pa.binary(), [b"ab", b"abc", None], [1]),
    ],
    ids=str,
)
def test_what_does_not_fit_an_earlier_type_is_found(
    target: pa.DataType, kind: pa.DataType, values: list[Any], lost: list[int]
) -> None:
    assert keeps(target, kind)
    assert not is_certain(kind, target)
    column = pa.chunked_array([pa.array(values, kind)])
    found, misfits = fitted(column, target)
    assert misfits == lost
    assert found.type == target
    found.validate(full=True)
    assert [cell.is_valid for cell in found] == [values[0] is not None, False, False]


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        (pa.float32(), pa.float64()),
        (pa.struct([("a", pa.int8()), ("b", pa.float32())]), pa.struct([("b", pa.float64()), ("a", pa.int8())])),
        (pa.dictionary(pa.int8(), pa.string()), pa.string()),
    ],
    ids=str,
)
def test_an_earlier_type_that_nobody_could_check_keeps_nothing_else(target: pa.DataType, kind: pa.DataType) -> None:
    assert joined(target, kind) is not None
    assert not keeps(target, kind)


def test_between_views_and_dictionaries_there_is_a_way() -> None:
    view, dictionary = (column_of(kind, "abc") for kind in (pa.string_view(), pa.dictionary(pa.int32(), pa.string())))
    assert converted(view, dictionary.type).to_pylist() == converted(dictionary, view.type).to_pylist() == ["abc", None]
    assert can_become(view.type, dictionary.type)
    assert can_become(dictionary.type, view.type)


@pytest.mark.parametrize(
    "kind", [pa.month_day_nano_interval(), pa.dense_union([pa.field("a", pa.int8())]), pa.struct([])]
)
def test_types_that_parquet_has_not(kind: pa.DataType) -> None:
    assert writable(kind) is None


TENSOR = pa.fixed_shape_tensor(pa.int32(), [2, 3], permutation=[1, 0])


@pytest.mark.parametrize(
    "kind",
    [
        TENSOR,
        pa.list_(TENSOR),
        pa.struct([("a", TENSOR)]),
        pa.map_(pa.string(), TENSOR),
        pa.uuid(),
        pa.bool8(),
        pa.opaque(pa.int32(), "a", "b"),
        pa.list_view(pa.int8()),
        pa.list_(pa.struct([("a", pa.string_view())])),
        pa.list_(pa.list_(pa.binary_view())),
        pa.struct([pa.field("a", pa.int8(), nullable=False)]),
        pa.map_(pa.string(), pa.field("v", TENSOR, nullable=False)),
    ],
    ids=str,
)
def test_what_is_called_writable_is_written_with_values_and_nulls(kind: pa.DataType) -> None:
    target = writable(kind)
    assert target is not None
    sample = _sample(kind)
    assert sample.null_count < len(sample)
    column = converted(pa.chunked_array([sample]), target)
    both = pa.concat_tables([pa.table([pa.nulls(2, target)], ["c"]), pa.table([column], ["c"])])
    buffer = io.BytesIO()
    pq.write_table(both, buffer)
    assert pq.read_table(buffer)["c"].is_null().to_pylist() == [True, True, False, True, False]
