"""Parquet files that are damaged, huge, odd or lying: an error that says what to do, or failed rows; never a crash."""

import logging
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap.config import InputConfig
from batchcap.core.errors import ErrorKind, UsageError
from batchcap.core.records import ImageRow, Shard
from batchcap.inputs.discover import discover
from batchcap.inputs.parquet import ParquetFiles, rows_at_once
from batchcap.store.parts import SCHEMA, write_part
from tests.inputs.hostile import damage_pages, footer_of, lie_about, with_footer
from tests.inputs.parquets import data_of, path_of, read_layout, write_table
from tests.inputs.test_parquet import carried, planned, rows_of
from tests.store.records import caption_row

ROWS, GROUP_ROWS = 301, 100  # a number of rows that nothing else in a footer has
IMAGES = [str(row).encode() * 9 for row in range(ROWS)]
COLUMNS = {"image": IMAGES, "label": [f"label {row}" for row in range(ROWS)], "size": list(range(ROWS))}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return write_table(tmp_path / "in" / "a.parquet", COLUMNS, GROUP_ROWS)


def kinds(rows: list[ImageRow]) -> list[ErrorKind | None]:
    return [row.failure[0] if row.failure else None for row in rows]


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.7, 0.9, 0.99, 0.999])
def test_a_file_cut_off_anywhere_is_told_before_any_work(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UsageError, match=r"can't read the Parquet file .*a\.parquet.*mend it or leave it out"):
        list(discover(InputConfig((str(file),)), file / "out"))


@pytest.mark.parametrize("length", [0, 8, 2**31 - 1, 2**32 - 1])
def test_a_footer_that_lies_about_its_length(file: Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:-8] + length.to_bytes(4, "little") + b"PAR1")
    with pytest.raises(UsageError, match="mend it or leave it out"):
        ParquetFiles.count_records(file)


def test_an_encrypted_file_says_so(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4] + b"PARE")
    with pytest.raises(UsageError, match=r"(?i)crypt.*mend it or leave it out"):
        ParquetFiles.count_records(file)


@pytest.mark.parametrize("claimed", [0, 300, 302, 5000, 2**40, 2**62, -1])
@pytest.mark.parametrize("places", [slice(0, 1), slice(-1, None), slice(None)], ids=["file", "group", "all"])
def test_a_file_that_lies_about_its_rows(tmp_path: Path, claimed: int, places: slice) -> None:
    """Where no part of the footer contradicts, the rows that are there are captioned, and the others fail."""
    path = write_table(tmp_path / "a.parquet", COLUMNS, ROWS)
    lie_about(path, ROWS, claimed, places)
    if places != slice(None) or not 0 < claimed < 10**6:
        with pytest.raises(UsageError, match=r"(its footer says|it says it has|no Parquet file) .*rows?"):
            list(discover(InputConfig((str(path),)), tmp_path / "out"))
        return
    with planned(tmp_path, rows_per_part=10**6) as plan:
        found = rows_of(plan)
    there = min(claimed, ROWS)
    assert len(found) == claimed
    assert [data_of(row) for row in found[:there]] == IMAGES[:there]
    assert kinds(found[there:]) == [ErrorKind.UNREADABLE] * (claimed - there)


def test_more_rows_than_any_job_can_have_are_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", COLUMNS, ROWS)
    lie_about(path, ROWS, 10**10)
    with pytest.raises(UsageError, match=r"10,?000,?000,?000 rows"):
        ParquetFiles.count_records(path)


def test_a_damaged_page_costs_the_rows_of_its_row_group_only(file: Path) -> None:
    """The footer is good: what comes before is done already, and what comes after need not wait for a mended file."""
    damage_pages(file, group=1, column=0)
    write_table(file.with_name("b.parquet"), {"image": [b"x"] * 5})
    with planned(file.parent) as plan:
        rows = rows_of(plan)
        assert rows_of(plan) == rows, "the next run finds the same"
    damaged = slice(GROUP_ROWS, 2 * GROUP_ROWS)
    expected = [*IMAGES, *[b"x"] * 5]
    expected[damaged] = [None] * GROUP_ROWS
    assert [data_of(row) for row in rows] == expected
    assert kinds(rows)[damaged] == [ErrorKind.UNREADABLE] * GROUP_ROWS
    assert [row.index for row in rows] == list(range(ROWS + 5))
    assert [row.id for row in rows[damaged]] == [f"a.parquet:{row}" for row in range(GROUP_ROWS, 2 * GROUP_ROWS)]
    reason = rows[GROUP_ROWS].failure[1]
    assert "row group 1" in reason
    assert str(file) in reason
    assert "\n" not in reason
    assert kinds(rows).count(None) == ROWS + 5 - GROUP_ROWS


def test_a_changed_image_is_noticed_where_the_file_has_checksums(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"image": IMAGES})
    pq.write_table(table, path, row_group_size=100, compression="none", use_dictionary=False, write_page_checksum=True)
    content = path.read_bytes()
    assert content.count(IMAGES[250]) == 1
    path.write_bytes(content.replace(IMAGES[250], IMAGES[250][:-1] + b"?"))
    with planned(tmp_path) as plan:
        rows = rows_of(plan)
    assert kinds(rows) == [None] * 200 + [ErrorKind.UNREADABLE] * 100 + [None]


def test_a_damaged_carried_column_is_null_and_the_others_are_not(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    damage_pages(file, group=1, column=1)
    with planned(file.parent, keep_columns=("*",)) as plan, caplog.at_level(logging.WARNING):
        assert kinds(rows_of(plan)) == [None] * ROWS
        table = pa.concat_tables(carried(plan))
    lost = range(GROUP_ROWS, 2 * GROUP_ROWS)
    assert table["size"].to_pylist() == COLUMNS["size"]
    assert table["label"].to_pylist() == [None if row in lost else COLUMNS["label"][row] for row in range(ROWS)]
    warnings = [record.getMessage() for record in caplog.records if "table_rows" in record.name]
    assert len(warnings) == 1, "one warning for a row group, not one for each part"
    assert "label" in warnings[0]
    assert "row group 1" in warnings[0]


def test_a_disk_error_is_no_damage_and_ends_the_run(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network disk that goes away must not turn a million rows into failed ones."""

    def gone(*_arguments: object, **_options: object) -> None:
        raise OSError(5, "Input/output error")

    with planned(file.parent) as plan:
        monkeypatch.setattr(pq.ParquetFile, "iter_batches", gone)
        with pytest.raises(UsageError, match="can't read the Parquet file"):
            rows_of(plan)


def odd(kind: pa.DataType, *values: Any) -> pa.Array:
    return pa.array(values, kind)


DOUBLE_BYTES = pa.StructArray.from_arrays([odd(pa.binary(), b"x"), odd(pa.binary(), b"y")], ["bytes", "bytes"])


@pytest.mark.parametrize(
    ("column", "fits"),
    [
        (odd(pa.int64(), 1), False),
        (odd(pa.list_(pa.binary()), [b"x"]), False),
        (odd(pa.list_(pa.string()), ["x"]), False),
        (odd(pa.map_(pa.string(), pa.binary()), [("bytes", b"x")]), False),
        (odd(pa.struct([("bytes", pa.list_(pa.binary())), ("path", pa.int64())]), {"bytes": [b"x"], "path": 3}), False),
        (DOUBLE_BYTES, False),
        (odd(pa.binary(1), b"x"), False),
        (odd(pa.uuid(), b"x" * 16), False),
        (odd(pa.bool_(), True), False),
        (odd(pa.binary(), b"x"), True),
        (odd(pa.large_binary(), b"x"), True),
        (odd(pa.binary_view(), b"x"), True),
        (odd(pa.binary(), b"x").dictionary_encode(), True),
        (odd(pa.struct([("bytes", pa.large_binary()), ("size", pa.int64())]), {"bytes": b"x", "size": 3}), True),
    ],
    ids=lambda value: str(value.type)[:40] if isinstance(value, pa.Array) else "",
)
def test_image_columns_of_odd_types(tmp_path: Path, column: pa.Array, fits: bool) -> None:
    write_table(tmp_path / "a.parquet", {"image": column})
    if fits:
        with planned(tmp_path) as plan:
            assert [data_of(row) for row in rows_of(plan)] == [b"x"]
        return
    with (
        pytest.raises(UsageError, match=r"neither bytes, an Image, nor a path|a list of images: caption"),
        planned(tmp_path, image_column="image"),
    ):
        pass


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())])
def test_path_columns_of_odd_types(tmp_path: Path, kind: pa.DataType) -> None:
    write_table(tmp_path / "a.parquet", {"path": odd(pa.string(), "x.png", None).cast(kind)})
    with planned(tmp_path) as plan:
        assert [path_of(row) for row in rows_of(plan)] == [str(tmp_path / "x.png"), None]


def test_a_file_without_columns_or_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({}), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=r"no Parquet file in .* has a row"), planned(tmp_path):
        pass


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.timestamp("us"), 2**62),
        (pa.timestamp("ns", "Mars/Phobos"), 1),
        (pa.date32(), 2**31 - 1),
        (pa.date64(), 2**60),
        (pa.duration("s"), 2**62),
        (pa.time64("ns"), 1001),
        (pa.list_(pa.int8()), [1, 2]),
        (pa.binary(), b"\xff"),
        (pa.bool_(), True),
    ],
    ids=str,
)
def test_ids_of_odd_types(tmp_path: Path, kind: pa.DataType, value: object) -> None:
    """What Python has no value for still names a row, each time the same."""
    write_table(tmp_path / "a.parquet", {"image": [b"x", b"y", b"z"], "key": odd(kind, value, None, value)})
    with planned(tmp_path, image_column="image", id_column="key") as plan:
        rows = rows_of(plan)
    assert [data_of(row) for row in rows] == [b"x", b"y", b"z"]
    assert rows[0].id
    assert rows[1].id == "a.parquet:1"


def test_nested_ids_that_are_not_utf_8(tmp_path: Path) -> None:
    texts = odd(pa.binary(), b"\xff\xfe").view(pa.string())
    write_table(tmp_path / "a.parquet", {"image": [b"x"], "key": pa.ListArray.from_arrays([0, 1], texts)})
    with planned(tmp_path, id_column="key") as plan:
        (row,) = rows_of(plan)
    assert data_of(row) == b"x"
    assert row.id


def test_ten_thousand_columns_are_read_in_no_time_and_told_in_a_line(tmp_path: Path) -> None:
    many = {f"column_{number}": [number] for number in range(10_000)}
    path = write_table(tmp_path / "a.parquet", {**many, "image": [b"x"]})
    started_s = time.perf_counter()
    with planned(tmp_path, keep_columns=("*",)) as plan:
        assert [data_of(row) for row in rows_of(plan)] == [b"x"]
        (table,) = carried(plan)
    assert table.num_columns == len(many)
    write_part(tmp_path / "part", Shard(0, 0, 1), [caption_row(0)], table, {})
    assert time.perf_counter() - started_s < 30
    for settings in ({"image_column": "picture"}, {"id_column": "key"}, {"keep_columns": ("key",)}):
        with pytest.raises(UsageError) as caught:
            read_layout(path, InputConfig(("x",), **settings))
        assert len(str(caught.value)) < 600
        assert "column_3," in str(caught.value)


def test_names_of_columns_with_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", {"a\n\x1b[31m\0": [b"x"], "\r": [b"y"], "x" * 10_000: [1]})
    for settings in ({}, {"image_column": "\x1b[2J"}, {"image_column": "x" * 10_000}, {"id_column": "k"}):
        with pytest.raises(UsageError) as caught:
            read_layout(path, InputConfig(("x",), **settings))
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 600


def test_columns_with_odd_names_are_carried_as_they_are(tmp_path: Path) -> None:
    names = ["a\n\x1b[31m\0", "\r", "", "a.b", "A.B", "'; DROP TABLE"]
    write_table(tmp_path / "a.parquet", {"image": [b"x"], **{name: [1] for name in names}})
    with planned(tmp_path, keep_columns=("*",)) as plan:
        assert carried(plan)[0].column_names == names


def test_names_that_differ_from_ours_in_case_only_clash_too(tmp_path: Path) -> None:
    """DuckDB would take one for the other."""
    columns = {"image": [b"x"], "Caption": ["old"], "ID": [7]}
    write_table(tmp_path / "a.parquet", columns)
    with planned(tmp_path, keep_columns=("*",)) as plan:
        assert carried(plan)[0].to_pydict() == {"input_Caption": ["old"], "input_ID": [7]}
    write_table(tmp_path / "a.parquet", {**columns, "INPUT_caption": ["older"]})
    with pytest.raises(UsageError, match="rename one, or keep one with --keep-columns"):
        read_layout(tmp_path / "a.parquet", InputConfig(("x",), keep_columns=("*",)), frozenset(SCHEMA.names))


def test_a_column_name_that_is_not_utf_8(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", {"zzzz": [b"x"]})
    content = path.read_bytes()
    footer = footer_of(content).replace(b"zzzz", b"z\xff\xfez")
    path.write_bytes(with_footer(content, footer))
    with pytest.raises(UsageError, match=r"column name that is not UTF-8.*: mend it or leave it out"):
        read_layout(path, InputConfig(("x",)))


def test_huge_metadata_is_not_copied_into_the_output(tmp_path: Path) -> None:
    table = pa.table({"image": [b"x"], "label": [1]}).replace_schema_metadata({"note": "x" * 20_000_000})
    pq.write_table(table, tmp_path / "a.parquet")
    with planned(tmp_path, keep_columns=("*",)) as plan:
        assert carried(plan)[0].schema.metadata is None


@pytest.mark.parametrize(
    ("group_bytes", "expected"), [(0, 1024), (100_000, 1024), (100 << 20, 10), (1 << 40, 1), (-(2**62), 1024)]
)
def test_fewer_rows_of_a_large_group_are_decoded_at_once(group_bytes: int, expected: int) -> None:
    assert rows_at_once(group_bytes, 1024) == expected


def test_a_file_of_kilobytes_with_gigabytes_in_it_takes_the_memory_of_one_image(tmp_path: Path) -> None:
    """All rows share one entry of a dictionary: decoded sixteen at once, they would take a gigabyte."""
    image_bytes = 64 << 20
    cells = pa.DictionaryArray.from_arrays(odd(pa.int32(), *[0] * 100), odd(pa.binary(), bytes(image_bytes)))
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet", compression="zstd", store_schema=False)
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    before = pa.total_allocated_bytes()
    with planned(tmp_path) as plan:
        for row in islice(plan.shard_rows(plan.shards()[0]), 5):
            assert len(data_of(row)) == image_bytes
            assert pa.total_allocated_bytes() - before < 6 * image_bytes
