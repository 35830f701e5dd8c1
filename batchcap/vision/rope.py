"""Owns the 2-D rotary position table of the vision tower: computed once, indexed for every grid."""

import torch

ROPE_THETA = 10000.0
FIRST_SIDE = 128  # positions computed at the start; grids of 256 visual tokens seldom reach it


def merge_block_order(grid: tuple[int, int], merge: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of every patch, in the order the patches have: merge block by merge block.

    Args:
        grid: patches down and across, both multiples of `merge`.
        merge: side of a merge block in patches.

    Returns:
        Two int64 tensors [P], P = down · across.
    """
    down, across = grid
    place = torch.arange(down * across).view(down // merge, merge, across // merge, merge)
    place = place.transpose(1, 2).flatten()
    return place // across, place % across


class RotaryTable:
    """Cosines and sines for positions 0, 1, 2, … along one axis; grown when a longer grid comes.

    Half of a head's frequencies turn with the row, half with the column: the axial rotary embedding of
    Qwen2-VL (`Qwen3VLVisionRotaryEmbedding` in transformers). The numbers are equal to those, bit for bit.
    """

    def __init__(self, head_dim: int, merge: int) -> None:
        axis_dim = head_dim // 2
        exponents = torch.arange(0, axis_dim, 2, dtype=torch.float32) / axis_dim
        self._inverse_frequencies = 1.0 / (ROPE_THETA**exponents)  # [head_dim / 4]
        self._merge = merge
        self._grow(FIRST_SIDE)

    def _grow(self, side: int) -> None:
        angles = torch.arange(side, dtype=torch.float32)[:, None] * self._inverse_frequencies
        self._cos, self._sin = angles.cos(), angles.sin()  # [side, head_dim / 4]

    def for_grid(self, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines for every patch of a grid, each [P, head_dim] float32, in merge-block order."""
        if max(grid) > len(self._cos):
            self._grow(max(*grid, 2 * len(self._cos)))
        rows, columns = merge_block_order(grid, self._merge)
        cos = torch.cat((self._cos[rows], self._cos[columns]), dim=-1)
        sin = torch.cat((self._sin[rows], self._sin[columns]), dim=-1)
        return torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)
