"""The chaos harness: `python -m tests.chaos [--runs 300] [--seed N] [--kinds]`.

Each run is a job of its own that one fault happens to at a random moment; then the same command goes on, and what
comes out is compared with an uninterrupted job. Every second job is of another kind of input, and writes other forms of
its captions, too; with --kinds all of them. Then two runs of one job are started at once, 50 times: one works and
is killed, the other must be turned away. Prints runs, faults and losses; exit code 1 where there is a loss.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from batchcap.core.machine import available_cores, cpu_name
from batchcap.export.checkpoint.options import ExportOptions
from batchcap.export.export import export_bundle
from tests.chaos.faults import FAULTS
from tests.chaos.harness import one_of_two_runs, run_with
from tests.chaos.kinds import KINDS, job_of
from tests.checkpoints import make_checkpoint
from tests.e2e.conftest import Job, uninterrupted_job

TWO_AT_ONCE = "two runs at once"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--lock-rounds", type=int, default=50)
    parser.add_argument("--kinds", action="store_true", help="only jobs of the other kinds of input")
    arguments = parser.parse_args()
    runs, struck, losses = Counter[str](), Counter[str](), Counter[str]()
    started_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        checkpoint = make_checkpoint(work / "checkpoint")
        bundle = export_bundle(str(checkpoint), work / "bundle", ExportOptions(context=1024))
        job = uninterrupted_job(work / "job", bundle, arguments.images, arguments.images // 2)
        others = [job_of(kind, work / "kinds", str(bundle.folder)) for kind in KINDS]
        chance = random.Random(arguments.seed)
        for number in range(arguments.runs):
            fault = FAULTS[number % len(FAULTS)]
            runs[fault.name] += 1
            chosen: Job = chance.choice(others) if arguments.kinds or chance.random() < 0.5 else job
            try:
                result = run_with(fault, chosen, work / "out", arguments.seed + number)
                struck[fault.name] += result.struck
            except AssertionError as error:
                losses[fault.name] += 1
                print(f"run {number}: {fault.name}, {' '.join(chosen.inputs)}: {error}", flush=True)
        for number in range(arguments.lock_rounds):
            runs[TWO_AT_ONCE] += 1
            try:
                two_at_once(job, work / "two", takes_over=number % 2 == 1)
                struck[TWO_AT_ONCE] += 1
            except AssertionError as error:
                losses[TWO_AT_ONCE] += 1
                print(f"{TWO_AT_ONCE}: {error}", flush=True)
    took_s = time.perf_counter() - started_s
    print(f"{cpu_name()}, {available_cores()} cores, {took_s:.0f} s; a job of {len(job.expected)} rows")
    print("| fault | runs | struck | losses |")
    print("| --- | --: | --: | --: |")
    for name, count in runs.items():
        print(f"| {name} | {count} | {struck[name]} | {losses[name]} |")
    print(f"| all | {runs.total()} | {struck.total()} | {losses.total()} |")
    sys.exit(bool(losses))


def two_at_once(job: Job, output: Path, *, takes_over: bool) -> None:
    """One of two runs works and is killed; `takes_over`: after one that was killed in the same way.

    Raises:
        AssertionError: both work or both leave.
    """
    if not takes_over:
        shutil.rmtree(output, ignore_errors=True)
    one_of_two_runs(job, output).put_away()


if __name__ == "__main__":
    main()
