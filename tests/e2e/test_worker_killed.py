"""A worker that is killed alone, as the kernel does when memory runs out, or hangs: another takes its place."""

import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from batchcap.core.errors import ExitCode
from batchcap.store.folder import JobFolder
from tests.e2e.conftest import Job
from tests.e2e.process import Process, assert_clean, assert_whole, read_summary, run
from tests.prometheus import parsed

pytestmark = pytest.mark.slow

# A row takes a hundredth of it.
HANG_S = 3


def has_part(output: Path) -> bool:
    """Whether a part is written; the job folder itself comes and goes while its place is tried."""
    with suppress(FileNotFoundError):
        return bool(JobFolder(output).part_paths())
    return False


@pytest.mark.parametrize("worker", ["vision", "decoder"])
def test_a_worker_killed_at_work(small_job: Job, tmp_path: Path, worker: str) -> None:
    output = tmp_path / "out"
    metrics, events = tmp_path / "x.prom", tmp_path / "events.jsonl"
    told = ("--metrics", str(metrics), "--events", str(events))
    process = Process(*small_job.arguments(output, "--slots", "1", "--rows-per-part", "16", *told))
    assert process.wait_until(lambda: has_part(output))
    os.kill(process.workers()[worker], signal.SIGKILL)
    assert process.wait() == ExitCode.COMPLETE
    assert_clean(process)
    assert f"the {worker}" in process.stderr
    assert "was killed by signal 9; a new one is started" in process.stderr
    assert_whole(output, small_job.expected)
    restarts = {"vision": 0, "decoder": 0, worker: 1}
    assert parsed(metrics.read_text())["batchcap_worker_restarts_total"].by("worker") == restarts
    said = [json.loads(line) for line in events.read_text().splitlines()]
    (restart,) = [one for one in said if one["event"] == "worker_restarted"]
    assert restart["worker"].partition(" ")[0] == worker
    assert restart["reason"] == "was killed by signal 9"


@pytest.mark.parametrize("worker", ["vision", "decoder"])
def test_a_worker_that_hangs(small_job: Job, tmp_path: Path, worker: str) -> None:
    output = tmp_path / "out"
    options = ("--slots", "1", "--rows-per-part", "16", "--picture-timeout", str(HANG_S))
    process = Process(*small_job.arguments(output, *options))
    # The vision worker is soon through with all rows, and who has nothing to do can't hang.
    at_work = {"vision": lambda: process.done_before is not None, "decoder": lambda: has_part(output)}
    assert process.wait_until(at_work[worker], interval_s=0.0005)
    os.kill(process.workers()[worker], signal.SIGSTOP)
    assert process.wait() == ExitCode.COMPLETE
    assert_clean(process)
    assert f"has not come to an end with a row in {HANG_S} s; a new one is started" in process.stderr
    assert_whole(output, small_job.expected)


def test_a_worker_killed_while_it_loads(small_job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = Process(*small_job.arguments(output))
    assert process.wait_until(lambda: len(process.workers()) == 2, interval_s=0)
    os.kill(process.workers()["decoder"], signal.SIGKILL)
    assert process.wait() == ExitCode.UNEXPECTED
    assert_clean(process)
    assert "the decoder 0 process was killed by signal 9" in process.stderr
    assert read_summary(output)["state"] == "failed"


def test_a_run_that_is_killed_leaves_whole_events_and_metrics(small_job: Job, tmp_path: Path) -> None:
    """Nothing runs at its end; the next run goes on in the same files."""
    output, metrics, events, mark = (tmp_path / name for name in ("out", "x.prom", "events.jsonl", "mark"))
    told = ("--metrics", str(metrics), "--events", str(events), "--on-end", f"touch {mark}")
    arguments = small_job.arguments(output, "--slots", "1", "--rows-per-part", "16", *told)
    process = Process(*arguments)
    assert process.wait_until(lambda: has_part(output))
    process.signal_group(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    killed = [json.loads(line)["event"] for line in events.read_text().splitlines()]
    assert killed[:2] == ["run_started", "rows_planned"]
    assert "run_ended" not in killed
    assert parsed(metrics.read_text())["batchcap_running"].only == 1
    assert not mark.exists()
    run(*arguments)
    assert mark.exists()
    after = [json.loads(line)["event"] for line in events.read_text().splitlines()]
    assert after[: len(killed)] == killed
    assert (after[len(killed)], after[-1]) == ("run_started", "run_ended")
    assert parsed(metrics.read_text())["batchcap_running"].only == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert_whole(output, small_job.expected)
