"""The program at the end of a run: when it runs, what it is told, and that it changes nothing."""

import json
import logging
import os
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchcap.core.errors import ExitCode, LockedError, NotSameJobError, StorageError, UsageError, WorkerError
from batchcap.job import on_end
from batchcap.job.on_end import run_on_end
from batchcap.job.stop import StopRequest
from batchcap.store.folder import JobFolder
from batchcap.store.lock import job_lock
from tests.fake_engine import FakeEngine
from tests.job.small import run_small, small_job, summary_of

# Tells what it was told, and whether the job folder is free.
TELLS = """
import fcntl, json, os, sys
told = {name: os.environ[name] for name in os.environ if name.startswith("BATCHCAP_")}
told["arguments"] = sys.argv[2:]
with open(told["BATCHCAP_OUTPUT"] + "/__batchcap/lock") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
with open(sys.argv[1], "a") as file:
    file.write(json.dumps(told) + chr(10))
print("a word")
"""


def command(*words: object) -> str:
    return shlex.join([sys.executable, *map(str, words)])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "told.jsonl"


def telling(log: Path) -> str:
    return command("-c", TELLS, log, "$HOME; echo", "a b")


def told(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_it_runs_once_the_folder_is_free_without_a_shell(
    tmp_path: Path, log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = small_job(tmp_path, on_end=telling(log))
    summary = run_small(config)
    (found,) = told(log)
    assert found["arguments"] == ["$HOME; echo", "a b"]
    assert found["BATCHCAP_EXIT_CODE"] == "0"
    assert (found["BATCHCAP_STATE"], found["BATCHCAP_MESSAGE"]) == ("complete", summary.message)
    assert (found["BATCHCAP_JOB"], found["BATCHCAP_OUTPUT"]) == ("out", config.output)
    assert json.loads(Path(found["BATCHCAP_SUMMARY"]).read_text())["exit_code"] == 0
    out, err = capfd.readouterr()
    assert (out, err) == ("", "a word\n"), "stdout is for results"


def test_it_runs_after_a_stop_and_after_an_error(tmp_path: Path, log: Path) -> None:
    config, stop = small_job(tmp_path, on_end=telling(log)), StopRequest()
    run_small(config, look=lambda _done: stop.ask(ExitCode.INTERRUPTED), stop=stop)
    with pytest.raises(WorkerError):
        run_small(config, FakeEngine(dies_after=0))
    with pytest.raises(NotSameJobError):
        run_small(replace(config, generation=replace(config.generation, prompt="another")))
    found = told(log)
    assert [one["BATCHCAP_EXIT_CODE"] for one in found] == ["130", "1", "5"]
    assert [bool(one["BATCHCAP_SUMMARY"]) for one in found] == [True, True, False], "the last one is another job's"


def test_it_runs_when_the_summary_can_not_be_written(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_folder: object, _summary: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr("batchcap.job.conclusion._write_summary", full)
    events = tmp_path / "events.jsonl"
    with pytest.raises(StorageError, match="full"):
        run_small(small_job(tmp_path, on_end=telling(log), events=str(events)))
    assert [(one["BATCHCAP_EXIT_CODE"], one["BATCHCAP_SUMMARY"]) for one in told(log)] == [("1", "")]
    assert json.loads(events.read_text().splitlines()[-1])["event"] == "run_ended"


def test_it_does_not_run_without_a_folder(tmp_path: Path, log: Path) -> None:
    config = small_job(tmp_path, on_end=telling(log))
    with job_lock(JobFolder.open_or_create(Path(config.output))), pytest.raises(LockedError):
        run_small(config)
    (tmp_path / "in.parquet").unlink()
    with pytest.raises(UsageError):
        run_small(config)
    assert told(log) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (command("-c", "import sys; sys.exit(3)"), "ended with exit code 3"),
        (command("-c", "import os; os.kill(os.getpid(), 9)"), "was killed by signal 9"),
        ("/no/such/program --now", "can't be run"),
        ("/", "can't be run"),
    ],
    ids=["code", "signal", "missing", "folder"],
)
def test_its_failure_is_told_and_changes_nothing(
    tmp_path: Path, words: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_job(tmp_path, on_end=words)
    with caplog.at_level(logging.WARNING):
        assert run_small(config).exit_code is ExitCode.COMPLETE
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said in line
    assert summary_of(config)["exit_code"] == 0


FOREVER = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(sys.argv[1] + "-", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename(sys.argv[1] + "-", sys.argv[1])
time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("how", ["time", "stop"])
def test_one_that_takes_too_long_is_ended_with_what_it_has_started(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(on_end, "GRACE_S", 0.2)
    mark = tmp_path / "pids"
    with caplog.at_level(logging.WARNING):
        if how == "time":
            monkeypatch.setattr(on_end.time, "monotonic", lambda: 0.0 if not mark.exists() else 1e9)
            run_on_end(command("-c", FOREVER, mark), {}, lambda: False)
        else:
            run_on_end(command("-c", FOREVER, mark), {}, mark.exists)
    pids = [int(word) for word in mark.read_text().split()]
    ends_s = time.time() + 60
    while any(map(is_alive, pids)):
        assert time.time() < ends_s
        time.sleep(0.01)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert ("took longer than 300 s" if how == "time" else "was stopped") in line


def test_names_that_are_no_text_reach_it(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff")
    run_on_end(command("-c", "import os; os.mkdir(os.environ['PLACE'])"), {"PLACE": f"{tmp_path}/{name}"}, bool)
    assert [one.name for one in tmp_path.iterdir()] == [name]
