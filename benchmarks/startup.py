"""Measures the start of decoder workers on a bundle: seconds from the start to Ready, and memory.

usage: python benchmarks/startup.py BUNDLE [--rounds 3] [--slots 16]

Workers with a copy of the weights each and workers that share one start in turn, one alone and two at once. What
earlier starts leave is kept in the cache folder ($BATCHCAP_CACHE); the first start of each kind makes it and is not
counted.
"""

import argparse
import statistics
import time
from collections import defaultdict
from itertools import product
from pathlib import Path

from batchcap.config import GenerationConfig
from batchcap.core.machine import MIB, available_cores, cpu_name, memory_mib
from batchcap.engines.messages import DecoderSpec, Ready
from batchcap.engines.process import Worker
from batchcap.model.bundle import Bundle

MAX_VISUAL_TOKENS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=16)
    arguments = parser.parse_args()
    bundle = Bundle.load(arguments.bundle, verify=False)
    print(f"{cpu_name()}, {available_cores()} cores; {bundle.source}, {bundle.precision}")
    kinds = list(product((False, True), (1, 2)))
    found: dict[tuple[bool, int], list[tuple[float, float, float]]] = defaultdict(list)
    for number in range(1 + arguments.rounds):
        for share, workers in kinds:
            measured = start(bundle, arguments.slots, workers, share=share)
            if number:
                found[share, workers].append(measured)
    print("| weights | decoders | s to Ready | PSS together, MiB | private, MiB a decoder |")
    print("| --- | --: | --: | --: | --: |")
    for (share, workers), rounds in found.items():
        seconds, together, private = (statistics.median(values) for values in zip(*rounds, strict=True))
        kind = "shared" if share else "own"
        print(f"| {kind} | {workers} | {seconds:.2f} | {together:,.0f} | {private:,.0f} |")


def start(bundle: Bundle, slots: int, workers: int, *, share: bool) -> tuple[float, float, float]:
    """Seconds until the last of the workers is ready, PSS of all, memory of one that no other process shares (MiB)."""
    spec = DecoderSpec(
        bundle_folder=str(bundle.folder),
        bundle_id=bundle.id,
        generation=GenerationConfig(),
        slots=slots,
        threads=max(1, available_cores() // workers),
        max_visual_tokens=MAX_VISUAL_TOKENS,
        share_weights=share,
    )
    started_s = time.perf_counter()
    running = [Worker(f"decoder {number}", spec) for number in range(workers)]
    try:
        for worker in running:
            message = worker.connection.recv()
            if not isinstance(message, Ready):
                raise SystemExit(f"{worker.name} began with {message}")
        seconds = time.perf_counter() - started_s
        ids = [worker.process.pid for worker in running]
        return seconds, memory_mib(ids), sum(map(_anonymous_mib, ids)) / workers
    finally:
        for worker in running:
            worker.kill()
        for worker in running:
            worker.close()


def _anonymous_mib(pid: int) -> float:
    """Memory that belongs to the process alone and is not a file's."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) * 1024 / MIB


if __name__ == "__main__":
    main()
