"""The chaos harness: `python -m tests.chaos [--runs 300] [--seed N]`.

Each run is a job of its own that one fault happens to at a random moment; then the same command goes on, and what
comes out is compared with an uninterrupted job. Prints runs, faults and losses; exit code 1 where there is a loss.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from batchcap.export.export import export_bundle
from batchcap.export.options import ExportOptions
from batchcap.machine import available_cores, cpu_name
from tests.chaos.faults import FAULTS
from tests.chaos.harness import run_with
from tests.checkpoints import make_checkpoint
from tests.e2e.conftest import uninterrupted_job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=150)
    arguments = parser.parse_args()
    runs, struck, losses = Counter[str](), Counter[str](), Counter[str]()
    started_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        checkpoint = make_checkpoint(work / "checkpoint")
        bundle = export_bundle(str(checkpoint), work / "bundle", ExportOptions(context=1024))
        job = uninterrupted_job(work / "job", bundle, arguments.pictures, arguments.pictures // 2)
        for number in range(arguments.runs):
            fault = FAULTS[number % len(FAULTS)]
            runs[fault.name] += 1
            try:
                result = run_with(fault, job, work / "out", arguments.seed + number)
                struck[fault.name] += result.struck
            except AssertionError as error:
                losses[fault.name] += 1
                print(f"run {number}: {fault.name}: {error}", flush=True)
    took_s = time.perf_counter() - started_s
    print(f"{cpu_name()}, {available_cores()} cores, {took_s:.0f} s; a job of {len(job.expected)} rows")
    print("| fault | runs | struck | losses |")
    print("| --- | --: | --: | --: |")
    for name, count in runs.items():
        print(f"| {name} | {count} | {struck[name]} | {losses[name]} |")
    print(f"| all | {runs.total()} | {struck.total()} | {losses.total()} |")
    sys.exit(bool(losses))


if __name__ == "__main__":
    main()
