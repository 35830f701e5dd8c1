"""Growth of a job without a model: rows a second, memory and time to resume at 10,000, 100,000 and 1,000,000 rows.

Plan, loop, journal and part files are the real ones. Instead of the model there is an engine that answers at once
(`--engine echo`), or the real feature queue between worker processes that hold no model (`--engine workers`). Each job
is ended by `os._exit` half way and started again by the same command; at the end every row must be there once.

usage: python benchmarks/growth.py [--rows N ...] [--inputs parquet jsonl files tars] [--engine echo workers]
"""

import argparse
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchcap.config import Existing, GenerationConfig, InputConfig, JobConfig, OutputsConfig, PlacementConfig
from batchcap.core.machine import available_cores, cpu_name
from batchcap.core.records import Caption, FinishReason, ImageFacts, Outcome, Request, Verdict
from batchcap.engines.base import Engine
from batchcap.engines.config import EngineConfig
from batchcap.engines.fake import FakeEngine
from batchcap.engines.local import LocalEngine
from batchcap.job.progress import LogProgress
from batchcap.job.run import run_job
from batchcap.outputs.convert import convert
from batchcap.report.status import read_status
from batchcap.store.folder import JobFolder

ROOT = Path(__file__).parents[1]
WORK = ROOT / "benchmarks" / "work" / "growth"
RESULTS = ROOT / "benchmarks" / "results"
ROWS = (10_000, 100_000, 1_000_000)
IN_FLIGHT_ROWS = 50  # what a vision window of 32 and 16 slots hold
FILES_PER_FOLDER = 1000
TARS = 100
KEPT = {".parquet": ("label",), ".jsonl": ("label",), ".tar": ("txt",)}
TENTHS = 10
TEXT = "A red bicycle leans on a brick wall in the rain; behind it a cat looks out of a half-open window, {name}."
FACTS = ImageFacts(width=1024, height=768, sha256="0" * 64, read_ms=8.25, vision_ms=410.5)
GEOMETRY = SimpleNamespace(text=SimpleNamespace(hidden_size=8), vision=SimpleNamespace(deepstack_levels=(0,)))
NAMED = {"id": "0" * 64, "source": "none", "precision": "none"}
BUNDLE: Any = SimpleNamespace(**NAMED, named=NAMED, folder=Path("/none"), geometry=GEOMETRY)


def _captioned(request: Request) -> Outcome:
    """A caption as long as a model's, with the row's id in it."""
    text = TEXT.format(name=request.row.id)
    caption = Caption(request.index, (1,) * 27, text, FinishReason.STOP, Verdict.OK, 124, 108, 812.5, 1210.75)
    return Outcome(request, (caption,), FACTS)


@dataclass(slots=True)
class Watch:
    """When rows went in, and the end of the process in the middle of its work."""

    started_s: float
    rows: int
    die_after: int | None
    first_row_s: float = 0.0
    submitted: int = 0
    tenths_s: list[float] = field(default_factory=list)

    def count(self) -> None:
        """One row goes in."""
        if not self.submitted:
            self.first_row_s = time.perf_counter() - self.started_s
        if self.submitted % max(1, self.rows // TENTHS) == 0:
            self.tenths_s.append(time.perf_counter())
        if self.submitted == self.die_after:
            self.report()
            os._exit(0)
        self.submitted += 1

    def report(self) -> None:
        """Print what was measured."""
        now = time.perf_counter()
        times = [*self.tenths_s, now] if self.submitted == self.die_after else self.tenths_s
        spans = [after - before for before, after in pairwise(times)]
        tenth = max(1, self.rows // TENTHS)
        figures = {
            "rows": self.submitted,
            "seconds": now - self.started_s,
            "cpu_s": time.process_time(),
            "first_row_s": self.first_row_s,
            "first_tenth_rows_per_s": tenth / spans[0] if spans else None,
            "last_tenth_rows_per_s": tenth / spans[-1] if spans else None,
            "peak_rss_mib": _peak_rss_mib(),
        }
        print(json.dumps(figures), flush=True)


def _peak_rss_mib() -> float:
    """Largest resident set of this process since it began; `getrusage` would count its parent's, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def child(engine: str, inputs: Path, output: Path, rows: int, die_after: int | None) -> None:
    """Run the job in this process, to its end or to its death, and print the figures."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    config = JobConfig(
        InputConfig((str(inputs),), keep_columns=KEPT.get(inputs.suffix, ())),
        str(output),
        generation=GenerationConfig(max_new_tokens=1024),
        placement=PlacementConfig(),
    )
    watch = Watch(time.perf_counter(), rows, die_after)
    worker = patch("batchcap.engines.process._popen", _fake_worker)
    fitted = patch("batchcap.engines.local._fitted", lambda config: config)  # there is no bundle to measure
    with worker, fitted:
        run_job(config, LogProgress(), _factory(engine, watch), lambda _model: BUNDLE)
    watch.report()


def _factory(name: str, watch: Watch) -> Callable[[EngineConfig], Engine]:
    def make(config: EngineConfig) -> Engine:
        echo = FakeEngine(_captioned, room=IN_FLIGHT_ROWS, per_poll=IN_FLIGHT_ROWS)
        engine: Any = echo if name == "echo" else LocalEngine(config)
        submit = engine.submit

        def counted(request: Request) -> None:
            watch.count()
            submit(request)

        engine.submit = counted
        return engine

    return make


def convert_child(output: Path) -> None:
    """Write the captions of a job as JSONL in this process, and print the figures."""
    started_s = time.perf_counter()
    convert(output, [f"jsonl:{output}.jsonl"], OutputsConfig(existing=Existing.REPLACE))
    Path(f"{output}.jsonl").unlink()
    print(json.dumps({"seconds": time.perf_counter() - started_s, "peak_rss_mib": _peak_rss_mib()}))


def _fake_worker(_command: list[str], socket_fd: int, _sign_fd: int | None) -> "subprocess.Popen[bytes]":
    code = f"from tests.engines.fake_worker import become; become('work', 'work', {socket_fd})"
    command = [sys.executable, "-c", code]
    # They complain of the end of a coordinator that was killed; that is what is wanted here.
    return subprocess.Popen(command, pass_fds=[socket_fd], cwd=ROOT, stderr=subprocess.DEVNULL)


def make_inputs(kind: str, rows: int) -> Path:
    """The inputs of one kind, kept for the next time."""
    path = WORK / {"files": f"files-{rows}", "tars": f"tars-{rows}"}.get(kind, f"{rows}.{kind}")
    if path.exists():
        return path
    partial = WORK / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.unlink(missing_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    MAKE[kind](partial, rows)
    partial.rename(path)
    return path


def _image_path(row: int) -> str:
    return f"images/{row // FILES_PER_FOLDER:04d}/{row:07d}.jpg"


def _make_parquet(path: Path, rows: int) -> None:
    """One row group."""
    paths = pa.array([_image_path(row) for row in range(rows)])
    table = pa.table({"path": paths, "label": pa.array(np.arange(rows) % 1000)})
    pq.write_table(table, path, row_group_size=rows)


def _make_jsonl(path: Path, rows: int) -> None:
    with path.open("w") as file:
        for row in range(rows):
            file.write(json.dumps({"path": _image_path(row), "label": row % 1000}) + "\n")


def _make_files(path: Path, rows: int) -> None:
    """A folder of folders of empty files."""
    for row in range(rows):
        folder = path / f"{row // FILES_PER_FOLDER:04d}"
        if row % FILES_PER_FOLDER == 0:
            folder.mkdir(parents=True)
        (folder / f"{row:07d}.jpg").touch()


def _make_tars(path: Path, rows: int) -> None:
    """`TARS` archives of samples with an image of a few bytes and a text."""
    path.mkdir()
    for number in range(TARS):
        with tarfile.open(path / f"{number:05d}.tar", "w") as archive:
            for row in range(rows * number // TARS, rows * (number + 1) // TARS):
                for suffix, content in (("jpg", b"image %d" % row), ("txt", b"text")):
                    member = tarfile.TarInfo(f"{row:07d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


MAKE = {"parquet": _make_parquet, "jsonl": _make_jsonl, "files": _make_files, "tars": _make_tars}


@dataclass(frozen=True, slots=True)
class Result:
    """What one job showed; times in seconds.

    Attributes:
        rows_per_s: rows of the whole job by the time of both runs, planning included, imports not.
        rows_per_cpu_s: the same by the CPU time of the coordinator, imports included; others at work change it little.
        plan_s: until the first row was handed out in a new job.
        resume_s: the same in a job that was ended half way.
        first_tenth_rows_per_s: of the first tenth of the job.
        last_tenth_rows_per_s: of the last whole tenth.
        peak_rss_mib: of the coordinator, the larger of both runs.
        status_s: to read the status half way.
        output_mib: all part files.
        convert_s: to write all captions as one JSONL file.
        convert_rss_mib: the largest resident set of that.
    """

    engine: str
    inputs: str
    rows: int
    rows_per_s: float
    rows_per_cpu_s: float
    plan_s: float
    resume_s: float
    status_s: float
    first_tenth_rows_per_s: float
    last_tenth_rows_per_s: float
    peak_rss_mib: float
    parts: int
    output_mib: float
    convert_s: float
    convert_rss_mib: float


def measure(engine: str, kind: str, rows: int) -> Result:
    """One job in two runs."""
    inputs, output = make_inputs(kind, rows), WORK / "out"
    shutil.rmtree(output, ignore_errors=True)
    begun = _run_child(engine, inputs, output, rows, rows // 2)
    started_s = time.perf_counter()
    halfway = read_status(output)
    status_s = time.perf_counter() - started_s
    ended = _run_child(engine, inputs, output, rows, None)
    parts = JobFolder(output).part_paths()
    _check(parts, rows, halfway.counts.rows + ended["rows"])
    converted = _figures("--convert", str(output))
    result = Result(
        engine=engine,
        inputs=kind,
        rows=rows,
        rows_per_s=rows / (begun["seconds"] + ended["seconds"]),
        rows_per_cpu_s=rows / (begun["cpu_s"] + ended["cpu_s"]),
        plan_s=begun["first_row_s"],
        resume_s=ended["first_row_s"],
        status_s=status_s,
        first_tenth_rows_per_s=begun["first_tenth_rows_per_s"],
        last_tenth_rows_per_s=ended["last_tenth_rows_per_s"],
        peak_rss_mib=max(begun["peak_rss_mib"], ended["peak_rss_mib"]),
        parts=len(parts),
        output_mib=sum(part.stat().st_size for part in parts) / 1024**2,
        convert_s=converted["seconds"],
        convert_rss_mib=converted["peak_rss_mib"],
    )
    shutil.rmtree(output)
    return result


def _run_child(engine: str, inputs: Path, output: Path, rows: int, die_after: int | None) -> dict[str, Any]:
    named = str(inputs / "*.tar") if inputs.name.startswith("tars") else str(inputs)
    return _figures("--child", engine, named, str(output), str(rows), str(die_after or 0))


def _figures(*arguments: str) -> dict[str, Any]:
    """What a process of this program measured."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _check(parts: list[Path], rows: int, worked_on: int) -> None:
    """Every row once, in order, with its caption; and none of those that were safe half way was done again."""
    expected = 0
    for part in parts:
        table = pq.read_table(part, columns=["id", "caption"])
        for name, caption in zip(table["id"].to_pylist(), table["caption"].to_pylist(), strict=True):
            if name not in caption:
                sys.exit(f"{part}: the caption of {name} is {caption!r}")
            number = int(name.rpartition(":")[2] if ":" in name else Path(name).stem)  # of a tar: the key
            if number != expected:
                sys.exit(f"{part}: row {expected} is missing or out of order, {name} is in its place")
            expected += 1
    if expected != rows or worked_on != rows:
        sys.exit(f"{expected} rows came out, {worked_on} were worked on, {rows} were wanted")


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        engine, inputs, output, rows, die_after = sys.argv[2:]
        child(engine, Path(inputs), Path(output), int(rows), int(die_after) or None)
        return
    if sys.argv[1:2] == ["--convert"]:
        convert_child(Path(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--inputs", nargs="+", choices=list(MAKE), default=["parquet", "files"])
    parser.add_argument("--engine", nargs="+", choices=["echo", "workers"], default=["echo", "workers"])
    options = parser.parse_args()
    print(f"{cpu_name()}, {available_cores()} cores, load average {os.getloadavg()[0]:.1f}\n")
    names = list(Result.__dataclass_fields__)
    print(f"| {' | '.join(names)} |\n|{' --- |' * len(names)}", flush=True)
    results = []
    for engine in options.engine:
        for kind in options.inputs:
            for rows in options.rows:
                results.append(measure(engine, kind, rows))
                print(f"| {' | '.join(map(_cell, asdict(results[-1]).values()))} |", flush=True)
    RESULTS.mkdir(exist_ok=True)
    content = {"cpu": cpu_name(), "cores": available_cores(), "results": [asdict(result) for result in results]}
    (RESULTS / "growth.json").write_text(json.dumps(content, indent=2) + "\n")
    with suppress(OSError):
        WORK.rmdir()


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
