"""Owns the learned position embeddings: a trained square, resampled to the grid of each image."""

from functools import lru_cache

import numpy as np

from batchcap.core.records import Float32Array, Int64Array
from batchcap.vision.rope import merge_block_order

CACHED_GRIDS = 16  # 4 MiB each at 1024 patches and a hidden size of 1024


class PositionEmbeddings:
    """Bilinear interpolation of the learned square, corners on corners.

    The same arithmetic in the same order as `get_vision_interpolation_indices_and_weights` and
    `Qwen3VLVisionModel.forward` in transformers, so the result is equal bit for bit, in float32.

    Args:
        table: [side², hidden] learned embeddings, float32; of a bfloat16 encoder already rounded to it.
        merge: side of a merge block in patches.
    """

    def __init__(self, table: Float32Array, merge: int) -> None:
        self._table = table
        self._side = round(len(table) ** 0.5)
        self._merge = merge
        self.for_grid = lru_cache(maxsize=CACHED_GRIDS)(self._interpolate)

    def _interpolate(self, grid: tuple[int, int]) -> Float32Array:
        """Embeddings [P, hidden] of a grid's patches in merge-block order, float32."""
        rows, columns = merge_block_order(grid, self._merge)
        row_taps, row_weights = self._axis_taps(rows, grid[0])
        column_taps, column_weights = self._axis_taps(columns, grid[1])
        taps = (row_taps[:, :, None] * self._side + column_taps[:, None, :]).reshape(-1, 4)
        weights = (row_weights[:, :, None] * column_weights[:, None, :]).reshape(-1, 4)
        total: Float32Array = self._table[taps[:, 0]] * weights[:, :1]
        for tap in range(1, 4):
            total += self._table[taps[:, tap]] * weights[:, tap : tap + 1]
        return total

    def _axis_taps(self, places: Int64Array, size: int) -> tuple[Int64Array, Float32Array]:
        """The two neighbours on the learned axis and their weights, [P, 2] each."""
        source = places.astype(np.float32) * np.float32(self._side - 1) / np.float32(max(size - 1, 1))
        floor = np.floor(source)
        offsets = np.arange(2)
        taps = np.clip(floor.astype(np.int64)[:, None] + offsets, 0, self._side - 1)
        distance = source[:, None] - floor[:, None] - offsets.astype(np.float32)
        return taps, np.maximum(1 - np.abs(distance), 0, dtype=np.float32)
