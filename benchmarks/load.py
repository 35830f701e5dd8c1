"""One job of 10,000 small images with 4 decoders, of which a worker is killed at random moments, twice a minute.

The demo model captions drawn scenes. First without a kill and with one decoder, then with four and kills: every row
must be there once, with the same caption, and the memory must be as high at the first tenth of the rows as at the last.

usage: python benchmarks/load.py [--images 10000] [--decoders 4] [--kills-per-minute 2] [--seed 0]
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from batchcap.core.machine import MIB, available_cores, cpu_name, memory_mib
from batchcap.demo.scenes import compose, draw
from batchcap.report.status import read_status
from batchcap.store.folder import JobFolder

ROOT = Path(__file__).parents[1]
WORK = ROOT / "benchmarks" / "work" / "load"
RESULTS = ROOT / "benchmarks" / "results"
SAMPLE_S = 2.0
SIDES_PX = (64, 160)
# What decides a row; times, and who was a twin of whom, may differ.
DECIDED = ("id", "row", "caption", "status", "verdict", "error_kind", "new_tokens", "width", "height", "image_sha256")


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows done at a moment, and the memory of the coordinator and of all processes (shared pages counted once)."""

    rows: int
    coordinator_mib: float
    all_mib: float


@dataclass(frozen=True, slots=True)
class Run:
    """How a job went."""

    exit_code: int
    elapsed_s: float
    kills: dict[str, int]
    given_up: int
    samples: list[Sample]


def main() -> None:
    """Both jobs, and the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--decoders", type=int, default=4)
    parser.add_argument("--kills-per-minute", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    folder = write_images(WORK / f"images-{arguments.images}", arguments.images)
    whole, killed = WORK / "whole", WORK / "killed"
    print(f"{cpu_name()}, {available_cores()} cores; {arguments.images} images, demo model", flush=True)
    calm = watch(folder, whole, ("--decoders", "1"), 0, chance)
    print(f"1 decoder, no kill: exit code {calm.exit_code}, {calm.elapsed_s:.0f} s", flush=True)
    options = ("--decoders", str(arguments.decoders))
    run = watch(folder, killed, options, arguments.kills_per_minute, chance)
    print(
        f"{arguments.decoders} decoders: exit code {run.exit_code}, {run.elapsed_s:.0f} s, kills {run.kills}",
        flush=True,
    )
    expected, found = decided(whole), decided(killed)
    differing = sum(one != other for one, other in zip(expected, found, strict=False))
    print(f"rows {len(found)} of {len(expected)}, {differing} differ, {run.given_up} given up as crashed")
    thousand = max(1, arguments.images // 10)
    ends = {"first": between(run, 0, thousand), "last": between(run, arguments.images - thousand, arguments.images)}
    for name, (coordinator, everything) in ends.items():
        print(
            f"memory, median of the {name} {thousand} rows: coordinator {coordinator:.0f} MiB, all {everything:.0f} MiB"
        )
    is_right = (run.exit_code, calm.exit_code, differing, len(found)) == (0, 0, 0, arguments.images)
    write_results(arguments, calm, run, {"differing": differing, "memory_mib": ends, "is_right": is_right})
    sys.exit(not is_right)


def write_images(folder: Path, count: int) -> Path:
    """Drawn scenes, each of its own."""
    if folder.exists() and len(list(folder.iterdir())) == count:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(count):
        rng = random.Random(number)
        width, height = rng.randint(*SIDES_PX), rng.randint(*SIDES_PX)
        file = BytesIO()
        draw(compose(rng, width / height), rng, width, height).save(file, "JPEG", quality=90)
        (folder / f"{number:05d}.jpg").write_bytes(file.getvalue())
    return folder


def watch(folder: Path, output: Path, options: tuple[str, ...], kills_per_minute: float, chance: random.Random) -> Run:
    """Run a job to its end, sample it, and kill workers of it."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "batchcap.cli", "--quiet", "caption", str(folder), "-o", str(output)]
    command += ["--model", "demo", *options]
    started_s = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    samples: list[Sample] = []
    kills = {"vision": 0, "decoder": 0}
    kill_at_s = _next_kill_s(kills_per_minute, chance)
    while process.poll() is None:
        time.sleep(SAMPLE_S)
        with suppress(Exception):  # no plan yet, or a process that has just ended
            samples.append(_sample(process.pid, output))
        if samples and time.perf_counter() - started_s >= kill_at_s:
            kill_at_s += _next_kill_s(kills_per_minute, chance)
            struck = _kill_worker(process.pid, chance)
            if struck is not None:
                kills[struck] += 1
    given_up = read_status(output).counts.error_kinds["crashed"]
    return Run(process.returncode, time.perf_counter() - started_s, kills, given_up, samples)


def _next_kill_s(per_minute: float, chance: random.Random) -> float:
    return chance.uniform(0.5, 1.5) * 60 / per_minute if per_minute else float("inf")


def _sample(pid: int, output: Path) -> Sample:
    pids = [pid, *(child.pid for child in psutil.Process(pid).children())]
    return Sample(read_status(output).counts.rows, psutil.Process(pid).memory_info().rss / MIB, memory_mib(pids))


def _kill_worker(pid: int, chance: random.Random) -> str | None:
    """SIGKILL the vision worker or one of the decoders; which of them it was."""
    with suppress(psutil.Error):
        workers: dict[str, list[psutil.Process]] = {"vision": [], "decoder": []}
        for worker in psutil.Process(pid).children():
            has_torch = any("torch" in one.path for one in worker.memory_maps())  # a decoder never loads it
            workers["vision" if has_torch else "decoder"].append(worker)
        kind = chance.choice([name for name, found in workers.items() if found])
        os.kill(chance.choice(workers[kind]).pid, signal.SIGKILL)
        return kind
    return None


def decided(output: Path) -> list[dict[str, Any]]:
    """The rows of a job, without what differs from run to run."""
    parts = JobFolder(output).part_paths()
    rows: list[dict[str, Any]] = pa.concat_tables(
        [pq.read_table(path, columns=list(DECIDED)) for path in parts]
    ).to_pylist()
    return rows


def between(run: Run, first: int, last: int) -> tuple[float, float]:
    """Median memory of the coordinator and of all while so many rows were done."""
    inside = [sample for sample in run.samples if first <= sample.rows < last]
    return (
        statistics.median(sample.coordinator_mib for sample in inside),
        statistics.median(sample.all_mib for sample in inside),
    )


def write_results(arguments: argparse.Namespace, calm: Run, run: Run, found: dict[str, Any]) -> None:
    """Keep what was measured."""
    content = {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "arguments": vars(arguments),
        "calm": {**asdict(calm), "samples": len(calm.samples)},
        "killed": asdict(run),
        **found,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "load.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
