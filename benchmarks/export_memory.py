"""Exports checkpoints of exact 2B, 4B and 8B size with random weights, and prints time and memory of each export.

The memory is that of the command and all its processes together, watched from outside five times a second.

usage: python benchmarks/export_memory.py [--geometry 4b --geometry 8b] [--keep]
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from process_tree import Usage, run_watched
from real_size import HERE, WORK, batchcap, print_machine

from batchcap.model.bundle import BUNDLE_FILE

GIB = 1 << 30
LIMITS_GIB = {"2b": 8, "4b": 8, "8b": 12}  # what the documentation promises


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", action="append", choices=sorted(LIMITS_GIB), help="default: 4b and 8b")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for checkpoints and bundles: 26 GB for 8b")
    parser.add_argument("--keep", action="store_true", help="keep bundles and checkpoints")
    arguments = parser.parse_args()
    missed = []
    for number, geometry in enumerate(arguments.geometry or ["4b", "8b"]):
        checkpoint, bundle = checkpoint_of(arguments.work, geometry), arguments.work / f"export-{geometry}"
        shutil.rmtree(bundle, ignore_errors=True)
        usage = run_watched([*batchcap(), "--quiet", "export", str(checkpoint), "--output", str(bundle)])
        if usage.exit_code or not (bundle / BUNDLE_FILE).exists():
            sys.exit(f"the export of {geometry} ended with {usage.exit_code}")
        if not number:
            print_machine(bundle)
            print("| geometry | checkpoint GiB | bundle GiB | seconds | CPU s | peak RSS GiB | peak PSS GiB | load |")
            print("| --- | --: | --: | --: | --: | --: | --: | --: |")
        print_row(geometry, checkpoint, bundle, usage)
        if usage.peak_rss_mib / 1024 > LIMITS_GIB[geometry]:
            missed.append(geometry)
        if not arguments.keep:
            shutil.rmtree(bundle)
            shutil.rmtree(checkpoint)
    if missed:
        sys.exit(f"more memory than promised: {', '.join(missed)}")


def checkpoint_of(work: Path, geometry: str) -> Path:
    """The random checkpoint, made unless it is there."""
    checkpoint = work / f"checkpoint-{geometry}"
    if not (checkpoint / "model.safetensors.index.json").exists():  # it is written last
        shutil.rmtree(checkpoint, ignore_errors=True)
        script = [sys.executable, str(HERE / "make_checkpoint.py")]
        subprocess.run([*script, "--geometry", geometry, "--output", str(checkpoint)], check=True)
    return checkpoint


def print_row(geometry: str, checkpoint: Path, bundle: Path, usage: Usage) -> None:
    sizes = [gib_of(checkpoint), gib_of(bundle)]
    precision = json.loads((bundle / BUNDLE_FILE).read_text(encoding="utf-8"))["precision"]
    peaks = [usage.peak_rss_mib / 1024, usage.peak_pss_mib / 1024]
    cells = [f"{size:.1f}" for size in sizes] + [f"{usage.elapsed_s:.0f}", f"{usage.cpu_s:.0f}"]
    cells += [f"{peak:.1f}" for peak in peaks] + [f"{usage.load_before:.1f}"]
    print(f"| {geometry}, {precision['bits']} bits | {' | '.join(cells)} |", flush=True)


def gib_of(folder: Path) -> float:
    """Bytes of the files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / GIB


if __name__ == "__main__":
    main()
