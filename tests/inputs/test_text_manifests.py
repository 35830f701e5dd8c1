"""Manifests of text in a job: named and not found, planned once, resumed where they stopped; one of each kind."""

import json
import logging
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcap.config import ImagesOf, InputConfig, JobConfig, PlacementConfig
from batchcap.core.errors import ChangedInputError, UsageError
from batchcap.core.records import Failure, Outcome, Request
from batchcap.engines import fake
from batchcap.inputs.discover import discover
from batchcap.inputs.skipped import Skipped
from batchcap.job import run as job
from batchcap.job.plan import Plan
from batchcap.job.run import run_job
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from tests.fake_engine import FakeEngine, SilentProgress, fake_bundle
from tests.inputs.test_any_manifest import read_all
from tests.inputs.texts import small_steps

SUFFIXES = ("jsonl", "ndjson", "csv", "tsv")


def write(path: Path, rows: list[tuple[str, int]], *, broken: int | None = None) -> Path:
    """A manifest of images and numbers, of the kind that its suffix says; one of its rows may be broken."""
    if path.suffix in {".jsonl", ".ndjson"}:
        lines = [json.dumps({"image": image, "number": number}) for image, number in rows]
        if broken is not None:
            lines[broken] = '{"image":'
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        lines = [f"{image}{separator}{number}" for image, number in rows]
        if broken is not None:
            lines[broken] = "x"
        lines.insert(0, f"image{separator}number")
    path.write_text("\n".join(lines))
    return path


def sources(*inputs: Path) -> list[str]:
    found = discover(InputConfig(tuple(map(str, inputs))), inputs[0].parent / "out")
    return [f"{source.kind} {source.id} {source.rows}" for source in found]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_manifest_beside_images_is_taken_only_where_it_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    """As of images, which have always been captioned without the tables beside them."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").touch()
    manifest = write(folder / f"labels.{suffix}", [("a.png", 1), ("b.png", 2)])
    write(folder / f"_labels.{suffix}", [("a.png", 1)])
    kind = {"ndjson": "jsonl"}.get(suffix, suffix)
    for given_name in (folder, tmp_path / "i*", folder / "*", folder / "**"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert [one.rpartition(" ")[0] for one in sources(given_name)] in (["image a.png"], ["image in/a.png"])
        assert f"2 other files skipped (.{suffix} 2); name a .{suffix} file itself to caption its rows" in caplog.text
    for given_name in (manifest, folder / f"l*.{suffix}", folder / f"*.{suffix}"):
        assert sources(given_name) == [f"{kind} labels.{suffix} 2"]
    skipped = Skipped()
    assert len(list(discover(InputConfig((str(folder), str(manifest))), tmp_path / "out", skipped))) == 2
    assert skipped.others == {f".{suffix}": 2}


def test_a_folder_with_manifests_alone_says_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [("a.png", 1)])
    (tmp_path / "b.txt").touch()
    with pytest.raises(UsageError, match=r"no image and no Parquet file in .*; name a \.csv file itself to caption"):
        sources(tmp_path)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(SUFFIXES), st.integers(0, 12)), min_size=1, max_size=3),
    st.integers(1, 9),
    st.integers(1, 8),
    st.lists(st.integers(1, 20), max_size=2),
)
def test_each_row_once_with_its_own_columns(
    files: list[tuple[str, int]], group_rows: int, rows_per_part: int, limits: list[int]
) -> None:
    expected = [(f"{number}/{row}.png", row) for number, (_suffix, rows) in enumerate(files) for row in range(rows)]
    if not expected:
        return
    with tempfile.TemporaryDirectory() as name, small_steps(group_rows, 30):
        paths = []
        for number, (suffix, rows) in enumerate(files):
            path = Path(name) / f"{number}.{suffix}"
            paths.append(str(write(path, [(f"{number}/{row}.png", row) for row in range(rows)])))
        config = InputConfig(tuple(paths), image_column=None, keep_columns=("*",))
        with closing(Journal.open(Path(name) / "journal.sqlite")) as journal:
            for limit in (*limits, 0):  # a job that is extended
                plan = Plan(journal, config)
                plan.extend(discover(config, Path(name) / "out"), rows_per_part, limit)
            rows_found, columns = read_all(plan)
    assert [(row.image.path.removeprefix(f"{name}/"), row.row) for row in rows_found] == expected
    assert columns == [{"number": row} for _image, row in expected]


def test_lists_and_names_of_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As in other tables; what can't be read has no columns, and no warning besides its own failure."""
    folder = tmp_path / "split=train"
    folder.mkdir()
    lines = ['{"images":["a.png","b.png"],"n":1}', "{", '{"images":[],"n":2}']
    (folder / "a.jsonl").write_text("\n".join(lines))
    config = InputConfig((str(folder / "a.jsonl"),), keep_columns=("*",), images=ImagesOf.EACH)
    with closing(Journal.open(tmp_path / "journal.sqlite")) as journal:
        plan = Plan(journal, config)
        plan.extend(discover(config, tmp_path / "out"), 9, 0)
        rows, columns = read_all(plan)
    assert [row.image and Path(row.image.path).name for row in rows] == ["a.png", "b.png", None, None]
    assert [row.failure and row.failure[0] for row in rows] == [None, None, "unreadable", None]
    numbers, split = [1, 1, None, 2], ["train", "train", None, "train"]
    assert columns == [{"n": n, "split": name} for n, name in zip(numbers, split, strict=True)]
    assert not caplog.records


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobConfig:
    """A job of 14 rows of each kind, one of which is broken."""
    monkeypatch.setattr(job, "load_bundle", lambda _model: fake_bundle())
    paths = [
        str(write(tmp_path / f"{suffix}.{suffix}", [(f"{row}.png", row) for row in range(14)], broken=5))
        for suffix in SUFFIXES
    ]
    given_inputs = InputConfig(tuple(paths), keep_columns=("number",))
    return JobConfig(given_inputs, str(tmp_path / "out"), placement=PlacementConfig(rows_per_part=9))


def seen(request: Request) -> Outcome:
    """A caption, or the failure that the row has already."""
    if request.row.failure is None:
        return fake.outcome_of(request)
    return Outcome(request, Failure(request.index, *request.row.failure))


def run(config: JobConfig, dies_after: int | None = None) -> list[int]:
    """The rows that a run gave to its engine."""
    engine = FakeEngine(dies_after=dies_after, end=seen)
    run_job(config, SilentProgress(), lambda _config: engine)
    return engine.submitted


def rows_of(config: JobConfig) -> list[dict[str, Any]]:
    found = [pq.read_table(path) for path in JobFolder(Path(config.output)).part_paths()]
    names = ("id", "source", "row", "status", "error_kind", "error_message", "caption", "number")
    rows: list[dict[str, Any]] = pa.concat_tables(found).select(names).to_pylist()
    return rows


@pytest.mark.parametrize("dies_after", [1, 17, 40])
def test_an_interrupted_job_ends_as_one_that_was_not(config: JobConfig, dies_after: int) -> None:
    with small_steps(4, 30):
        with pytest.raises(Exception, match="was killed by signal 9"):
            run(config, dies_after)
        again = run(config)
        interrupted = rows_of(config)
        whole = JobConfig(config.input, f"{config.output}-2", placement=config.placement)
        run(whole)
    assert len(again) < 4 * 14
    assert interrupted == rows_of(whole)
    assert [row["row"] for row in interrupted] == list(range(14)) * 4
    assert [row["number"] for row in interrupted] == [None if row == 5 else row for row in range(14)] * 4
    broken = [row for row in interrupted if row["row"] == 5]
    assert {row["error_kind"] for row in broken} == {"unreadable"}
    assert [row["error_message"].split(" of ")[0] for row in broken] == ["line 6", "line 6", "line 7", "line 7"]
    assert all(row["source"] in row["error_message"] for row in broken)


def test_a_manifest_that_has_changed_is_noticed(config: JobConfig) -> None:
    run(config)
    path = Path(config.input.inputs[2])
    path.write_text(path.read_text().replace("\n0.png,0", ""))
    with pytest.raises(ChangedInputError, match=r"csv\.csv had 14 rows and has 13 now"):
        run(config)
