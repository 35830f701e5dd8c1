"""Owns the use of the vision tower's 2-D rotary table: precomputed at export, indexed for every grid."""

import numpy as np

from batchcap.core.records import Float32Array, Int64Array


def merge_block_order(grid: tuple[int, int], merge: int) -> tuple[Int64Array, Int64Array]:
    """Row and column of every patch, in the order the patches have: merge block by merge block.

    Args:
        grid: patches down and across, both multiples of `merge`.
        merge: side of a merge block in patches.

    Returns:
        Two int64 arrays [P], P = down · across.
    """
    down, across = grid
    places = np.arange(down * across).reshape(down // merge, merge, across // merge, merge)
    place: Int64Array = places.transpose(0, 2, 1, 3).reshape(-1)
    return place // across, place % across


class RotaryTable:
    """Cosines and sines for positions 0, 1, 2, … along one axis; grown when a longer grid comes.

    Half of a head's frequencies turn with the row, half with the column: the axial rotary embedding of
    Qwen2-VL (`Qwen3VLVisionRotaryEmbedding` in transformers). The numbers are equal to those, bit for bit: they were
    computed by PyTorch, whose cosine no other library gives to the last bit.

    Args:
        table: [2, positions, a / 4] float32, cosines and sines, as `vision.rotary.rotary_table` gives them; a is the
            head size.
        merge: side of a merge block in patches.
    """

    def __init__(self, table: Float32Array, merge: int) -> None:
        self._table = table
        self._merge = merge

    def for_grid(self, grid: tuple[int, int]) -> tuple[Float32Array, Float32Array]:
        """Cosines and sines for every patch of a grid, each [P, a / 2] float32, in merge-block order.

        They belong to the first half of a head's values, and once more to the second half.
        """
        table = self._table  # the same one throughout: another lane may put a larger or a smaller one in its place
        if max(grid) > table.shape[1]:
            from batchcap.vision.rotary import rotary_table  # noqa: PLC0415 - needs PyTorch; no job has such grids

            table = self._table = rotary_table(4 * table.shape[2], max(*grid, 2 * table.shape[1]))
        rows, columns = merge_block_order(grid, self._merge)
        cos, sin = np.concatenate((table[:, rows], table[:, columns]), axis=-1)
        return cos, sin
