"""Owns `stats.parquet`: samples of every run of a job over time."""

import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchcap.core.atomic import atomic_file

log = logging.getLogger(__name__)

WRITE_INTERVAL_S = 30.0
RATE_WINDOW_S = 120.0
# Samples of the last hour are all kept, of the time before one a minute: a job of weeks rewrites a small file, too.
DETAIL_S = 3600.0
COARSE_INTERVAL_S = 60.0
STAGES = ("read", "vision", "prefill", "decode", "store")

SCHEMA = pa.schema(
    [
        pa.field("run", pa.int32(), nullable=False),
        pa.field("time", pa.timestamp("ms", tz="UTC"), nullable=False),
        pa.field("elapsed_s", pa.float32(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("images", pa.int64()),
        pa.field("new_tokens", pa.int64(), nullable=False),
        *(pa.field(f"{stage}_busy_s", pa.float32(), nullable=False) for stage in STAGES),
        pa.field("reading_rows", pa.int32(), nullable=False),
        pa.field("queue_rows", pa.int32(), nullable=False),
        pa.field("queue_mib", pa.float32(), nullable=False),
        pa.field("decoding_rows", pa.int32(), nullable=False),
        pa.field("memory_mib", pa.float32(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class StatsSample:
    """How a run stands at one moment; counts and busy seconds are totals since its start.

    Attributes:
        elapsed_s: since the start of the command.
        rows: rows finished.
        images: images captioned, copies apart.
        new_tokens: tokens written.
        busy_s: seconds of work by stage, summed over workers.
        reading_rows: rows with the vision worker.
        queue_rows: rows whose features wait for a decoder.
        queue_mib: memory these take.
        decoding_rows: rows with the decoders.
        memory_mib: most memory of all processes so far.
    """

    elapsed_s: float
    rows: int
    new_tokens: int
    busy_s: dict[str, float] = field(default_factory=dict)
    reading_rows: int = 0
    queue_rows: int = 0
    queue_mib: float = 0.0
    decoding_rows: int = 0
    memory_mib: float = 0.0
    images: int = 0


class StatsWriter:
    """Adds this run's samples to those of earlier runs.

    The file is small and rewritten as a whole, so it is always readable. A damaged old file is replaced. Beside one
    that the operating system does not give now, samples of this run are not kept: statistics never end a job.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._earlier = _read_earlier(path)
        runs = [] if self._earlier is None else self._earlier.column("run")
        self._run = 1 + (pc.max(runs).as_py() or 0) if len(runs) else 1
        self._samples: list[dict[str, Any]] = []
        self._next_write_s = time.monotonic() + WRITE_INTERVAL_S

    def add(self, sample: StatsSample) -> None:
        """Take in a sample; the file is written now and then.

        Raises:
            StorageError: the file can't be written.
        """
        record: dict[str, Any] = {
            "run": self._run,
            "time": datetime.now(UTC),
            **{f"{stage}_busy_s": sample.busy_s.get(stage, 0.0) for stage in STAGES},
        }
        for name in SCHEMA.names:
            if name not in record:
                record[name] = getattr(sample, name)
        self._samples.append(record)
        if time.monotonic() >= self._next_write_s:
            self.write()

    def write(self) -> None:
        """Write the file.

        Raises:
            StorageError: the file can't be written.
        """
        self._next_write_s = time.monotonic() + WRITE_INTERVAL_S
        if self._earlier is None:
            self._samples.clear()
            return
        new = pa.Table.from_pylist(self._samples, schema=SCHEMA)
        # In one piece: every piece of a table takes memory of its own, and a week has twenty thousand.
        self._earlier = _thinned(pa.concat_tables([self._earlier, new])).combine_chunks()
        self._samples.clear()
        with atomic_file(self._path) as temporary:
            pq.write_table(self._earlier, temporary, compression="zstd")


def _thinned(table: pa.Table) -> pa.Table:
    """Samples without most of those older than `DETAIL_S`; the last one of each run, with its totals, stays."""
    if not len(table):
        return table
    runs, elapsed = table["run"].to_numpy(), table["elapsed_s"].to_numpy()
    minutes = elapsed // COARSE_INTERVAL_S
    same_run = runs[1:] == runs[:-1]
    is_first = np.append(True, ~same_run | (minutes[1:] != minutes[:-1]))
    is_last = np.append(~same_run, True)
    is_recent = (runs == runs[-1]) & (elapsed > elapsed[-1] - DETAIL_S)
    return table.filter(pa.array(is_first | is_last | is_recent))


def _read_earlier(path: Path) -> pa.Table | None:
    """The samples of earlier runs; None where the operating system refused to read them."""
    try:
        path.stat()
        return pq.read_table(path, schema=SCHEMA)
    except FileNotFoundError:
        return SCHEMA.empty_table()
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            log.warning("%s can't be read now (%s): samples of this run are not kept", path, error)
            return None
        log.warning("%s can't be read (%s): its samples are dropped", path, error)
        return SCHEMA.empty_table()


def recent_rate_per_s(path: Path, column: str = "rows") -> float | None:
    """Rows or images a second over the last minutes of the last run, or None where too little is known."""
    table = _read_earlier(path)
    if table is None or not len(table):
        return None
    last = table.filter(pc.equal(table["run"], pc.max(table["run"])))
    elapsed, rows = last["elapsed_s"].to_pylist(), last[column].to_pylist()
    recent = [index for index, at_s in enumerate(elapsed) if at_s >= elapsed[-1] - RATE_WINDOW_S]
    first = recent[0]
    seconds = elapsed[-1] - elapsed[first]
    if seconds <= 0 or rows[first] is None or rows[-1] is None:  # an earlier batchcap counted no images
        return None
    return float((rows[-1] - rows[first]) / seconds)
