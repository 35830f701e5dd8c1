"""A worker that is killed alone, as the kernel does when memory runs out: said clearly, nothing finished lost."""

import os
import signal
from pathlib import Path

import pytest

from batchcap.errors import ExitCode
from batchcap.store.folder import JobFolder
from tests.e2e.conftest import ROWS, Job
from tests.e2e.process import Process, assert_clean, assert_whole, durable_rows, leftovers, read_summary, run


@pytest.mark.slow
@pytest.mark.parametrize("worker", ["vision", "decoder"])
def test_a_worker_killed_at_work(job: Job, tmp_path: Path, worker: str) -> None:
    output = tmp_path / "out"
    process = Process(*job.arguments(output, "--slots", "1", "--rows-per-part", "16"))
    assert process.wait_until(lambda: JobFolder(output).part_paths())
    os.kill(process.workers()[worker], signal.SIGKILL)
    assert process.wait() == ExitCode.UNEXPECTED
    assert_clean(process)
    assert f"the {worker}" in process.stderr
    for text in ("was killed by signal 9", "out of memory: lower --slots", "run the same command again"):
        assert text in process.stderr
    summary = read_summary(output)
    assert (summary["state"], summary["exit_code"]) == ("failed", ExitCode.UNEXPECTED)
    assert summary["message"] in process.stderr
    assert 0 < summary["done"] < ROWS
    assert durable_rows(output) == (summary["done"], 0)
    assert not leftovers(output)
    assert run(*job.arguments(output)).done_before == summary["done"]
    assert_whole(output, job.expected)


def test_a_worker_killed_while_it_loads(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = Process(*job.arguments(output))
    assert process.wait_until(lambda: len(process.workers()) == 2, interval_s=0)
    os.kill(process.workers()["decoder"], signal.SIGKILL)
    assert process.wait() == ExitCode.UNEXPECTED
    assert_clean(process)
    assert "the decoder 0 process was killed by signal 9" in process.stderr
    assert read_summary(output)["state"] == "failed"
