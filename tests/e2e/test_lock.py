"""Two runs of one job at once: exactly one works, the other leaves with 4; a lock that was left behind is free."""

import multiprocessing
import os
import signal
import socket
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from batchcap.core.errors import ExitCode, LockedError
from batchcap.store import lock
from batchcap.store.folder import JobFolder
from batchcap.store.lock import job_lock, read_holder
from tests.chaos.harness import one_of_two_runs
from tests.e2e.conftest import Job
from tests.e2e.process import assert_whole, run

pytestmark = pytest.mark.slow

ROUNDS, COMMAND_ROUNDS = 50, 4


def _try_rounds(path: Path, together: Barrier, results: Any) -> None:
    lock.ACQUIRE_TIMEOUT_S = 0.02
    for number in range(ROUNDS):
        together.wait()
        try:
            with job_lock(JobFolder(path)):
                results.put((number, os.getpid()))
                together.wait()  # the other has been turned away by now
        except LockedError:
            results.put((number, 0))
            together.wait()


def test_one_of_two_gets_the_lock_each_time(tmp_path: Path) -> None:
    JobFolder.open_or_create(tmp_path / "out")
    context = multiprocessing.get_context("spawn")
    together, results = context.Barrier(2, timeout=60), context.Queue()
    both = [context.Process(target=_try_rounds, args=(tmp_path / "out", together, results)) for _ in range(2)]
    for one in both:
        one.start()
    found = [results.get(timeout=60) for _ in range(2 * ROUNDS)]
    for one in both:
        one.join(60)
    for number in range(ROUNDS):
        assert sorted(pid > 0 for round_number, pid in found if round_number == number) == [False, True]


def test_one_of_two_commands_works_and_a_kill_leaves_no_lock(job: Job, tmp_path: Path) -> None:
    for number in range(COMMAND_ROUNDS):
        output = tmp_path / f"out-{number // 2}"  # a job that is through with its rows would hold no lock
        working = one_of_two_runs(job, output)
        holder = read_holder(JobFolder(output))
        assert holder is not None
        assert (holder.host, holder.pid) == (socket.gethostname(), working.popen.pid)
        assert holder.start[:2] == "20"
        working.signal_group(signal.SIGKILL)
        working.wait()
        assert read_holder(JobFolder(output)) is None
        working.wait_for_group()
    run(*job.arguments(output, "--slots", "16"), expect=ExitCode.COMPLETE)
    assert_whole(output, job.expected)
