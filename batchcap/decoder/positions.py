"""Owns the decoder's positions: mRoPE gives every token a time, a row and a column."""

import numpy as np

from batchcap.core.records import Int64Array


def prompt_positions(prefix: int, grid: tuple[int, int], suffix: int) -> tuple[Int64Array, int]:
    """Positions of a prompt with one image in it.

    Text counts on in all three rows; an image's tokens share one time and count rows and columns from it; the text
    after it goes on after the largest of them (transformers, modeling_qwen3_vl.py, `get_rope_index`).

    Args:
        prefix: tokens before the image.
        grid: visual tokens down and across.
        suffix: tokens after the image.

    Returns:
        Positions [3, S] int64 (time, row, column) with S = prefix + grid[0] · grid[1] + suffix, and the position of the
        first new token.
    """
    down, across = grid
    rows, columns = np.divmod(np.arange(down * across), across)
    image = prefix + np.stack([np.zeros_like(rows), rows, columns])
    after = prefix + max(down, across)
    before = np.broadcast_to(np.arange(prefix), (3, prefix))
    rest = np.broadcast_to(np.arange(after, after + suffix), (3, suffix))
    return np.concatenate([before, image, rest], axis=1).astype(np.int64), after + suffix
