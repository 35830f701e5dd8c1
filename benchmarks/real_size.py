"""Captions 64 photographs with a model of exact 2B size and random weights, end to end, and prints what it took.

The command line does the work, as a user would run it; the figures are those of its summary, and the memory is watched
from outside. Random weights never stop, and loop as they please: --no-loop-stop makes every caption 64 tokens long.

usage: python benchmarks/real_size.py [--images 64] [--variant="--slots 32"] [--variant="--decoders 2"] …
"""

import argparse
import json
import os
import platform
import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from process_tree import Usage, run_watched

from batchcap import __version__
from batchcap.core.machine import available_cores, cpu_flags, cpu_name
from batchcap.model.bundle import BUNDLE_FILE
from batchcap.store.folder import JobFolder

HERE = Path(__file__).parent
WORK = HERE / "work"
PHOTOGRAPHS = HERE.parent / "batchcap" / "demo" / "assets" / "photographs"
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
LIBRARIES = ("torch", "onnxruntime", "onnxruntime-genai", "transformers")
NEW_TOKENS = 64
# Longest side in pixels from a thumbnail to a telephone's camera, and width to height from tall to wide.
MAX_SIDE_PX = (192, 3072)
ASPECTS = (0.4, 2.5)
STAGES = ("read", "vision", "prefill", "decode", "store")


@dataclass(frozen=True, slots=True)
class Run:
    """One job: its summary, its caption rows, and what was seen from outside."""

    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    usage: Usage

    @property
    def figures(self) -> dict[str, Any]:
        """What the run did, by the job's own account."""
        figures: dict[str, Any] = self.summary["run"]
        return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--geometry", choices=("tiny", "2b", "4b", "8b"), default="2b")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for checkpoint, bundle, images and jobs")
    parser.add_argument("--variant", action="append", default=[], help="one more run with these options; repeatable")
    arguments = parser.parse_args()
    bundle = make_bundle(arguments.work, arguments.geometry)
    images = make_images(arguments.work / f"images-{arguments.images}", arguments.images)
    print_machine(bundle)
    job = arguments.work / "job"
    run = caption(images, bundle, job, [])
    print_run(run)
    if arguments.variant:
        print_variants([("default", run)])
    for variant in arguments.variant:
        print_variants([(variant, caption(images, bundle, job, shlex.split(variant)))], header=False)


def make_bundle(work: Path, geometry: str, name: str = "", options: Sequence[str] = ()) -> Path:
    """The bundle, and the checkpoint it is made of, unless they are there; one with options has a name of its own."""
    bundle = work / "-".join(filter(None, ("bundle", geometry, name)))
    if not (bundle / BUNDLE_FILE).exists():
        checkpoint = make_checkpoint(work, geometry)
        usage = run_watched([*batchcap(), "export", str(checkpoint), "--output", str(bundle), *options])
        if usage.exit_code:
            sys.exit(f"the export ended with {usage.exit_code}")
        print(f"export: {usage.elapsed_s:.0f} s, peak memory {usage.peak_rss_mib / 1024:.1f} GiB\n")
    return bundle


def make_checkpoint(work: Path, geometry: str) -> Path:
    """The checkpoint, unless it is there."""
    checkpoint = work / f"checkpoint-{geometry}"
    if not (checkpoint / "model.safetensors.index.json").exists():  # it is written last
        shutil.rmtree(checkpoint, ignore_errors=True)
        script = [sys.executable, str(HERE / "make_checkpoint.py")]
        subprocess.run([*script, "--geometry", geometry, "--output", str(checkpoint)], check=True)
    return checkpoint


def batchcap() -> list[str]:
    """The command of this very environment."""
    return [str(Path(sys.executable).with_name("batchcap"))]


def make_images(folder: Path, count: int) -> Path:
    """Seeded crops of the photographs, scaled to all sizes."""
    if folder.exists() and len(list(folder.iterdir())) == count:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    sources = [Image.open(path).convert("RGB") for path in sorted(PHOTOGRAPHS.glob("*.jpg"))]
    for number in range(count):
        source = sources[number % len(sources)]
        aspect = log_uniform(chance, *ASPECTS)
        width = min(source.width, source.height * aspect) * chance.uniform(0.6, 1.0)
        height = width / aspect
        left, top = chance.uniform(0, source.width - width), chance.uniform(0, source.height - height)
        scale = log_uniform(chance, *MAX_SIDE_PX) / max(width, height)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        box = (left, top, left + width, top + height)
        image = source.resize(size, Image.Resampling.BICUBIC, box)
        image.save(folder / f"photograph-{number:02}.jpg", quality=90)
    return folder


def log_uniform(chance: random.Random, low: float, high: float) -> float:
    return float(np.exp(chance.uniform(np.log(low), np.log(high))))


def caption(images: Path, bundle: Path, job: Path, options: list[str]) -> Run:
    """One job from nothing."""
    shutil.rmtree(job, ignore_errors=True)
    words = ["caption", str(images), "--output", str(job), "--model", str(bundle)]
    words += ["--max-new-tokens", str(NEW_TOKENS), "--no-loop-stop"]
    usage = run_watched([*batchcap(), *words, *options], stdout=subprocess.DEVNULL)
    if usage.exit_code:
        sys.exit(f"the job ended with {usage.exit_code}")
    summary = json.loads(JobFolder(job).summary_path.read_text(encoding="utf-8"))
    rows = pq.read_table(job).to_pylist()
    odd = [row["id"] for row in rows if row["new_tokens"] != NEW_TOKENS]
    if odd:
        print(f"note: {len(odd)} captions ended before {NEW_TOKENS} tokens: {', '.join(odd[:5])}")
    return Run(summary, rows, usage)


def print_machine(bundle: Path) -> None:
    precision = json.loads((bundle / BUNDLE_FILE).read_text(encoding="utf-8"))["precision"]
    flags = " ".join(flag for flag in FLAGS if flag in cpu_flags())
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    print(f"{datetime.now(UTC):%Y-%m-%d}, {cpu_name()} ({flags}), {available_cores()} cores")
    print(f"batchcap {__version__}, Python {platform.python_version()}, {versions}")
    print(f"{bundle.name}, decoder {precision}\n", flush=True)


def print_run(run: Run) -> None:
    """The result in a line, then where it comes from."""
    figures, usage = run.figures, run.usage
    tokens = sorted(row["visual_tokens"] for row in run.rows)
    sides = sorted(max(row["width"], row["height"]) for row in run.rows)
    busy = ", ".join(f"{stage} {figures['stage_busy_s'].get(stage, 0.0):.1f}" for stage in STAGES)
    print(
        f"{figures['images']} photographs, {NEW_TOKENS} new tokens each: {figures['images_per_min']:.1f} images/min, "
        f"{figures['tokens_per_s']:.1f} tokens/s, peak memory {usage.peak_pss_mib / 1024:.2f} GiB, "
        f"start-up {start_up_s(run):.1f} s"
    )
    print(f"visual tokens: mean {np.mean(tokens):.0f}, {tokens[0]} to {tokens[-1]}")
    print(f"longest sides: {sides[0]} to {sides[-1]} pixels")
    print(f"busy seconds: {busy}; working {figures['working_s']:.1f}, whole command {usage.elapsed_s:.1f}")
    print(f"CPU seconds {usage.cpu_s:.1f}; load average {usage.load_before:.2f} before, {os.getloadavg()[0]:.2f} after")
    print(f"peak memory by the job's own account {figures['peak_memory_mib'] / 1024:.2f} GiB\n", flush=True)


def start_up_s(run: Run) -> float:
    """From the command to the first row handed out, and from the last row to its end."""
    return run.usage.elapsed_s - float(run.figures["working_s"])


def print_variants(runs: list[tuple[str, Run]], *, header: bool = True) -> None:
    if header:
        print("| options | images/min | tokens/s | prefill s | decode s | vision s | peak GiB | load |")
        print("| --- | --: | --: | --: | --: | --: | --: | --: |")
    for name, run in runs:
        busy = run.figures["stage_busy_s"]
        cells = [f"{run.figures['images_per_min']:.1f}", f"{run.figures['tokens_per_s']:.1f}"]
        cells += [f"{busy.get(stage, 0.0):.1f}" for stage in ("prefill", "decode", "vision")]
        cells += [f"{run.usage.peak_pss_mib / 1024:.2f}", f"{run.usage.load_before:.1f}"]
        print(f"| `{name}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
