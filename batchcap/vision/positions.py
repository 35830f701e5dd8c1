"""Owns the learned position embeddings: a trained square, resampled to the grid of each picture."""

from functools import lru_cache

import torch

from batchcap.vision.rope import merge_block_order

CACHED_GRIDS = 16  # 4 MiB each at 1024 patches and a hidden size of 1024


class PositionEmbeddings:
    """Bilinear interpolation of the learned square, corners on corners.

    The same arithmetic in the same order as `get_vision_interpolation_indices_and_weights` and
    `Qwen3VLVisionModel.forward` in transformers, so the result is equal bit for bit. Interpolated in
    float32 whatever the table's dtype, then rounded once to that dtype.

    Args:
        table: [side², hidden] learned embeddings, in the encoder's dtype.
        merge: side of a merge block in patches.
    """

    def __init__(self, table: torch.Tensor, merge: int) -> None:
        self._table = table
        self._side = round(len(table) ** 0.5)
        self._merge = merge
        self.for_grid = lru_cache(maxsize=CACHED_GRIDS)(self._interpolate)

    def _interpolate(self, grid: tuple[int, int]) -> torch.Tensor:
        """Embeddings [P, hidden] of a grid's patches in merge-block order, in the table's dtype."""
        rows, columns = merge_block_order(grid, self._merge)
        row_taps, row_weights = self._axis_taps(rows, grid[0])
        column_taps, column_weights = self._axis_taps(columns, grid[1])
        taps = (row_taps[:, :, None] * self._side + column_taps[:, None, :]).reshape(-1, 4)
        weights = (row_weights[:, :, None] * column_weights[:, None, :]).reshape(-1, 4)
        return (self._table[taps] * weights[:, :, None]).sum(1).to(self._table.dtype)

    def _axis_taps(self, places: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The two neighbours on the learned axis and their weights, [P, 2] each."""
        source = places.to(torch.float32) * (self._side - 1) / max(size - 1, 1)
        floor = torch.floor(source)
        offsets = torch.arange(2)
        taps = (floor.long()[:, None] + offsets).clamp(0, self._side - 1)
        weights = (1 - (source[:, None] - floor[:, None] - offsets).abs()).clamp(min=0)
        return taps, weights
