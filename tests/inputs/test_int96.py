"""Timestamps of 96 bits, as Spark, Hive and Impala wrote them for years: the same date in the output."""

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcap.config import InputConfig
from tests.inputs.hostile import damage_pages
from tests.inputs.parquets import read_layout
from tests.inputs.test_parquet import carried, planned, rows_of

FOR_EVER = dt.datetime.fromisoformat("9999-12-31")
LEAP_DAY, FIRST_DAY = map(dt.datetime.fromisoformat, ("2024-02-29T23:59:59.999999", "0001-01-01"))
DATES = [FOR_EVER, None, LEAP_DAY, FIRST_DAY]


def write_int96(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    images = {"image": [b"x"] * len(next(iter(columns.values())))}
    pq.write_table(pa.table({**images, **columns}), path, use_deprecated_int96_timestamps=True, **options)
    return path


@pytest.mark.parametrize("store_schema", [True, False])
@pytest.mark.parametrize("zone", [None, "UTC"])
def test_a_date_after_2262_is_carried_as_it_is(tmp_path: Path, zone: str | None, store_schema: bool) -> None:
    column = pa.array(DATES, pa.timestamp("us", zone))
    write_int96(tmp_path / "a.parquet", {"valid_to": column}, store_schema=store_schema)
    with planned(tmp_path, rows_per_part=3, keep_columns=("*",)) as plan:
        table = pa.concat_tables(carried(plan))
    assert table.schema.types == [pa.timestamp("us")]  # such a column has no zone, whatever was written
    assert table["valid_to"].to_pylist() == DATES


def test_a_date_inside_of_lists_and_structs(tmp_path: Path) -> None:
    kind = pa.list_(pa.struct([("valid_to", pa.timestamp("us"))]))
    cells = [[{"valid_to": FOR_EVER}, {"valid_to": None}], None]
    write_int96(tmp_path / "a.parquet", {"spans": pa.array(cells, kind)})
    with planned(tmp_path, keep_columns=("*",)) as plan:
        assert carried(plan)[0]["spans"].to_pylist() == cells


def test_a_date_as_id(tmp_path: Path) -> None:
    write_int96(tmp_path / "a.parquet", {"day": pa.array(DATES, pa.timestamp("us"))})
    with planned(tmp_path, id_column="day") as plan:
        assert [row.id for row in rows_of(plan)] == [
            "9999-12-31 00:00:00",
            "a.parquet:1",
            "2024-02-29 23:59:59.999999",
            "0001-01-01 00:00:00",
        ]


def test_the_planned_type_is_the_one_that_is_read(tmp_path: Path) -> None:
    path = write_int96(tmp_path / "a.parquet", {"day": pa.array(DATES, pa.timestamp("us"))})
    assert read_layout(path, InputConfig(("x",), keep_columns=("*",))).kept.types == [pa.timestamp("us")]


def test_a_damaged_column_is_null_of_the_same_type(tmp_path: Path) -> None:
    days = pa.array([FOR_EVER] * 3, pa.timestamp("us"))
    path = write_int96(tmp_path / "a.parquet", {"day": days, "n": [1, 2, 3]}, use_dictionary=False)
    damage_pages(path, group=0, column=1)
    with planned(tmp_path, keep_columns=("*",)) as plan:
        (table,) = carried(plan)
    assert table.schema.types == [pa.timestamp("us"), pa.int64()]
    assert table.to_pydict() == {"day": [None] * 3, "n": [1, 2, 3]}


@given(st.lists(st.datetimes() | st.none(), min_size=1, max_size=20))
def test_any_date(tmp_path_factory: pytest.TempPathFactory, dates: list[dt.datetime | None]) -> None:
    folder = tmp_path_factory.mktemp("dates")
    write_int96(folder / "a.parquet", {"day": pa.array(dates, pa.timestamp("us"))})
    with planned(folder, keep_columns=("*",)) as plan:
        assert pa.concat_tables(carried(plan))["day"].to_pylist() == dates
