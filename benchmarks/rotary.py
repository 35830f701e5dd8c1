"""The precomputed rotary table beside computing it anew for every image, as transformers does: equality, time, bytes.

usage: python benchmarks/rotary.py
"""

import statistics
import time
from collections.abc import Callable

import batchcap.core.offline  # noqa: F401 - before any library that would send something

# isort: split
import numpy as np
import torch
from real_size import available_cores, cpu_name
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionRotaryEmbedding
from transformers.vision_utils import get_vision_position_ids

from batchcap.vision.rope import RotaryTable
from batchcap.vision.rotary import POSITIONS, rotary_table

SIDES = (12, 18, 24, 32, 48, 64, 96)
BEYOND = POSITIONS + 2
HIDDEN, HEADS, MERGE = 1024, 16, 2  # of Qwen3-VL-2B and -4B
REPEATS = 51


def main() -> None:
    reference = Qwen3VLVisionRotaryEmbedding(Qwen3VLVisionConfig(hidden_size=HIDDEN, num_heads=HEADS))
    numbers = rotary_table(HIDDEN // HEADS)
    table = RotaryTable(numbers, MERGE)
    print(f"{cpu_name()}, {available_cores()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"the table in the bundle: {POSITIONS:,} positions, {numbers.nbytes:,} bytes; median of {REPEATS}\n")
    print("| grid | patches | largest difference | recomputed ms | from the table ms | ratio | bytes of one result |")
    print("| --- | --: | --: | --: | --: | --: | --: |")
    for grid in [*((side, side) for side in SIDES), (2, BEYOND)]:
        ids = torch.tensor([[1, *grid]])

        def recompute(ids: torch.Tensor = ids) -> tuple[torch.Tensor, ...]:
            found: tuple[torch.Tensor, ...] = reference(torch.zeros(1), get_vision_position_ids(ids, MERGE))
            return found

        def look_up(grid: tuple[int, int] = grid) -> tuple[np.ndarray, np.ndarray]:
            return table.for_grid(grid)

        ours, theirs = look_up(), recompute()
        halves = (np.concatenate((half, half), axis=-1) for half in ours)
        difference = max(float(np.abs(a - b.numpy()).max()) for a, b in zip(halves, theirs, strict=True))
        slow, fast = median_ms(recompute), median_ms(look_up)
        cells = [f"{grid[0]} × {grid[1]}", f"{grid[0] * grid[1]:,}", f"{difference:.1f}", f"{slow:.3f}", f"{fast:.3f}"]
        cells += [f"{slow / fast:.1f}", f"{sum(half.nbytes for half in ours):,}"]
        print(f"| {' | '.join(cells)} |")


def median_ms(work: Callable[[], object]) -> float:
    """Median time of a call."""
    times = []
    for _repeat in range(REPEATS):
        started_s = time.perf_counter()
        work()
        times.append((time.perf_counter() - started_s) * 1000)
    return statistics.median(times)


if __name__ == "__main__":
    main()
