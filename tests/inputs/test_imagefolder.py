"""Imagefolders of Hugging Face: a metadata file describes the images in its folder and below, and is no input."""

import csv
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from batchcap.config import InputConfig, JobConfig, PlacementConfig, ResumeConfig
from batchcap.core.errors import ChangedInputError, UsageError
from batchcap.inputs import imagefolder
from batchcap.inputs.discover import discover
from batchcap.inputs.imagefolder import Metadata
from batchcap.job import run as job
from batchcap.job.plan import Plan
from batchcap.job.run import run_job
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.parts import write_part
from tests.fake_engine import FakeEngine, SilentProgress, fake_bundle

FORMS = ("jsonl", "csv", "parquet")
IMAGES = ("a.png", "b.png", "sub/c.png", "sub/deep/d.png")


def write(path: Path, rows: Sequence[dict[str, Any]], group_rows: int = 2) -> Path:
    """A metadata file, in the format of its suffix; all rows have the same keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=group_rows)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_images(folder: Path, names: Sequence[str] = IMAGES) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def described(names: Sequence[str] = IMAGES) -> list[dict[str, Any]]:
    return [{"file_name": name, "text": f"of {name}", "label": place} for place, name in enumerate(names)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_images(tmp_path / "in")
    return tmp_path / "in"


@contextmanager
def planned(folder: Path, *keep: str, inputs: tuple[str, ...] = (), rows_per_part: int = 3) -> Iterator[Plan]:
    config = InputConfig(inputs or (str(folder),), keep_columns=keep)
    journal = Path(tempfile.mkdtemp(dir=folder.parent)) / "journal.sqlite"
    with closing(Journal.open(journal)) as opened:
        plan = Plan(opened, config)
        plan.extend(discover(config, folder.parent / "out"), rows_per_part, 0)
        yield plan


def rows_of(plan: Plan) -> dict[str, dict[str, Any]]:
    """The carried values of each row, by its id."""
    found: dict[str, dict[str, Any]] = {}
    for shard in plan.shards():
        ids = [row.id for row in plan.shard_rows(shard)]
        table = plan.shard_columns(shard)
        assert table is not None
        assert len(table) == len(ids)
        found.update(zip(ids, table.to_pylist(), strict=True))
    return found


def carried(folder: Path, *keep: str, inputs: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    with planned(folder, *keep, inputs=inputs) as plan:
        return rows_of(plan)


@pytest.fixture
def config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> JobConfig:
    monkeypatch.setattr(job, "load_bundle", lambda _model: fake_bundle())
    monkeypatch.setattr("batchcap.job.recorder.FLUSH_ROWS", 1)
    return JobConfig(
        InputConfig((str(folder),), keep_columns=("*",)),
        str(folder.parent / "out"),
        placement=PlacementConfig(rows_per_part=2),
    )


def run(config: JobConfig, engine: FakeEngine | None = None) -> FakeEngine:
    engine = engine or FakeEngine()
    run_job(config, SilentProgress(), lambda _config: engine)
    return engine


def output_of(config: JobConfig) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in JobFolder(Path(config.output)).part_paths()]
    rows: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
    return rows


class _KilledError(BaseException):
    """The end of the process, as far as the code can tell."""


@pytest.mark.parametrize("form", FORMS)
def test_after_a_kill_the_columns_are_those_of_a_job_without_one(
    config: JobConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    write(folder / f"metadata.{form}", described()[::-1])
    whole = replace(config, output=f"{config.output}-whole")
    run(whole)
    with monkeypatch.context() as killing:
        killing.setattr("batchcap.job.part_writer.write_part", _die_at_the_first_part)
        with pytest.raises(_KilledError):
            run(config)
    assert len(output_of(config)) == 2
    run(config)
    assert output_of(config) == output_of(whole)
    assert [(row["id"], row["text"], row["label"]) for row in output_of(config)] == [
        (name, f"of {name}", place) for place, name in enumerate(IMAGES)
    ]


def _die_at_the_first_part(path: Path, *arguments: Any) -> None:
    if path.name == "part-00000.parquet":  # the engine gives its rows back from the last to the first
        raise _KilledError
    write_part(path, *arguments)


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


@settings(max_examples=25, deadline=None)
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


def test_a_job_that_has_rows_of_it_goes_on(
    config: JobConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As earlier versions planned it; neither lost nor doubled, and a change is noticed."""
    config = replace(config, input=InputConfig((str(folder),)))
    write(folder / "metadata.parquet", described())
    with monkeypatch.context() as earlier:
        earlier.setattr("batchcap.inputs.discover.PARQUET_NAME", "none")
        run(replace(config, limits=replace(config.limits, limit=4)))
    assert [row["id"] for row in output_of(config)[2:]] == ["metadata.parquet:0", "metadata.parquet:1"]
    make_images(folder, ["new.png"])
    run(config)
    ids = [row["id"] for row in output_of(config)]
    assert ids == [*IMAGES[:2], *(f"metadata.parquet:{row}" for row in range(4)), *IMAGES[2:], "new.png"]
    write(folder / "metadata.parquet", described()[:3])
    with pytest.raises(ChangedInputError, match="had 4 rows when this job began and has 3 now"):
        run(config)


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


def test_metadata_that_is_gone_leaves_what_was_carried(
    config: JobConfig, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(config, input=InputConfig((str(folder),), keep_columns=("text",)))
    make_images(folder, ["bad.png"])
    names = sorted([*IMAGES, "bad.png"])
    path = write(folder / "metadata.jsonl", described(names))
    run(config)
    path.unlink()
    make_images(folder, ["z.png"])
    with caplog.at_level(logging.WARNING):
        run(replace(config, resume=ResumeConfig(("failed",))))
    assert "no input has a column text now: it is null" in caplog.text
    assert {row["id"]: row["text"] for row in output_of(config)} == {name: f"of {name}" for name in names} | {
        "z.png": None
    }


def test_text_beside_an_image(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "a.txt").write_text("of a\n")
    (folder / "b.txt").write_bytes(b"\xff")
    os.mkfifo(folder / "sub/c.txt")
    (folder / "sub/deep/d.json").write_text('{"tags": []}')
    found = carried(folder, "txt", "json")
    assert [value["txt"] for value in found.values()] == ["of a\n", None, None, None]
    assert [value["json"] for value in found.values()] == [None, None, None, '{"tags": []}']
    assert "column 'txt' is null where the file beside an image can't be read, first for" in caplog.text
    (folder / "a.txt").write_bytes(b"x" * (1 << 20))
    (folder / "b.txt").write_bytes(b"x" * ((1 << 20) + 1))
    assert [value["txt"] and len(value["txt"]) for value in carried(folder, "txt").values()] == [
        1 << 20,
        None,
        None,
        None,
    ]


def test_text_is_carried_where_it_is_named(folder: Path) -> None:
    with pytest.raises(UsageError, match="no input has a column 'txt'"):
        carried(folder, "txt")
    (folder / "a.txt").write_text("beside")
    write(folder / "metadata.jsonl", described())
    assert carried(folder, "*")["a.png"] == {"text": "of a.png", "label": 0}
    assert carried(folder, "txt", "*")["a.png"] == {"txt": "beside", "text": "of a.png", "label": 0}


def test_captions_beside_images_are_not_carried_by_a_retry(config: JobConfig, folder: Path) -> None:
    """Who captions a folder anew has other text there by then."""
    config = replace(config, input=InputConfig((str(folder),), keep_columns=("txt",)))
    make_images(folder, ["bad.png"])
    for name in ("a", "b", "bad"):
        (folder / f"{name}.txt").write_text(f"first {name}")
    run(config)
    (folder / "a.txt").write_text("second")
    run(replace(config, resume=ResumeConfig(("failed",))))
    texts = {row["id"]: row["txt"] for row in output_of(config)}
    assert texts == {name: f"first {Path(name).stem}" if "/" not in name else None for name in (*IMAGES, "bad.png")}


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
