"""SIGKILL at 20 random moments of one job, in every phase: nothing is lost, doubled, or different."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from batchcap.model.bundle import Bundle
from batchcap.store.folder import JobFolder
from batchcap.store.lock import read_holder
from tests.e2e.conftest import LONG, Job, uninterrupted_job
from tests.e2e.process import LOADING, Process, assert_whole, durable_rows, run

SEED = 20
IMAGES, PARQUET_ROWS = 150, 50
ROWS = IMAGES + 1 + PARQUET_ROWS
# Another placement than the uninterrupted run's, so that rows meet other neighbours, and small parts.
PLACEMENT = ("--slots", "2", "--rows-per-part", "8")
PARTS = -(-ROWS // 8)
# How often in which phase; shuffled, the last one comes last.
PHASES = ["start"] * 3 + ["loading"] * 2 + ["work"] * 7 + ["part"] * 6 + ["coordinator"]
LAST = "near the end"
# Where a start must be as long as it is in earnest.
STARTING = ("start", "loading", "coordinator")
START_S, LOADING_S, WORK_S, PART_S = 1.5, 1.0, 0.8, 0.003


class Killer:
    """Ends runs of one job."""

    def __init__(self, output: Path) -> None:
        self._folder = JobFolder(output)
        self._chance = random.Random(SEED)
        self.phases = [*self._chance.sample(PHASES, len(PHASES)), LAST]

    def strike(self, process: Process, phase: str) -> float:
        """Kill a run in a phase; gives the moment, in seconds since its start."""
        if phase == "start":
            time.sleep(self._chance.uniform(0, START_S))
        elif phase == "loading":
            assert process.wait_for_line(LOADING)
            time.sleep(self._chance.uniform(0, LOADING_S))
        elif phase == "part":
            assert process.wait_until(self._more_parts_than(len(self._folder.part_paths())), interval_s=0.0002)
            time.sleep(self._chance.uniform(0, PART_S))
        elif phase == LAST:
            assert process.wait_until(self._more_parts_than(PARTS - 2))
        else:
            assert process.wait_until(lambda: process.done_before is not None)
            time.sleep(self._chance.uniform(0, WORK_S))
        moment_s = time.monotonic() - process.started_s
        assert process.popen.poll() is None, f"the job ended before it was killed:\n{process.stderr}"
        if phase == "coordinator":
            # Nobody tells the workers: they must notice that the coordinator is gone.
            assert len(process.workers()) == 2
            os.kill(process.popen.pid, signal.SIGKILL)
        else:
            process.signal_group(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.wait_for_group()
        return moment_s

    def _more_parts_than(self, count: int) -> Callable[[], bool]:
        return lambda: len(self._folder.part_paths()) > count


@pytest.fixture(scope="module")
def long_job(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job of `LONG` captions, which outlasts 20 kills, and its uninterrupted run."""
    return uninterrupted_job(tmp_path_factory.mktemp("long"), bundle, IMAGES, PARQUET_ROWS, *LONG, "--slots", "16")


@pytest.mark.slow
@pytest.mark.timeout(900)  # 20 starts of the program, on a busy machine
def test_killed_at_twenty_moments_the_job_ends_as_if_nothing_had_happened(long_job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = long_job.arguments(output, *LONG, *PLACEMENT)
    killer = Killer(output)
    durable, advances = 0, 0
    for number, phase in enumerate(killer.phases):
        process = Process(*arguments, warm=phase not in STARTING)
        moment_s = killer.strike(process, phase)
        if process.done_before is not None:
            # What was durable when the last run was killed counts, to the row: none is done again.
            assert process.done_before == durable
        before, (durable, double) = durable, durable_rows(output)
        print(f"kill {number + 1} ({phase}) after {moment_s:.3f} s: {durable} rows durable, {double} in both places")
        assert durable >= before
        assert "Traceback" not in process.stderr
        assert read_holder(JobFolder(output)) is None
        advances += durable > before
    assert len(killer.phases) == 20
    assert advances >= 4, "too few of the kills came after work had been done"
    last = run(*arguments)
    assert last.done_before == (durable if durable < ROWS else None)
    assert_whole(output, long_job.expected)
    # Nothing is left to do: the same command says so at once, and changes no caption.
    again = run(*arguments)
    assert LOADING not in again.stderr
    assert_whole(output, long_job.expected)
