"""One job, one fault, the same command again: nothing lost, nothing double, nothing different."""

import random
from dataclasses import dataclass
from pathlib import Path

from batchcap.core.errors import ExitCode
from tests.chaos.faults import Fault, Scene
from tests.chaos.kinds import PARTS
from tests.e2e.conftest import Job
from tests.e2e.process import Process, assert_clean, durable_rows, run


@dataclass(frozen=True, slots=True)
class Result:
    """How a run with a fault went.

    Attributes:
        exit_code: of the run that the fault struck.
        struck: whether the fault came before the run was over.
        durable: rows that were safe when it had ended.
    """

    exit_code: int
    struck: bool
    durable: int


def run_with(fault: Fault, job: Job, output: Path, seed: int) -> Result:
    """Run a job into a new folder, let the fault happen, resume, and compare with the uninterrupted job.

    Raises:
        AssertionError: a row is lost, double or different, or an exit code is not a documented one.
    """
    job.prepare(output)
    chance = random.Random(seed)
    arguments = job.arguments(output, *PARTS, *fault.options)
    process = Process(*arguments, program=fault.program(chance), obeys_modes=fault.obeys_modes, warm=True)
    scene = Scene(process, output, chance, job.took_s)
    try:
        struck = fault.strike(scene)
        code = process.wait()
    finally:
        process.put_away()
    assert code in fault.ends, f"{fault.name}: exit code {code}, not one of {fault.ends}:\n{process.stderr}"
    assert_clean(process)
    durable, _double = durable_rows(output) if output.exists() else (0, 0)
    fault.damage(scene)
    run(*job.arguments(output, *PARTS))
    job.assert_whole(output)
    return Result(code, struck, durable)


def one_of_two_runs(job: Job, output: Path) -> Process:
    """Start the same job twice at once: the one that works, once the other has been turned away.

    Raises:
        AssertionError: both work or both leave, or the one that left did so otherwise than it must.
    """
    both = [Process(*job.arguments(output, "--slots", "1"), warm=True) for _ in range(2)]
    first, second = both
    first.wait_until(lambda: second.popen.poll() is not None)
    working, turned_away = both if second.popen.poll() is not None else both[::-1]
    code = turned_away.wait()
    assert code == ExitCode.LOCKED, f"exit code {code}, not {int(ExitCode.LOCKED)}:\n{turned_away.stderr}"
    assert working.popen.poll() is None, f"both have left:\n{working.stderr}"
    return working
