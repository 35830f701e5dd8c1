"""Runs the same images through batchcap and other programs, in turn, and prints who was how fast at which precision.

usage: python benchmarks/bench.py [--images 64] [--rounds 3] [--only NAME] … [--prepare]
"""

import argparse
import json
import os
from pathlib import Path

from peers.contestants import checkpoint, contestants
from peers.protocol import TOKEN_SIDE_PX, Task
from peers.report import tables
from peers.rounds import Benchmark
from real_size import WORK, make_images

from batchcap.config import DEFAULT_PROMPT, VisionConfig
from batchcap.core.machine import available_cores

RESULTS = Path(__file__).parent / "results"
IMAGES, ROUNDS = 64, 3
MIN_VISUAL_TOKENS = 64  # of the checkpoint's preprocessor_config.json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [contestant.name for contestant in contestants()]
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", action="append", choices=names, help="one contestant; repeatable")
    parser.add_argument("--prepare", action="store_true", help="only make environments and models")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--sequences", type=int, default=16, help="captions in work at once")
    parser.add_argument("--json", type=Path, help="results file; default: in results/, a trial's in work/")
    arguments = parser.parse_args()
    chosen = [each for each in contestants() if not arguments.only or each.name in arguments.only]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    images = make_images(WORK / f"images-{arguments.images}", arguments.images)
    task = Task(
        images=[str(path) for path in sorted(images.iterdir())],
        prompt=DEFAULT_PROMPT,
        min_pixels=MIN_VISUAL_TOKENS * TOKEN_SIDE_PX**2,
        max_pixels=VisionConfig().max_visual_tokens * TOKEN_SIDE_PX**2,
        new_tokens=arguments.new_tokens,
        threads=arguments.threads,
        sequences=arguments.sequences,
    )
    benchmark = Benchmark(WORK, checkpoint(WORK), task, missing={})
    prepared = benchmark.prepare(chosen)
    if arguments.prepare:
        return
    results = benchmark.run(prepared, arguments.rounds)
    print(f"\n{tables(results)}")
    is_whole = not arguments.only and arguments.images >= IMAGES and arguments.rounds >= ROUNDS
    folder = RESULTS if is_whole else WORK / "peers"
    path = arguments.json or folder / f"bench-{results.machine['date']}.json"
    path.write_text(json.dumps(results.as_json(), indent=1) + "\n", encoding="utf-8")
    print(f"\n{path}")


if __name__ == "__main__":
    main()
