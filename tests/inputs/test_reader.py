"""Kinds of inputs: a new one is a class and a line in the registry, and nothing outside `inputs` knows any of them."""

import ast
import logging
import os
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchcap
from batchcap.config import InputConfig, JobConfig, PlacementConfig, ResumeConfig
from batchcap.core.errors import ChangedInputError, RowError, UsageError
from batchcap.core.records import Caption, Failure, FinishReason, ImageFacts, Outcome, Request, Verdict
from batchcap.core.sources import Piece
from batchcap.export.quality.images import ImageChoice, input_rows
from batchcap.images.decode import decode
from batchcap.inputs.delimited import CsvFiles, TsvFiles
from batchcap.inputs.discover import discover
from batchcap.inputs.encoded import read_encoded, read_image
from batchcap.inputs.jsonl import JsonlFiles
from batchcap.inputs.parquet import ParquetFiles
from batchcap.inputs.reader import Reader
from batchcap.inputs.registry import READERS
from batchcap.inputs.tar import TarFiles
from batchcap.inputs.zip_archive import ZipFiles
from batchcap.job import run as job
from batchcap.job.plan import Plan
from batchcap.job.run import run_job
from batchcap.job.summary import Summary
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from tests.fake_engine import FakeEngine, SilentProgress, fake_bundle
from tests.images.samples import encode, noise
from tests.inputs.archives import tar_bytes, written, zip_bytes
from tests.inputs.blobs import BlobLists, write_blobs
from tests.inputs.parquets import write_table

PACKAGE = Path(batchcap.__file__).parent
# What the rest of the package knows of `inputs`; all other modules of it are some kind's own.
FOR_ALL = frozenset(
    f"batchcap.inputs.{name}"
    for name in (
        "cells",
        "columns",
        "condition",
        "content",
        "discover",
        "encoded",
        "partitions",
        "passthrough",
        "plugins",
        "raw_files",
        "reader",
        "registry",
        "skipped",
        "source",
        "storage",
        "suffix",
        "table",
        "table_files",
        "table_layout",
        "table_rows",
        "tiff_tags",
    )
)
WIDTHS = [30, 41, 52, 63, 74]


@pytest.fixture
def blobs(monkeypatch: pytest.MonkeyPatch) -> type[BlobLists]:
    """The third kind, in the registry."""
    monkeypatch.setitem(READERS, BlobLists.kind, BlobLists)
    return BlobLists


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blobs: type[BlobLists]) -> JobConfig:
    """A job of an image, five images in a blob, the fourth of them cut off, and a row of a Parquet file."""
    monkeypatch.setattr(job, "load_bundle", lambda _model: fake_bundle())
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(encode(noise(20, 20)))
    images = [encode(noise(width, 20)) for width in WIDTHS]
    images[3] = images[3][:100]
    write_blobs(tmp_path / "in/b.offsets", images)
    write_table(tmp_path / "in/c.parquet", {"image": [encode(noise(99, 20))], "title": ["last"]})
    given = InputConfig((str(tmp_path / "in"),), keep_columns=("title",))
    return JobConfig(given, str(tmp_path / "out"), placement=PlacementConfig(rows_per_part=3))


def seen(request: Request) -> Outcome:
    """What the vision worker does with a row, up to the pixels; its caption is the image's width."""
    try:
        image = read_image(request.row)
        width, height = decode(image.encoded, 10**6).pixels.size
    except RowError as error:
        return Outcome(request, Failure(request.index, error.kind, error.message))
    caption = Caption(request.index, (1,), str(width), FinishReason.STOP, Verdict.OK, 9, 4, 3.0, 5.0)
    return Outcome(request, (caption,), ImageFacts(width, height, image.sha256, image.read_ms, 2.0))


def run(config: JobConfig) -> tuple[Summary, list[int]]:
    """What a run gives, and the rows that it captions."""
    engine = FakeEngine(end=seen)
    summary = run_job(config, SilentProgress(), lambda _config: engine)
    return summary, engine.submitted


def rows_of(config: JobConfig) -> list[dict[str, Any]]:
    parts = JobFolder(Path(config.output)).part_paths()
    rows: list[dict[str, Any]] = pa.concat_tables([pq.read_table(path) for path in parts]).to_pylist()
    return rows


def test_the_names_that_plans_store_are_those_of_all_jobs_before() -> None:
    assert {kind: (reader.kind, reader.is_container) for kind, reader in READERS.items()} == {
        "image": ("image", False),
        "parquet": ("parquet", True),
        "arrow": ("arrow", True),
        "jsonl": ("jsonl", True),
        "csv": ("csv", True),
        "tsv": ("tsv", True),
        "tar": ("tar", True),
        "zip": ("zip", True),
    }


def test_no_suffix_has_two_readers() -> None:
    found = [suffix for reader in READERS.values() for suffix in reader.suffixes]
    assert len(found) == len(set(found))
    assert all(re.fullmatch(r"\.[a-z0-9]+(\.gz)?", suffix) for suffix in found)


def test_a_new_kind_is_found_planned_read_and_captioned(config: JobConfig) -> None:
    source = Path(config.input.inputs[0])
    summary, submitted = run(config)
    assert (summary.counts.ok, summary.counts.failed, submitted) == (6, 1, list(range(7)))
    rows = rows_of(config)
    assert [row["caption"] for row in rows] == ["20", "30", "41", "52", None, "74", "99"]
    assert [row["id"] for row in rows] == ["a.png", *(f"b.offsets:{row}" for row in range(5)), "c.parquet:0"]
    assert [row["row"] for row in rows] == [0, 0, 1, 2, 3, 4, 0]
    assert {row["source"] for row in rows[1:6]} == {str(source / "b.offsets")}
    assert [row["error_kind"] for row in rows if row["status"] == "failed"] == ["corrupt"]
    assert [row["title"] for row in rows] == [None] * 6 + ["last"], "kinds without columns have nulls"
    assert run(config)[1] == [], "a resume finds the same plan"


def test_a_new_kind_changes_and_is_missed_as_a_whole(config: JobConfig, caplog: pytest.LogCaptureFixture) -> None:
    run(config)
    path = Path(config.input.inputs[0]) / "b.offsets"
    os.utime(path, (5, 5))
    assert run(config)[1] == [], "it looks otherwise, and its images are the same"
    write_blobs(path, [encode(noise(width + 1, 20)) for width in WIDTHS])
    with pytest.raises(ChangedInputError, match=r"b\.offsets has changed .*row 0: its image is another one"):
        run(config)
    path.unlink()
    caplog.set_level(logging.WARNING)
    again = JobConfig(config.input, config.output, placement=config.placement, resume=ResumeConfig(retry=("failed",)))
    assert run(again)[1] == []
    assert "1 rows can't be retried: their blob lists no longer exist" in caplog.text


def test_a_plan_with_a_kind_of_a_later_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_blobs(tmp_path / "b.offsets", [b"x", b"y"])
    config = InputConfig((str(path),))
    with closing(Journal.open(tmp_path / "journal.sqlite")) as journal:
        with monkeypatch.context() as later:
            later.setitem(READERS, BlobLists.kind, BlobLists)
            Plan(journal, config).extend(discover(config, tmp_path / "out"), 9, 0)
        plan = Plan(journal, config)
        (shard,) = plan.shards()
        with pytest.raises(UsageError, match="inputs of the kind 'blob', which this version of batchcap does not read"):
            list(plan.shard_rows(shard))


def test_rows_that_are_not_wanted_are_not_given(tmp_path: Path) -> None:
    """Of all kinds: a piece that begins inside of its source, as the second part of a file does."""
    images = [encode(noise(width, 20)) for width in WIDTHS]
    table = write_table(tmp_path / "a.parquet", {"image": images}, row_group_size=2)
    members = {f"{row}.png": image for row, image in enumerate(images)}
    for name, image in zip("abcde", images, strict=True):
        (tmp_path / name).write_bytes(image)
    (tmp_path / "a.jsonl").write_text("\n".join(f'{{"image":"{name}"}}' for name in "abcde"))
    for suffix in ("csv", "tsv"):
        (tmp_path / f"a.{suffix}").write_text("\n".join(["image", *"abcde"]))
    cases: tuple[tuple[type[Reader], Path], ...] = (
        (ParquetFiles, table),
        (JsonlFiles, tmp_path / "a.jsonl"),
        (CsvFiles, tmp_path / "a.csv"),
        (TsvFiles, tmp_path / "a.tsv"),
        (TarFiles, written(tmp_path / "a.tar", tar_bytes(members))),
        (TarFiles, written(tmp_path / "a.tgz", tar_bytes(members, "w:gz"))),
        (ZipFiles, written(tmp_path / "a.zip", zip_bytes(members))),
        (BlobLists, write_blobs(tmp_path / "b.offsets", images)),
    )
    for reader, path in cases:
        piece = Piece(100, "id", str(path), reader.kind, 1, 4)
        rows = list(reader(InputConfig((str(path),))).rows(piece, [101, 103]))
        assert [(row.index, row.row, read_encoded(row)) for row in rows] == [(101, 2, images[2]), (103, 4, images[4])]


def test_a_new_kind_gives_images_to_an_export(config: JobConfig) -> None:
    """Evenly spread over all rows, whatever source they are of."""
    rows = input_rows(ImageChoice(config.input.inputs, 4), Path(config.output))
    found = [(row.index, row.id, len(read_encoded(row)) > 50) for row in rows]
    assert found == [(0, "a.png", True), (1, "b.offsets:0", True), (2, "b.offsets:2", True), (3, "b.offsets:4", True)]


def test_a_folder_without_anything_names_the_new_kind(config: JobConfig, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/_b.offsets").touch()
    (tmp_path / "none").mkdir()
    (tmp_path / "none/b.offsets").touch()
    for name, message in (
        ("empty", "no image and no Parquet file and no blob list in .*; 1 file skipped that writers of tables"),
        ("none", "no blob list in .* has a row"),
    ):
        with pytest.raises(UsageError, match=message):
            run(JobConfig(InputConfig((str(tmp_path / name),)), config.output))


@pytest.mark.parametrize("name", ["in", "in/b.avro"])
def test_a_suffix_that_was_refused_is_read_once_it_has_a_reader(
    config: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "in/b.offsets").rename(tmp_path / "in/b.avro")
    named = JobConfig(InputConfig((str(tmp_path / "in/b.avro"),)), config.output)
    with pytest.raises(UsageError, match="is a table that batchcap does not read"):
        run(named)
    monkeypatch.setattr(BlobLists, "suffixes", frozenset({".avro"}))
    summary, _submitted = run(JobConfig(InputConfig((str(tmp_path / name),)), config.output))
    assert summary.counts.ok == (6 if name == "in" else 4)


def kinds_named(tree: ast.Module) -> Iterator[str]:
    """What code knows of single kinds: modules and classes of them, and comparisons with their names or suffixes."""
    names = {*READERS, *(suffix for reader in READERS.values() for suffix in reader.suffixes)}
    classes = {reader.__name__ for reader in READERS.values()}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("batchcap.inputs"):
            modules = (
                {node.module}
                if node.module != "batchcap.inputs"
                else {f"{node.module}.{one.name}" for one in node.names}
            )
            yield from modules - FOR_ALL
            yield from classes & {one.name for one in node.names}
        elif isinstance(node, ast.Import):
            yield from {one.name for one in node.names if one.name.startswith("batchcap.inputs")} - FOR_ALL
        elif isinstance(node, ast.Compare | ast.MatchValue | ast.Subscript):
            sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else [node.value]
            sides += [node.slice] if isinstance(node, ast.Subscript) and "READERS" in ast.unparse(node.value) else []
            constants = (
                one for side in sides for one in (side, *getattr(side, "elts", ())) if isinstance(one, ast.Constant)
            )
            yield from (str(one.value) for one in constants if one.value in names)


@pytest.mark.parametrize(
    "code",
    [
        "if source.kind == 'parquet': pass",
        "if source.kind in ('image', 'x'): pass",
        "if path.suffix == '.parquet': pass",
        "match kind:\n    case 'image': pass",
        "READERS['image']",
        "from batchcap.inputs.text_groups import Splitter",
        "from batchcap.inputs import parquet",
        "import batchcap.inputs.files",
        "from batchcap.inputs.registry import ImageFiles",
    ],
)
def test_a_kind_that_is_named_is_seen(code: str) -> None:
    assert list(kinds_named(ast.parse(code)))


def test_nothing_outside_of_the_inputs_names_a_kind() -> None:
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in PACKAGE.rglob("*.py")
        if path.parent != PACKAGE / "inputs" and (names := list(kinds_named(ast.parse(path.read_text()))))
    }
    assert found == {}
