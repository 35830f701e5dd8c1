"""The file of events: whole lines whatever happens, and what a run puts into it."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from batchcap import __version__
from batchcap.core.errors import ErrorKind, ExitCode, LockedError, StorageError, UsageError
from batchcap.core.records import Failure, Outcome, Request
from batchcap.engines.base import EngineLoad, WorkerRestart
from batchcap.job.events import EventLog
from batchcap.job.stop import StopRequest
from batchcap.remote.attempts import NetworkError
from batchcap.store.folder import JobFolder
from batchcap.store.lock import job_lock
from tests.fake_engine import FakeEngine
from tests.job.small import ROWS, run_small, small_job

WRITER = """
import sys
from pathlib import Path
from batchcap.job.events import EventLog
log = EventLog(Path(sys.argv[1]), sys.argv[2])
print("ready", flush=True)
number = 0
while True:
    log.add("noted", number=number, text="x" * (number * 97 % 300))
    number += 1
"""


def read(path: Path) -> list[dict[str, Any]]:
    """The events of a file, all of whose lines are whole."""
    text = path.read_bytes()
    assert text.endswith(b"\n")
    events = [json.loads(line) for line in text.splitlines()]
    for event in events:
        assert list(event)[:4] == ["time", "event", "job", "pid"]
        assert datetime.fromisoformat(event["time"]).utcoffset() == timedelta(0)
    return events


def test_killed_writers_leave_whole_lines_of_each(tmp_path: Path) -> None:
    path, chance = tmp_path / "events.jsonl", random.Random(3)
    for _life in range(4):
        writers = []
        for name in ("a", "b"):
            command = [sys.executable, "-c", WRITER, str(path), name]
            writers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0.01, 0.1))
        for writer in writers:
            writer.kill()
            writer.communicate()
            assert writer.returncode == -signal.SIGKILL
    by_writer: dict[int, list[int]] = {}
    for event in read(path):
        by_writer.setdefault(event["pid"], []).append(event["number"])
    assert len(by_writer) >= 4
    assert all(numbers == list(range(len(numbers))) for numbers in by_writer.values()), "in order, none lost"


def test_a_line_that_was_cut_does_not_take_the_next_with_it(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"time": "2026-')
    EventLog(path, "out").add("noted", name='\x1b[31m"\n\udc80é')
    cut, line, end = path.read_bytes().split(b"\n")
    assert (cut, end) == (b'{"time": "2026-', b"")
    assert json.loads(line)["name"] == '\x1b[31m"\n\udc80é'
    assert re.fullmatch(rb"[ -~]+", line), "nothing in it steers a terminal that shows it"


@pytest.mark.timeout(30)
def test_what_can_not_be_written_is_an_error_and_nothing_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # which nobody reads
    for place in (tmp_path / "pipe", tmp_path, tmp_path / "gone/events.jsonl", Path("/dev/full")):
        with pytest.raises(StorageError):
            EventLog(place, "out").add("noted")


class Restarting(FakeEngine):
    """Its only decoder has been started again at the beginning."""

    def load(self) -> EngineLoad:
        load = super().load()
        load.restarts = (WorkerRestart("decoder 0", "was killed by signal 9"),)
        return load


def test_a_run_tells_its_way_and_the_next_one_goes_on_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    config = small_job(tmp_path, events=str(path))
    summary = run_small(config, Restarting())
    events = read(path)
    assert [one["event"] for one in events if one["event"] != "part_written"] == [
        "run_started",
        "rows_planned",
        "worker_restarted",
        "run_ended",
    ]
    assert {(one["job"], one["pid"]) for one in events} == {("out", os.getpid())}
    began, ended = events[0], events[-1]
    assert (began["output"], began["version"], began["model"]) == (config.output, __version__, "fake")
    assert (events[1]["rows"], events[1]["done"]) == (ROWS, 0)
    parts = [(one["part"], one["rows"]) for one in events if one["event"] == "part_written"]
    assert sorted(parts) == [(f"part-{part:05d}.parquet", 5 if part < 4 else 3) for part in range(5)]
    (restart,) = [one for one in events if one["event"] == "worker_restarted"]
    assert (restart["worker"], restart["reason"]) == ("decoder 0", "was killed by signal 9")
    assert (ended["state"], ended["exit_code"], ended["message"]) == ("complete", 0, summary.message)
    assert (ended["planned"], ended["rows"], ended["ok"], ended["failed"]) == (ROWS, ROWS, 20, 3)
    assert ended["error_kinds"] == {"corrupt": 3}
    assert datetime.fromisoformat(began["time"]) <= datetime.fromisoformat(ended["time"]) <= datetime.now(UTC)
    before = path.read_bytes()
    run_small(config)
    assert path.read_bytes().startswith(before)
    assert [one["event"] for one in read(path)[len(events) :]] == ["run_started", "rows_planned", "run_ended"]


@pytest.mark.parametrize(
    ("code", "reason", "state"),
    [
        (ExitCode.STOPPED_EARLY, "max_runtime", "stopped"),
        (ExitCode.STOPPED_EARLY, "signal", "stopped"),
        (ExitCode.INTERRUPTED, "signal", "interrupted"),
    ],
    ids=["time", "sigterm", "ctrl-c"],
)
def test_a_stop_is_told_once_and_with_its_reason(tmp_path: Path, code: ExitCode, reason: str, state: str) -> None:
    path, stop = tmp_path / "events.jsonl", StopRequest()
    config = small_job(tmp_path, events=str(path))
    run_small(config, look=lambda _done: stop.ask(code, reason), stop=stop)
    events = read(path)
    (said,) = [one for one in events if one["event"] == "stopping"]
    assert (said["reason"], said["exit_code"]) == (reason, int(code))
    assert (events[-1]["event"], events[-1]["state"], events[-1]["exit_code"]) == ("run_ended", state, int(code))


def test_the_time_that_is_up_is_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    config = small_job(tmp_path, events=str(path))
    run_small(replace(config, limits=replace(config.limits, max_runtime_s=1e-9)))
    assert [(one["event"], one.get("reason")) for one in read(path)] == [
        ("run_started", None),
        ("stopping", "max_runtime"),
        ("run_ended", None),
    ]
    assert read(path)[-1]["rows"] is None, "the rows are not counted yet"


def test_an_outage_and_an_error_are_told(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    config = small_job(tmp_path, events=str(path))

    def answer(request: Request) -> Outcome:
        return Outcome(request, Failure(request.index, ErrorKind.NETWORK, f"https://h{request.index}/ gave no answer"))

    with pytest.raises(NetworkError):
        run_small(config, FakeEngine(end=answer))
    kinds = [(one["event"], one.get("exit_code")) for one in read(path)][-2:]
    assert kinds == [("outage", None), ("run_ended", 75)]
    with pytest.raises(ZeroDivisionError):
        run_small(config, look=lambda _done: 1 // 0)  # type: ignore[arg-type, return-value]
    assert (read(path)[-1]["exit_code"], read(path)[-1]["state"]) == (1, "failed")


def test_a_run_that_is_refused_is_told_too(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    config = small_job(tmp_path, events=str(path))
    run_small(config)
    before = len(read(path))
    with job_lock(JobFolder(Path(config.output))), pytest.raises(LockedError):
        run_small(config)
    (tmp_path / "in.parquet").unlink()
    with pytest.raises(UsageError):
        run_small(config)
    assert [(one["event"], one["exit_code"]) for one in read(path)[before:]] == [("run_ended", 4), ("run_ended", 2)]
