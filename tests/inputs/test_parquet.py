"""Parquet inputs: which column holds the image, what a row gives, what is carried."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchcap.config import InputConfig
from batchcap.core.errors import UsageError
from batchcap.core.records import ImageRow
from batchcap.inputs.discover import discover
from batchcap.job.plan import Plan
from batchcap.store.journal import Journal
from tests.inputs.parquets import IMAGE_STRUCT, data_of, path_of, read_layout, write_table

ROWS = 25  # more than one row group of ten, and more than one batch of images


@contextmanager
def planned(folder: Path, rows_per_part: int = 7, inputs: tuple[str, ...] = (), **settings: Any) -> Iterator[Plan]:
    config = InputConfig(inputs or (str(folder),), **settings)
    with closing(Journal.open(folder / "journal.sqlite")) as journal:
        plan = Plan(journal, config)
        plan.extend(list(discover(config, folder / "out")), rows_per_part, 0)
        yield plan


def rows_of(plan: Plan) -> list[ImageRow]:
    return [row for shard in plan.shards() for row in plan.shard_rows(shard)]


def carried(plan: Plan) -> list[pa.Table]:
    tables = [plan.shard_columns(shard) for shard in plan.shards()]
    assert [len(table) for table in tables] == [shard.rows for shard in plan.shards()]
    return tables


def test_a_file_without_columns_to_carry_has_nulls_in_those_of_others(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", {"image": [b"x"] * 9})
    write_table(tmp_path / "b.parquet", {"image": [b"x"] * 2, "title": ["a", "b"]})
    with planned(tmp_path, keep_columns=("*",)) as plan:
        assert pa.concat_tables(carried(plan))["title"].to_pylist() == [None] * 9 + ["a", "b"]


@pytest.mark.parametrize(
    ("columns", "image"),
    [
        ({"a": pa.array([None], IMAGE_STRUCT), "b": pa.array([b""]), "path": ["x"]}, "a"),
        ({"b": pa.array([b""]), "path": ["x"]}, "b"),
        ({"b": pa.array([b""], pa.large_binary())}, "b"),
        ({"text": ["x"], "file_name": ["x"], "path": ["x"]}, "path"),
        ({"image": pa.array(["x"]).dictionary_encode()}, "image"),
        ({"path": pa.array([None], pa.null())}, "path"),
        ({"meta": pa.array([{"path": 1}]), "file": pa.array(["x"], pa.large_string())}, "file"),
    ],
)
def test_the_image_column_is_found(tmp_path: Path, columns: dict[str, Any], image: str) -> None:
    path = write_table(tmp_path / "a.parquet", columns)
    assert read_layout(path, InputConfig(("x",))).image == image


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"text": ["x"], "n": [1]}, {}, r"no column with images; it has text, n.*--image-column"),
        ({"a": [b""], "b": [b""]}, {}, r"several columns .*\(a, b\).*--image-column"),
        ({"a": [b""]}, {"image_column": "pixels"}, r"no column 'pixels' \(--image-column\): name one of a"),
        ({"a": [1]}, {"image_column": "a"}, r"column 'a' .* is int64"),
        ({"a": [b""]}, {"id_column": "key"}, r"no column 'key' \(--id-column\)"),
        ({"a": [b""]}, {"keep_columns": ("x",)}, r"no column 'x' \(--keep-columns\)"),
        (
            {"a": [b""], "caption": ["x"], "input_caption": ["y"]},
            {"keep_columns": ("*",)},
            r"'caption' and 'input_caption'",
        ),
    ],
)
def test_columns_that_do_not_fit_are_told_before_any_work(
    tmp_path: Path, columns: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    write_table(tmp_path / "a.parquet", columns)
    with pytest.raises(UsageError, match=message), planned(tmp_path, **settings):
        pass


def test_bytes_are_given_across_row_groups_and_shards(tmp_path: Path) -> None:
    data = [None if row == 3 else str(row).encode() for row in range(ROWS)]
    write_table(tmp_path / "a.parquet", {"picture": pa.array(data, pa.binary())}, row_group_size=10)
    with planned(tmp_path) as plan:
        rows = rows_of(plan)
    assert [data_of(row) for row in rows] == data
    assert [(row.index, row.row, row.id) for row in rows] == [(row, row, f"a.parquet:{row}") for row in range(ROWS)]
    assert {row.source for row in rows} == {str(tmp_path / "a.parquet")}
    assert {path_of(row) for row in rows} == {None}


def test_image_struct_uses_bytes_then_path(tmp_path: Path) -> None:
    cells = [{"bytes": b"x", "path": "a.png"}, {"bytes": None, "path": "a.png"}, {"bytes": None, "path": None}, None]
    write_table(tmp_path / "a.parquet", {"image": pa.array(cells, IMAGE_STRUCT)})
    with planned(tmp_path) as plan:
        assert [(data_of(row), path_of(row)) for row in rows_of(plan)] == [
            (b"x", None),
            (None, str(tmp_path / "a.png")),
            (None, None),
            (None, None),
        ]


def test_paths_are_relative_to_the_file_or_to_the_root(tmp_path: Path) -> None:
    cells = ["a/b.png", "/abs/c.png", None, "https://example.org/d.png", "s3://bucket/e.png"]
    (tmp_path / "in").mkdir()
    write_table(tmp_path / "in/a.parquet", {"path": cells})
    (tmp_path / "root").mkdir()
    with planned(tmp_path / "in") as plan:
        assert [path_of(row) for row in rows_of(plan)] == [str(tmp_path / "in/a/b.png"), "/abs/c.png", None, None, None]
        assert {data_of(row) for row in rows_of(plan)} == {None}
    with planned(tmp_path / "in", image_root=str(tmp_path / "root")) as plan:
        assert [path_of(row) for row in rows_of(plan)] == [str(tmp_path / "root/a/b.png"), None, None, None, None]


def test_id_column_as_text_and_where_it_is_null(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", {"path": ["x", "y", "z"], "key": pa.array([7, None, 9])})
    with planned(tmp_path, id_column="key") as plan:
        assert [row.id for row in rows_of(plan)] == ["7", "a.parquet:1", "9"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), IMAGE_STRUCT])
def test_text_that_is_not_utf_8_is_a_file_name_like_any_other(tmp_path: Path, kind: pa.DataType) -> None:
    """Parquet does not check its text, and one such row must not end the job."""
    paths = pa.array([b"a.png", b"gr\xf6\xdfe.png", None], pa.binary()).view(pa.string())
    cells = paths.dictionary_encode() if pa.types.is_dictionary(kind) else paths
    if pa.types.is_struct(kind):
        cells = pa.StructArray.from_arrays([pa.nulls(3, pa.binary()), paths], fields=list(kind))
    write_table(tmp_path / "a.parquet", {"image": cells.cast(kind), "key": paths})
    with planned(tmp_path, id_column="key") as plan:
        rows = rows_of(plan)
    assert [path_of(row) and os.fsencode(path_of(row)) for row in rows] == [
        os.fsencode(tmp_path / "a.png"),
        os.fsencode(tmp_path) + b"/gr\xf6\xdfe.png",
        None,
    ]
    assert [row.id for row in rows] == ["a.png", r"gr\xf6\xdfe.png", "a.parquet:2"]


def test_carried_columns_meet_their_rows(tmp_path: Path) -> None:
    columns = {
        "path": [f"{row}.png" for row in range(ROWS)],
        "label": list(range(ROWS)),
        "caption": [f"old {row}" for row in range(ROWS)],
        "kind": pa.array(["cat", "dog", "cat", "cat", "dog"] * (ROWS // 5)).dictionary_encode(),
    }
    write_table(tmp_path / "a.parquet", columns, row_group_size=10)
    with planned(tmp_path, keep_columns=("*",)) as plan:
        table = pa.concat_tables(carried(plan)).unify_dictionaries()
    assert table.column_names == ["label", "input_caption", "kind"]
    assert table["label"].to_pylist() == columns["label"]
    assert table["input_caption"].to_pylist() == columns["caption"]
    assert table["kind"].to_pylist() == columns["kind"].to_pylist()


def test_every_shard_has_the_same_carried_columns(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", {"path": ["x"] * 3, "label": [1, 2, 3], "note": pa.nulls(3)})
    write_table(tmp_path / "b.parquet", {"path": ["x"] * 3, "note": ["p", "q", "r"], "size": [1.5, None, 2.5]})
    (tmp_path / "c.png").write_bytes(b"x")
    with planned(tmp_path, rows_per_part=2, keep_columns=("*",)) as plan:
        tables = carried(plan)
    schema = pa.schema([("label", pa.int64()), ("note", pa.string()), ("size", pa.float64())])
    assert [table.schema for table in tables] == [schema] * 4
    assert pa.concat_tables(tables).to_pydict() == {
        "label": [1, 2, 3, None, None, None, None],
        "note": [None, None, None, "p", "q", "r", None],
        "size": [None, None, None, 1.5, None, 2.5, None],
    }


def test_carried_columns_of_two_types_are_told_before_any_work(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", {"path": ["x"], "label": [1]})
    write_table(tmp_path / "b.parquet", {"path": ["x"], "label": ["one"]})
    message = r"'label' is int64 in .*a\.parquet and string in .*b\.parquet"
    with pytest.raises(UsageError, match=message), planned(tmp_path, keep_columns=("label",)):
        pass


def test_nothing_is_carried_for_images_alone(tmp_path: Path) -> None:
    (tmp_path / "c.png").write_bytes(b"x")
    with planned(tmp_path, keep_columns=("*",)) as plan:
        assert [plan.shard_columns(shard) for shard in plan.shards()] == [None]


def test_an_empty_parquet_file_beside_others_has_no_rows(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", {"path": pa.array([], pa.string())})
    write_table(tmp_path / "b.parquet", {"path": ["x"]})
    with planned(tmp_path) as plan:
        assert [row.id for row in rows_of(plan)] == ["b.parquet:0"]


def test_empty_parquet_files_alone_are_an_error_not_a_complete_job(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", {"path": pa.array([], pa.string())})
    with pytest.raises(UsageError, match=r"no Parquet file in .* has a row"), planned(tmp_path):
        pass
