"""A small job with an engine without a model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchcap.config import InputConfig, JobConfig, OperationsConfig, PlacementConfig
from batchcap.engines.base import EngineLoad
from batchcap.job.run import run_job
from batchcap.job.stop import StopRequest
from batchcap.job.summary import Summary
from batchcap.store.folder import JobFolder
from tests.fake_engine import FakeEngine, SilentProgress, fake_bundle

ROWS = 23


def small_job(folder: Path, output: str = "out", **told: Any) -> JobConfig:
    """A job of 23 rows, every tenth of them bad, in parts of five; `told` are its settings of operations."""
    table = folder / "in.parquet"
    if not table.exists():
        keys = [f"bad-{row}" if row % 10 == 2 else f"row-{row}" for row in range(ROWS)]
        pq.write_table(pa.table({"path": ["x.png"] * ROWS, "key": keys}), table)
    return JobConfig(
        InputConfig((str(table),), id_column="key"),
        str(folder / output),
        model="fake",
        placement=PlacementConfig(rows_per_part=5),
        operations=OperationsConfig(**told),
    )


class Watcher(SilentProgress):
    """Does something after each look at the engine."""

    def __init__(self, look: Callable[[int], None]) -> None:
        self._look = look

    def advance(self, done: int, failed: int, images: int, load: EngineLoad) -> None:
        self._look(done)


class Stopping:
    """Gives a request to stop that a test has."""

    def __init__(self, request: StopRequest) -> None:
        self._request = request

    def __enter__(self) -> StopRequest:
        return self._request

    def __exit__(self, *_error: object) -> None: ...


def run_small(
    config: JobConfig,
    engine: FakeEngine | None = None,
    look: Callable[[int], None] = lambda _done: None,
    stop: StopRequest | None = None,
) -> Summary:
    """Run it."""
    stopping: Any = Stopping(stop or StopRequest())
    return run_job(
        config, Watcher(look), lambda _config: engine or FakeEngine(), lambda _model: fake_bundle(), stopping
    )  # type: ignore[arg-type, return-value]


def summary_of(config: JobConfig) -> dict[str, Any]:
    """`summary.json`."""
    content: dict[str, Any] = json.loads(JobFolder(Path(config.output)).summary_path.read_text())
    return content
