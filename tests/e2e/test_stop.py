"""Ctrl-C, SIGTERM, SIGHUP, --max-runtime: a quick end in good order, the documented exit code, a job that goes on."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from batchcap.core.errors import ExitCode
from batchcap.model.bundle import Bundle
from batchcap.store.folder import JobFolder
from batchcap.store.lock import read_holder
from tests.e2e.conftest import LONG, Job, uninterrupted_job
from tests.e2e.process import Process, assert_clean, assert_whole, durable_rows, leftovers, read_summary, run

pytestmark = pytest.mark.slow

# The captions in flight get 1.5 s and closing files a moment; this only tells a stop from a hang on a busy machine.
STOP_S = 30.0
LIMIT_S = 1
IMAGES, PARQUET_ROWS = 160, 16
ROWS = IMAGES + 1 + PARQUET_ROWS
# Slow enough, and more rows than are ever under way, so that the job is never done before it is stopped.
SLOW = (*LONG, "--slots", "1", "--rows-per-part", "8")
FAST = (*LONG, "--slots", "16")
ENDS = [
    (signal.SIGINT, ExitCode.INTERRUPTED, "interrupted"),
    (signal.SIGTERM, ExitCode.STOPPED_EARLY, "stopped"),
    (signal.SIGHUP, ExitCode.STOPPED_EARLY, "stopped"),
]


@pytest.fixture(scope="module")
def long_job(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job of `LONG` captions with rows for two parts and a long rest; its uninterrupted run."""
    return uninterrupted_job(tmp_path_factory.mktemp("long"), bundle, IMAGES, PARQUET_ROWS, *FAST)


def assert_stopped(output: Path, process: Process, code: ExitCode, state: str) -> int:
    """The run has said how it ended, in every place, and left nothing behind; gives the rows done."""
    assert_clean(process)
    summary = read_summary(output)
    assert (summary["state"], summary["exit_code"], summary["rows"]) == (state, code, ROWS)
    assert summary["done"] + summary["remaining"] == ROWS
    assert "run the same command again" in summary["message"]
    assert durable_rows(output) == (summary["done"], 0)
    assert not leftovers(output)
    assert read_holder(JobFolder(output)) is None
    return int(summary["done"])


@pytest.mark.parametrize(
    ("number", "code", "state"),
    ENDS,
)
def test_a_signal_to_the_whole_group_stops_in_good_order(
    long_job: Job, tmp_path: Path, number: signal.Signals, code: ExitCode, state: str
) -> None:
    output = tmp_path / "out"
    process = Process(*long_job.arguments(output, *SLOW))
    # As from a terminal: coordinator and workers all get it.
    assert process.wait_until(lambda: len(JobFolder(output).part_paths()) >= 2)
    process.signal_group(number)
    assert process.wait(STOP_S) == code
    done = assert_stopped(output, process, code, state)
    assert 0 < done < ROWS
    last = run(*long_job.arguments(output, *FAST))
    assert last.done_before == done
    assert_whole(output, long_job.expected)


@pytest.mark.parametrize("is_ignored", [False, True], ids=["", "nohup"])
def test_a_terminal_that_is_closed(long_job: Job, tmp_path: Path, is_ignored: bool) -> None:
    """It stops in good order, though nothing can be told any more; under nohup it goes on to its end."""
    output = tmp_path / "out"
    ours, theirs = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        if is_ignored:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    arguments = long_job.arguments(output, *(LONG if is_ignored else SLOW))
    with subprocess.Popen(
        [sys.executable, "-m", "batchcap.cli", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
        start_new_session=True,
        preexec_fn=take_terminal,  # noqa: PLW1509 - the terminal must be its own
    ) as process:
        os.close(theirs)
        while len(JobFolder(output).part_paths()) < 2:
            os.read(ours, 4096)  # the bar, which moves on
        os.close(ours)
        code = process.wait(120 if is_ignored else STOP_S)
    assert code == (ExitCode.COMPLETE if is_ignored else ExitCode.STOPPED_EARLY)
    summary = read_summary(output)
    assert summary["state"] == ("complete" if is_ignored else "stopped")
    assert durable_rows(output) == (summary["done"], 0)
    assert not leftovers(output)
    run(*long_job.arguments(output, *FAST))
    assert_whole(output, long_job.expected)


def test_the_time_limit_stops_in_good_order(long_job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    begun_s = time.monotonic()
    process = Process(*long_job.arguments(output, *SLOW, "--max-runtime", str(LIMIT_S)), warm=True)
    assert process.wait(LIMIT_S + STOP_S) == ExitCode.STOPPED_EARLY
    assert time.monotonic() - begun_s >= LIMIT_S
    done = assert_stopped(output, process, ExitCode.STOPPED_EARLY, "stopped")
    assert run(*long_job.arguments(output, *FAST)).done_before == done
    assert_whole(output, long_job.expected)


@pytest.mark.parametrize(
    ("number", "code", "state"),
    ENDS,
)
@pytest.mark.parametrize("after_s", [0.0, 0.06])
def test_a_signal_while_the_model_loads_does_not_wait_for_it(
    long_job: Job, tmp_path: Path, number: signal.Signals, code: ExitCode, state: str, after_s: float
) -> None:
    output = tmp_path / "out"
    process = Process(*long_job.arguments(output))
    # The workers are only just born: the signal meets them before Python is up, or among their first imports.
    assert process.wait_until(lambda: len(process.workers()) == 2, interval_s=0)
    time.sleep(after_s)
    process.signal_group(number)
    assert process.wait(STOP_S) == code
    assert process.done_before in (None, 0)
    assert assert_stopped(output, process, code, state) == 0


def test_sigterm_before_the_job_is_begun(long_job: Job, tmp_path: Path) -> None:
    output, model = tmp_path / "out", tmp_path / "model"
    model.mkdir()
    # A bundle whose description never comes: the run waits for it, as for a very slow disk.
    os.mkfifo(model / "bundle.json")
    process = Process("caption", *long_job.inputs, "--output", str(output), "--model", str(model))
    writer: list[int] = []
    assert process.wait_until(lambda: writer or _opened(model / "bundle.json", writer))
    process.signal_group(signal.SIGTERM)
    assert process.wait() == ExitCode.STOPPED_EARLY
    assert "batchcap: error: stopped" in process.stderr
    os.close(writer[0])
    assert_clean(process)
    assert not output.exists()


def _opened(pipe: Path, writer: list[int]) -> bool:
    """Open a pipe's other end as soon as somebody reads from it."""
    try:
        writer.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def test_a_second_signal_ends_at_once(long_job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = Process(*long_job.arguments(output, *SLOW))
    assert process.wait_until(lambda: process.done_before is not None)
    assert process.wait_until(lambda: JobFolder(output).part_paths())
    process.signal_group(signal.SIGINT)
    assert process.wait_for_line("stopping")
    process.signal_group(signal.SIGINT)
    assert process.wait(STOP_S) == ExitCode.INTERRUPTED
    # It hasn't waited for the captions in flight, nor said how it ended.
    assert not JobFolder(output).summary_path.exists()
    assert_clean(process)
    durable, _double = durable_rows(output)
    assert durable > 0
    assert run(*long_job.arguments(output, *FAST)).done_before == durable
    assert_whole(output, long_job.expected)
