"""Every documented exit code, by the real command, and what `summary.json` says then."""

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from batchcap.core.errors import ExitCode
from tests.e2e.conftest import LONG, Job
from tests.e2e.process import Process, read_summary, run

pytestmark = pytest.mark.slow
DOCS = Path(__file__).parents[2] / "docs" / "operations.md"


def complete(job: Job, output: Path) -> Process:
    return run(*job.arguments(output, "--limit", "6"))


def unexpected(job: Job, output: Path) -> Process:
    process = Process(*job.arguments(output, "--limit", "6"), program=("tests.chaos.faulty", "EIO", "part-", "1"))
    process.wait()
    return process


def usage(job: Job, output: Path) -> Process:
    complete(job, output)
    lost = output.parent / "not there"
    return run(*job.arguments(output, str(lost)), expect=ExitCode.USAGE)


def too_many_failures(job: Job, output: Path) -> Process:
    return run(*job.arguments(output, "--limit", "60", "--max-error-rate", "0"), expect=ExitCode.TOO_MANY_FAILURES)


def not_same_job(job: Job, output: Path) -> Process:
    complete(job, output)
    return run(*job.arguments(output, "--seed", "9"), expect=ExitCode.NOT_SAME_JOB)


def _signalled(job: Job, output: Path, number: int) -> Process:
    process = Process(*job.arguments(output, *LONG, "--slots", "1"))
    assert process.wait_until(lambda: process.done_before is not None)
    process.signal_group(number)
    process.wait()
    return process


def stopped_early(job: Job, output: Path) -> Process:
    return _signalled(job, output, signal.SIGTERM)


def interrupted(job: Job, output: Path) -> Process:
    return _signalled(job, output, signal.SIGINT)


ENDS: dict[ExitCode, tuple[Callable[[Job, Path], Process], str]] = {
    ExitCode.COMPLETE: (complete, "complete"),
    ExitCode.UNEXPECTED: (unexpected, "failed"),
    ExitCode.USAGE: (usage, "failed"),
    ExitCode.TOO_MANY_FAILURES: (too_many_failures, "complete"),
    ExitCode.NOT_SAME_JOB: (not_same_job, "complete"),  # of the run before: this folder is another job's
    ExitCode.STOPPED_EARLY: (stopped_early, "stopped"),
    ExitCode.INTERRUPTED: (interrupted, "interrupted"),
}


def test_the_table_has_every_code() -> None:
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", DOCS.read_text(), re.MULTILINE)}
    assert documented == {int(code) for code in ExitCode}
    assert documented - {int(code) for code in ENDS} == {int(ExitCode.LOCKED)}, "which has test_lock"


@pytest.mark.parametrize("code", ENDS, ids=lambda code: code.name)
def test_the_command_ends_with_it(job: Job, tmp_path: Path, code: ExitCode) -> None:
    end, state = ENDS[code]
    process = end(job, tmp_path / "out")
    assert process.popen.returncode == code, process.stderr
    assert "Traceback" not in process.stderr
    summary = read_summary(tmp_path / "out")
    assert summary["state"] == state
    assert summary["exit_code"] == (0 if code is ExitCode.NOT_SAME_JOB else code)
    assert (summary["rows"] is None) is (code is ExitCode.USAGE)
