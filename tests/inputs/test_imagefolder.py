"""Imagefolders of Hugging Face: a metadata file describes the images in its folder and below, and is no input."""

import json
import logging
import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from batchcap.core.errors import UsageError
from batchcap.inputs import imagefolder
from batchcap.inputs.imagefolder import Metadata
from tests.inputs.imagefolders import (
    FORMS,
    IMAGES,
    carried,
    described,
    make_images,
    planned,
    rows_of,
    write,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_images(tmp_path / "in")
    return tmp_path / "in"


@pytest.mark.parametrize("form", FORMS)
def test_each_image_has_the_columns_of_its_row(folder: Path, form: str) -> None:
    write(folder / f"metadata.{form}", described(IMAGES[1:]))
    nothing = {"text": None, "label": None}
    expected = {name: {"text": f"of {name}", "label": place} for place, name in enumerate(IMAGES[1:])}
    assert carried(folder, "*") == {"a.png": nothing, **expected}
    assert carried(folder, "label", "file_name")["sub/c.png"] == {"label": 1, "file_name": "sub/c.png"}
    with planned(folder, "label") as plan:
        assert plan.total_rows == len(IMAGES)
        assert [table.schema.types for table in map(plan.shard_columns, plan.shards()) if table] == [[pa.int64()]] * 2


def test_the_nearest_file_counts_up_to_the_input(tmp_path: Path, folder: Path) -> None:
    write(tmp_path / "metadata.jsonl", [{"file_name": f"in/{name}", "above": 1} for name in IMAGES])
    write(folder / "metadata.jsonl", described())
    write(folder / "sub/metadata.csv", [{"file_name": "deep/d.png", "text": "of the nearest"}])
    found = carried(folder, "*")
    assert found["b.png"] == {"text": "of b.png", "label": 1}
    assert found["sub/c.png"] == {"text": None, "label": None}
    assert found["sub/deep/d.png"] == {"text": "of the nearest", "label": None}
    one = str(folder / "sub/deep/*.png")
    with pytest.raises(UsageError, match="no input has a column 'text'"):
        carried(folder, "text", inputs=(one,))
    assert carried(folder, "text", inputs=(one, str(folder)))["d.png"] == {"text": "of the nearest"}


def test_splits_have_their_own(tmp_path: Path) -> None:
    for split in ("train", "test"):
        make_images(tmp_path / "in" / split, ["0.png", "1.png"])
        rows = [{"file_name": f"{number}.png", "text": f"{split} {number}"} for number in (1, 0)]
        write(tmp_path / "in" / split / "metadata.jsonl", rows)
    found = carried(tmp_path / "in", "text")
    assert [value["text"] for value in found.values()] == ["test 0", "test 1", "train 0", "train 1"]


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(FORMS),
    st.permutations(range(9)),
    st.sets(st.integers(0, 8)),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_in_any_order_each_image_has_its_own(
    form: str, order: list[int], unlisted: set[int], group_rows: int, rows_per_part: int
) -> None:
    names = [f"{'x/' if number % 3 else ''}{number}.png" for number in range(9)]
    rows = [{"file_name": names[number], "n": number} for number in order if number not in unlisted]
    if not rows:
        return
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr("batchcap.inputs.text_groups.MAX_GROUP_ROWS", group_rows)
        patch.setattr(imagefolder, "SMALL_BATCH_ROWS", 2)
        make_images(Path(name) / "in", names)
        write(Path(name) / "in" / f"metadata.{form}", rows, group_rows)
        with planned(Path(name) / "in", "n", rows_per_part=rows_per_part) as plan:
            found = {image: value["n"] for image, value in rows_of(plan).items()}
    assert found == {image: None if number in unlisted else number for number, image in enumerate(names)}


@pytest.mark.parametrize("written", ["./sub//c.png", "sub\\c.png", ".\\sub\\c.png", "x/../sub/c.png", "{in}/sub/c.png"])
def test_other_ways_to_write_a_path(folder: Path, written: str) -> None:
    write(folder / "metadata.jsonl", [{"file_name": written.replace("{in}", str(folder)), "n": 1}])
    assert [value["n"] for value in carried(folder, "n").values()] == [None, None, 1, None]


def test_a_file_with_a_back_slash_in_its_name(folder: Path) -> None:
    make_images(folder, ["sub\\c.png"])
    write(folder / "metadata.jsonl", [{"file_name": "sub\\c.png", "n": 1}, {"file_name": "sub/c.png", "n": 2}])
    found = carried(folder, "n")
    assert (found["sub\\c.png"]["n"], found["sub/c.png"]["n"]) == (1, 2)


def test_names_are_compared_where_digests_are_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagefolder, "_hashes", lambda names: np.zeros(len(names), np.uint64))
    write(folder / "metadata.jsonl", described()[::-1])
    assert [value["label"] for value in carried(folder, "label").values()] == [0, 1, 2, 3]


def test_the_first_row_of_an_image_counts(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [("b.png", 1), ("a.png", 2), ("a.png", 3), ("./b.png", 4)]
    write(folder / "metadata.csv", [{"file_name": name, "n": number} for name, number in rows])
    found = carried(folder, "n")
    assert (found["a.png"]["n"], found["b.png"]["n"]) == (2, 1)
    assert [text for text in caplog.messages if "more than once" in text] == [
        f"{folder / 'metadata.csv'} names images more than once, in 2 rows too many: the first row of each counts"
    ]


def test_columns_that_end_in_file_name(folder: Path) -> None:
    write(folder / "metadata.jsonl", [{"left_file_name": "a.png", "right_file_name": "b.png", "n": 1}])
    found = carried(folder, "*")
    assert (found["a.png"], found["b.png"], found["sub/c.png"]) == ({"n": 1}, {"n": 1}, {"n": None})


def test_types_that_can_not_be_taken_from(folder: Path) -> None:
    views = pa.array(["x", "y"], pa.string_view())
    words = pa.array(["u", "v"]).dictionary_encode()
    table = pa.table({"file_name": ["b.png", "a.png"], "view": views, "word": words, "many": [[1], [2, 3]]})
    pq.write_table(table, folder / "metadata.parquet", row_group_size=1)
    found = carried(folder, "*")
    assert found["a.png"] == {"view": "y", "word": "v", "many": [2, 3]}
    assert found["sub/c.png"] == {"view": None, "word": None, "many": None}


@pytest.mark.parametrize("given", ["", "*", "**"])
def test_parquet_metadata_is_no_input_unless_it_is_named(folder: Path, given: str) -> None:
    write(folder / "metadata.parquet", described())
    with planned(folder, inputs=(str(folder / given),)) as plan:
        assert [row.id for shard in plan.shards() for row in plan.shard_rows(shard)] == list(IMAGES)
    for name in ("metadata.parquet", "*.parquet"):
        with planned(folder, inputs=(str(folder / name),)) as plan:
            assert plan.kinds() == {"parquet"}


@pytest.mark.parametrize("has_images", [True, False])
def test_a_table_that_is_called_so_stays_one(tmp_path: Path, has_images: bool) -> None:
    (tmp_path / "in").mkdir()
    name = "path" if has_images else "file_name"
    make_images(tmp_path / ("in" if has_images else "other"), ["a.png"])
    pq.write_table(pa.table({name: ["../other/a.png"] * 2}), tmp_path / "in/metadata.parquet")
    with planned(tmp_path / "in") as plan:
        assert plan.total_rows == 2 + has_images


@pytest.mark.parametrize("form", FORMS)
def test_what_can_not_be_read_stops_only_who_asks_for_it(
    folder: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken = {"jsonl": b'\xff\xfe{\0"\0', "csv": b"\xff\xfef\0", "parquet": b"PAR1 broken"}
    (folder / f"metadata.{form}").write_bytes(broken[form])
    for keep in ("*", "text"):
        with pytest.raises(UsageError, match=f"metadata.{form}"):
            carried(folder, keep)
    with caplog.at_level(logging.WARNING), planned(folder) as plan:
        assert plan.total_rows == len(IMAGES)
    assert f"metadata.{form}" in caplog.text or form != "parquet"


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_table_without_names_of_images_is_passed_over(folder: Path, name: str) -> None:
    write(folder / "sub" / name, [{"path": "c.png", "text": "x"}])
    write(folder / "metadata.jsonl", described())
    assert carried(folder, "text")["sub/c.png"] == {"text": "of sub/c.png"}


def test_damaged_rows_cost_their_own_columns(folder: Path) -> None:
    lines = [json.dumps(row) for row in described()]
    (folder / "metadata.jsonl").write_text("\n".join([lines[0], "{", *lines[1:]]))
    assert [value["label"] for value in carried(folder, "label").values()] == [0, 1, 2, 3]


def test_a_name_that_nothing_has_is_refused(folder: Path) -> None:
    write(folder / "metadata.jsonl", described())
    with pytest.raises(UsageError, match=r"no input has a column 'lable' \(--keep-columns\), only text: correct"):
        carried(folder, "text", "lable")
    write(folder / "metadata.jsonl", [{"file_name": "a.png", "same": 1}])
    pq.write_table(pa.table({"file_name": ["c.png"], "same": ["x"]}), folder / "sub/metadata.parquet")
    with pytest.raises(
        UsageError, match=r"column 'same' is int64 in .*in/metadata\.jsonl and string in .*sub/metadata"
    ):
        carried(folder, "*")


def test_a_value_that_does_not_fit_is_told_before_the_work(folder: Path) -> None:
    day = pa.array([2**62], pa.int64()).cast(pa.timestamp("us"))
    pq.write_table(pa.table({"file_name": ["c.png"], "day": day}), folder / "sub/metadata.parquet")
    near = pa.array([1], pa.int64()).cast(pa.timestamp("ns"))
    pq.write_table(pa.table({"file_name": ["a.png"], "day": near}), folder / "metadata.parquet")
    with pytest.raises(UsageError, match=r"column 'day' of .*sub/metadata\.parquet has a value in row 0 that does not"):
        carried(folder, "day")


def test_a_file_that_changes_during_the_work(folder: Path) -> None:
    path = write(folder / "metadata.jsonl", described())
    with planned(folder, "text", "label") as plan:
        assert rows_of(plan)["a.png"] == {"text": "of a.png", "label": 0}
        write(path, [{"file_name": "x", "text": ""}, {"file_name": "a.png", "text": "new"}])
        assert rows_of(plan)["a.png"] == {"text": "new", "label": None}
        path.unlink()
        with pytest.raises(UsageError, match=r"metadata\.jsonl is missing: put it back"):
            rows_of(plan)


def test_the_index_is_kept_and_follows_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder / "metadata.parquet", described())
    first = carried(folder, "label")
    with monkeypatch.context() as again:
        again.setattr(Metadata, "_build_index", lambda _self: pytest.fail("the file is read again"))
        assert carried(folder, "label") == first
    write(path, described()[::-1])
    os.utime(path, ns=(1, 1))
    assert carried(folder, "label")["a.png"] == {"label": 0}


@pytest.mark.parametrize("form", FORMS)
def test_datasets_reads_the_same_pairs(tmp_path: Path, form: str) -> None:
    import datasets  # noqa: PLC0415 - it takes a second

    for split in ("train", "test"):
        for number, name in enumerate(("0.png", "x/1.png", "x/2.png")):
            path = tmp_path / "in" / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2), (number, 0, 0)).save(path)
        rows = [{"file_name": name, "text": f"{split} {name}"} for name in ("x/2.png", "0.png", "x/1.png")]
        write(tmp_path / "in" / split / f"metadata.{form}", rows)
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "in"), cache_dir=cache)
    pairs = {}
    for split in loaded.values():
        for row in split.cast_column("image", datasets.Image(decode=False)):
            pairs[os.path.relpath(row["image"]["path"], tmp_path / "in")] = row["text"]
    assert {name: value["text"] for name, value in carried(tmp_path / "in", "text").items()} == pairs
    assert len(pairs) == 6
