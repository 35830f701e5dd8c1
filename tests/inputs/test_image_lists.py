"""Cells with several images: the first of each, or a row for each, the same rows in every range and every run."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcap.config import ImagesOf, InputConfig
from batchcap.core.errors import ErrorKind, RowError
from batchcap.inputs.encoded import read_encoded
from batchcap.inputs.image_lists import EachImageTable
from batchcap.inputs.parquet import ParquetFiles, ParquetTable
from batchcap.inputs.table_rows import RowReader
from tests.inputs.hostile import damage_pages
from tests.inputs.parquets import IMAGE_STRUCT, data_of, path_of, write_table
from tests.inputs.test_parquet import carried, planned, rows_of

LISTS = [[b"a", b"b"], [], None, [b"c"], [None, b"d", b"e"]]
KINDS = {
    "list": pa.list_(pa.binary()),
    "large": pa.large_list(pa.large_binary()),
    "structs": pa.list_(IMAGE_STRUCT),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHCAP_CACHE", str(tmp_path_factory.mktemp("cache")))


def column(kind: str) -> pa.Array:
    def cell(value: bytes | None) -> Any:
        return {"bytes": value, "path": None} if kind == "structs" and value is not None else value

    return pa.array([None if row is None else [cell(one) for one in row] for row in LISTS], KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_each_image_is_a_row(tmp_path: Path, kind: str) -> None:
    write_table(tmp_path / "a.parquet", {"images": column(kind), "n": range(5)}, row_group_size=2)
    with planned(tmp_path, images=ImagesOf.EACH, keep_columns=("n",)) as plan:
        rows = rows_of(plan)
        assert pa.concat_tables(carried(plan))["n"].to_pylist() == [0, 0, 1, 2, 3, 4, 4, 4]
    assert [data_of(row) for row in rows] == [b"a", b"b", None, None, b"c", None, b"d", b"e"]
    assert [row.id for row in rows] == [
        "a.parquet:0#0", "a.parquet:0#1", "a.parquet:1#0", "a.parquet:2#0", "a.parquet:3#0",
        "a.parquet:4#0", "a.parquet:4#1", "a.parquet:4#2",
    ]  # fmt: skip
    assert [row.row for row in rows] == [0, 0, 1, 2, 3, 4, 4, 4]
    with pytest.raises(RowError) as caught:
        read_encoded(rows[2])
    assert caught.value.kind is ErrorKind.MISSING


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_image_of_each_list(tmp_path: Path, kind: str) -> None:
    write_table(tmp_path / "a.parquet", {"images": column(kind)}, row_group_size=2)
    with planned(tmp_path, images=ImagesOf.FIRST) as plan:
        rows = rows_of(plan)
    assert [data_of(row) for row in rows] == [b"a", None, None, b"c", None]
    assert [row.id for row in rows] == [f"a.parquet:{row}" for row in range(5)]


def test_lists_of_paths_and_ids(tmp_path: Path) -> None:
    columns = {"file_names": [["a.png", "b.png"], ["c.png"]], "name": ["x", "y"]}
    write_table(tmp_path / "a.parquet", columns)
    with planned(tmp_path, images=ImagesOf.EACH, id_column="name") as plan:
        rows = rows_of(plan)
    assert [path_of(row) for row in rows] == [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    assert [row.id for row in rows] == ["x#0", "x#1", "y#0"]


@pytest.mark.parametrize("images", ImagesOf)
def test_names_that_are_no_text(tmp_path: Path, images: ImagesOf) -> None:
    """Bytes of a file name that is not UTF-8 in a column of text."""
    values = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\3\0\0\0"), pa.py_buffer(b"\xff.x")])
    names = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), values)
    write_table(tmp_path / "a.parquet", {"images": names})
    with planned(tmp_path, images=images, image_column="images") as plan:
        (row,) = rows_of(plan)
    assert path_of(row) == f"{tmp_path}/\udcff.x"


def test_a_column_without_lists_is_read_as_ever(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", {"image": [b"a", b"b"]})
    for images in ImagesOf:
        with planned(tmp_path, images=images) as plan:
            assert [(row.id, data_of(row)) for row in rows_of(plan)] == [("a.parquet:0", b"a"), ("a.parquet:1", b"b")]


CELLS = st.none() | st.lists(st.none() | st.binary(min_size=1, max_size=3), max_size=4)


@settings(max_examples=40, deadline=None)
@given(st.lists(CELLS, min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 40), st.integers(1, 40))
def test_any_lists_in_any_ranges(
    tmp_path_factory: pytest.TempPathFactory, cells: list[list[bytes | None] | None], group: int, start: int, count: int
) -> None:
    path = tmp_path_factory.mktemp("lists") / "a.parquet"
    lists = pa.array(cells, pa.list_(pa.binary()))
    write_table(path, {"images": lists, "n": list(range(len(cells)))}, row_group_size=group)
    expected = [(row, item, value) for row, one in enumerate(cells) for item, value in enumerate(one or [None])]
    table = EachImageTable(ParquetTable(path), "images")
    assert sum(table.group_rows) == len(expected)
    start = min(start, len(expected) - 1)
    count = min(count, len(expected) - start)
    assert [table.place_of(row) for row in range(len(expected))] == [(row, item) for row, item, _value in expected]
    for columns in (["images", "n"], ["n"]):
        found = [row for batch in RowReader(table, columns, 3).read(start, count) for row in batch.to_pylist()]
        known = [{"images": value, "n": row} for row, _item, value in expected[start : start + count]]
        assert found == [{name: row[name] for name in columns} for row in known]


def test_a_damaged_row_group_has_the_same_rows_in_each_run(tmp_path: Path) -> None:
    lists = [[b"image" * 50, b"other" * 50]] * 40
    path = write_table(tmp_path / "a.parquet", {"images": pa.array(lists, pa.list_(pa.binary()))}, row_group_size=10)
    damage_pages(path, 1, 0)
    reader = ParquetFiles(InputConfig((str(path),), images=ImagesOf.EACH))
    total = reader.count(path)
    with planned(tmp_path, images=ImagesOf.EACH) as plan:
        rows = rows_of(plan)
    assert len(rows) == total
    assert sum(row.failure is not None for row in rows) == total - 60
    lost = [f"a.parquet:{row}#0" for row in range(10, 20)]
    whole = [f"a.parquet:{row}#{item}" for row in range(40) if row // 10 != 1 for item in range(2)]
    assert [row.id for row in rows] == whole[:20] + lost + whole[20:]
    assert [row.row for row in rows] == [int(row.id.split(":")[1].split("#")[0]) for row in rows]


def test_unreadable_rows_are_called_as_the_rows_of_their_file(tmp_path: Path) -> None:
    """Also where only the id can't be read, and it is known how many images each row has."""
    lists = pa.array([[b"a", b"b", b"c"]] * 8, pa.list_(pa.binary()))
    columns = {"images": lists, "name": [f"name {row}" * 50 for row in range(8)]}
    path = write_table(tmp_path / "a.parquet", columns, row_group_size=4)
    damage_pages(path, 1, 1)
    with planned(tmp_path, images=ImagesOf.EACH, id_column="name") as plan:
        rows = rows_of(plan)
    assert [row.row for row in rows] == [row for row in range(8) for _item in range(3)]
    lost = [row for row in rows if row.failure is not None]
    assert [row.id for row in lost] == [f"a.parquet:{row}#{item}" for row in range(4, 8) for item in range(3)]
