"""What a row costs does not depend on how many rows a job has: statements, rows decoded and memory are counted."""

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap.config import GenerationConfig, InputConfig, JobConfig, PlacementConfig
from batchcap.core.records import Outcome, Request
from batchcap.engines.base import EngineLoad
from batchcap.engines.fake import FakeEngine
from batchcap.job import run as job
from batchcap.job.run import run_job
from batchcap.report.status import read_status
from batchcap.store.journal import Journal
from tests.fake_engine import fake_bundle

pytestmark = pytest.mark.slow

FEW, MANY = 1_000, 10_000
RESUMED = 4_000
ROWS_PER_PART = 500


class Bulk(FakeEngine):
    """Gives back all it has at once, and ends the run after some rows."""

    def __init__(self, last: int | None = None) -> None:
        super().__init__(room=50, per_poll=50)
        self.last = last
        self.taken = 0
        self.first_row: int | None = None

    def submit(self, request: Request) -> None:
        self.taken += 1
        if self.taken == 1:
            self.first_row = request.index
        super().submit(request)

    def poll(self, timeout_s: float) -> list[Outcome]:
        if self.last is not None and self.taken > self.last:
            raise KeyboardInterrupt
        return super().poll(timeout_s)


class Silence:
    """A `Progress` that tells nobody."""

    def start(self, rows: int, done: int) -> None: ...

    def advance(self, done: int, failed: int, images: int, load: EngineLoad) -> None: ...

    def close(self) -> None: ...


@dataclass
class Counts:
    """What a run took: SQLite's steps, rows decoded from Parquet files, the most memory Python held."""

    steps: int = 0
    decoded: int = 0
    peak_bytes: int = 0


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    counted = Counts()
    open_journal, iter_batches = Journal.open, pq.ParquetFile.iter_batches

    def step() -> None:
        counted.steps += 1

    def opened(path: Path) -> Journal:
        journal = open_journal(path)
        journal._connection.set_progress_handler(step, 100)
        return journal

    def decoded(*arguments: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        for batch in iter_batches(*arguments, **options):
            counted.decoded += len(batch)
            yield batch

    monkeypatch.setattr(Journal, "open", opened)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", decoded)
    monkeypatch.setattr(job, "load_bundle", lambda _model: fake_bundle())
    return counted


def parquet(folder: Path, rows: int) -> Path:
    table = pa.table({"path": [f"{row}.png" for row in range(rows)], "label": list(range(rows))})
    pq.write_table(table, folder / "in.parquet", row_group_size=rows)
    return folder / "in.parquet"


def files(folder: Path, rows: int) -> Path:
    for first in range(0, rows, 500):
        (folder / f"in/{first:05d}").mkdir(parents=True)
        for row in range(first, first + 500):
            (folder / f"in/{first:05d}/{row:05d}.png").touch()
    return folder / "in"


def config_of(folder: Path, make_input: Callable[[Path, int], Path], rows: int) -> JobConfig:
    folder.mkdir()
    source = make_input(folder, rows)
    return JobConfig(
        InputConfig((str(source),), keep_columns=("label",) if source.suffix else ()),
        str(folder / "out"),
        generation=GenerationConfig(max_new_tokens=2048),
        placement=PlacementConfig(rows_per_part=ROWS_PER_PART),
    )


def measured(config: JobConfig, engine: FakeEngine, counts: Counts) -> Counts:
    counts.steps = counts.decoded = 0
    gc.collect()
    tracemalloc.start()
    try:
        run_job(config, Silence(), lambda _config: engine)
    except KeyboardInterrupt:
        pass
    finally:
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return Counts(counts.steps, counts.decoded, peak_bytes)


@pytest.mark.parametrize("make_input", [parquet, files])
def test_ten_times_the_rows_cost_ten_times_as_much_and_no_memory(
    tmp_path: Path, counts: Counts, make_input: Callable[[Path, int], Path]
) -> None:
    warm = config_of(tmp_path / "warm", make_input, 500)
    measured(warm, Bulk(), counts)  # imports and caches of libraries are not of the rows
    few, many = (measured(config_of(tmp_path / f"{rows}", make_input, rows), Bulk(), counts) for rows in (FEW, MANY))
    ratio = MANY / FEW
    assert many.steps < 1.3 * ratio * few.steps
    assert (few.decoded, many.decoded) == ((2 * FEW, 2 * MANY) if make_input is parquet else (0, 0))
    if many.peak_bytes >= 1.5 * few.peak_bytes:
        # Now and then Python's table of interned names moves, megabytes after other tests; never twice in a row.
        many = measured(config_of(tmp_path / "again", make_input, MANY), Bulk(), counts)
    assert many.peak_bytes < 1.5 * few.peak_bytes


@pytest.mark.parametrize("make_input", [parquet, files])
def test_a_resume_looks_at_no_row_that_is_in_a_part(
    tmp_path: Path, counts: Counts, make_input: Callable[[Path, int], Path]
) -> None:
    config = config_of(tmp_path / "job", make_input, RESUMED)
    measured(config, Bulk(last=RESUMED // 2), counts)
    done = read_status(Path(config.output)).counts.rows
    assert RESUMED // 2 - 100 < done < RESUMED // 2 + 100
    first_row = Bulk(last=0)
    resumed = measured(config, first_row, counts)
    assert first_row.first_row == done
    assert resumed.decoded <= RESUMED // 2 + ROWS_PER_PART + 1024  # one pass to the place where it goes on
    assert resumed.peak_bytes < 8 * 2**20
