"""Folders of images with metadata, jobs of them, and what these carry."""

import csv
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap.config import InputConfig, JobConfig, PlacementConfig
from batchcap.inputs.discover import discover
from batchcap.job import run as job
from batchcap.job.plan import Plan
from batchcap.job.run import run_job
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
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


def run(config: JobConfig, engine: FakeEngine | None = None) -> FakeEngine:
    engine = engine or FakeEngine()
    run_job(config, SilentProgress(), lambda _config: engine)
    return engine


def output_of(config: JobConfig) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in JobFolder(Path(config.output)).part_paths()]
    rows: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
    return rows


def job_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> JobConfig:
    """A job that carries all columns, in parts of two rows."""
    monkeypatch.setattr(job, "load_bundle", lambda _model: fake_bundle())
    monkeypatch.setattr("batchcap.job.recorder.FLUSH_ROWS", 1)
    return JobConfig(
        InputConfig((str(folder),), keep_columns=("*",)),
        str(folder.parent / "out"),
        placement=PlacementConfig(rows_per_part=2),
    )
