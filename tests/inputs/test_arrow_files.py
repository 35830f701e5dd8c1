"""Arrow files and streams: the same rows as a Parquet file of the same table, in any range, and damage is told."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import feather

from batchcap.core.errors import UsageError
from batchcap.inputs.arrow_files import ArrowFiles, ArrowTable, files_of_dataset
from batchcap.inputs.table_rows import RowReader
from tests.images.samples import encode, noise
from tests.inputs.parquets import IMAGE_STRUCT, data_of
from tests.inputs.test_parquet import carried, planned, rows_of

Write = Callable[[Path, pa.Table, int], Path]


def write_file(path: Path, table: pa.Table, batch_rows: int) -> Path:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return path


def write_stream(path: Path, table: pa.Table, batch_rows: int) -> Path:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return path


def write_feather(path: Path, table: pa.Table, batch_rows: int) -> Path:
    feather.write_feather(table, path, compression="zstd", chunksize=batch_rows)
    return path


WRITERS = {"file": write_file, "stream": write_stream, "feather": write_feather}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHCAP_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_images_and_columns(tmp_path: Path, write: Write) -> None:
    images = [{"bytes": bytes([row]), "path": None} for row in range(7)]
    table = pa.table({"image": pa.array(images, IMAGE_STRUCT), "n": range(7)})
    path = write(tmp_path / "a.arrow", table, 3)
    with planned(tmp_path, inputs=(str(path),), keep_columns=("*",)) as plan:
        assert [data_of(row) for row in rows_of(plan)] == [bytes([row]) for row in range(7)]
        assert pa.concat_tables(carried(plan))["n"].to_pylist() == list(range(7))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(list(WRITERS)), st.integers(1, 30), st.integers(1, 9), st.integers(1, 9),
    st.lists(st.tuples(st.integers(0, 29), st.integers(1, 30)), max_size=4),
)  # fmt: skip
def test_any_ranges(
    tmp_path_factory: pytest.TempPathFactory, name: str, rows: int, batch_rows: int, at_once: int,
    ranges: list[tuple[int, int]],
) -> None:  # fmt: skip
    path = WRITERS[name](tmp_path_factory.mktemp("arrow") / "a.arrow", pa.table({"n": range(rows)}), batch_rows)
    table = ArrowTable(path)
    assert sum(table.group_rows) == rows
    reader = RowReader(table, ["n"], at_once)
    for low, most in ranges:
        start = min(low, rows - 1)
        count = min(most, rows - start)
        found = [one for batch in reader.read(start, count) for one in batch["n"].to_pylist()]
        assert found == list(range(start, start + count))


def test_a_known_stream_is_not_read_to_be_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_stream(tmp_path / "a.arrow", pa.table({"image": [b"x"] * 9}), 2)
    assert ArrowFiles.count_records(path) == 9
    monkeypatch.setattr(ArrowTable, "_stream", lambda _self: pytest.fail("it is read again"))
    assert ArrowFiles.count_records(path) == 9


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_cut_at_every_byte(tmp_path: Path, write: Write) -> None:
    """Refused, or as many rows as were counted; never a crash."""
    content = write(tmp_path / "whole.arrow", pa.table({"image": [b"x", b"yy", b"zzz"]}), 1).read_bytes()
    path = tmp_path / "a.arrow"
    for end in range(0, len(content), 3):
        path.write_bytes(content[:end])
        try:
            table = ArrowTable(path)
        except UsageError:
            continue
        pieces = list(RowReader(table, ["image"], 2).read(0, sum(table.group_rows))) if sum(table.group_rows) else []
        assert sum(map(len, pieces)) == sum(table.group_rows)


PATCHES = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8)), min_size=1, max_size=5
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(WRITERS)), PATCHES)
def test_any_damage(tmp_path_factory: pytest.TempPathFactory, name: str, damage: list[tuple[float, bytes]]) -> None:
    folder = tmp_path_factory.mktemp("damage")
    images = pa.array([{"bytes": b"x" * row, "path": "é" * row} for row in range(6)], IMAGE_STRUCT)
    content = bytearray(WRITERS[name](folder / "a.arrow", pa.table({"image": images}), 2).read_bytes())
    for share, patch in damage:
        place = int(share * len(content))
        content[place : place + len(patch)] = patch
    (folder / "b.arrow").write_bytes(content)
    try:
        table = ArrowTable(folder / "b.arrow")
        total = sum(table.group_rows)
        if table.schema.names == ["image"] and 0 < total < 1000:
            pieces = list(RowReader(table, ["image"], 2).read(0, total))
            assert sum(map(len, pieces)) == total
    except UsageError:
        pass


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"FEA1" + b"\0" * 40, "the old Feather format, version 1"),
        (b"", "can't read the Arrow file"),
        (b"x" * 99, "can't"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "a.arrow").write_bytes(content)
    with pytest.raises(UsageError, match=text):
        ArrowTable(tmp_path / "a.arrow")


def test_a_stream_with_dictionaries_says_what_to_do(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array(["a.png"]).dictionary_encode()})
    with pytest.raises(UsageError, match="write it again as an Arrow file or as Parquet"):
        ArrowTable(write_stream(tmp_path / "a.arrow", table, 1))
    assert ArrowTable(write_file(tmp_path / "b.arrow", table, 1)).group_rows == [1]


def test_the_files_of_a_saved_dataset(tmp_path: Path) -> None:
    assert files_of_dataset(tmp_path / "none") is None
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    assert files_of_dataset(tmp_path) == {"data-00000-of-00001.arrow"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other/state.json").write_text('{"_data_files": 3}')
    assert files_of_dataset(tmp_path / "other") is None


def test_a_dataset_saved_by_hugging_face_is_found_in_its_folder(tmp_path: Path) -> None:
    """Both splits, with the split as a column, and none of the caches that lie beside them."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    images = [{"bytes": encode(noise(width, 9)), "path": None} for width in (10, 11, 12)]
    data = datasets.Dataset.from_dict({"image": images, "label": [5, 6, 7]}, features=features)
    datasets.DatasetDict(train=data, test=data.select([1])).save_to_disk(tmp_path / "in")
    shutil.copy(next((tmp_path / "in/train").glob("data-*.arrow")), tmp_path / "in/train/cache-0123.arrow")
    with planned(tmp_path / "in", keep_columns=("*",)) as plan:
        rows, columns = rows_of(plan), pa.concat_tables(carried(plan))
    assert [row.id for row in rows] == [
        "test/data-00000-of-00001.arrow:0",
        *(f"train/data-00000-of-00001.arrow:{row}" for row in range(3)),
    ]
    assert [data_of(row) for row in rows] == [images[place]["bytes"] for place in (1, 0, 1, 2)]
    assert columns.to_pydict() == {"label": [6, 5, 6, 7], "split": ["test", "train", "train", "train"]}


def test_other_arrow_files_are_taken_by_name_only(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_file(tmp_path / "in/a.feather", pa.table({"image": [b"x"]}), 1)
    with pytest.raises(UsageError, match=r"name a \.feather file itself"), planned(tmp_path / "in"):
        pass
    with planned(tmp_path, inputs=(str(tmp_path / "in/*.feather"),)) as plan:
        assert [row.id for row in rows_of(plan)] == ["a.feather:0"]
