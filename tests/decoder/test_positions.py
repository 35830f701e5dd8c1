"""The decoder's positions are those of transformers' get_rope_index."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3VLModel

from batchcap.decoder.positions import prompt_positions

IMAGE, START, END, WORD = 7, 5, 6, 1
MERGE = 2
GRIDS = [(1, 1), (1, 8), (8, 1), (2, 3), (9, 12), (12, 9), (16, 16), (3, 40)]


def reference(prefix: int, grid: tuple[int, int], suffix: int) -> np.ndarray[Any, Any]:
    """Positions [3, S] by transformers; the method reads nothing of a model but the merge size."""
    shell = Qwen3VLModel.__new__(Qwen3VLModel)
    torch.nn.Module.__init__(shell)
    shell.config = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=MERGE))
    visual = grid[0] * grid[1]
    kinds = torch.tensor([[0] * prefix + [1] * visual + [0] * suffix])
    ids = torch.where(kinds == 1, IMAGE, WORD)
    thw = torch.tensor([[1, grid[0] * MERGE, grid[1] * MERGE]])
    positions, _delta = shell.get_rope_index(ids, kinds, image_grid_thw=thw)
    return positions[:, 0].numpy()


@pytest.mark.parametrize("grid", GRIDS)
def test_equal_transformers(grid: tuple[int, int]) -> None:
    positions, following = prompt_positions(4, grid, 9)
    expected = reference(4, grid, 9)
    assert positions.dtype == np.int64
    np.testing.assert_array_equal(positions, expected)
    assert following == expected.max() + 1


@settings(max_examples=60, deadline=None)
@given(prefix=st.integers(1, 12), down=st.integers(1, 30), across=st.integers(1, 30), suffix=st.integers(1, 12))
def test_equal_transformers_everywhere(prefix: int, down: int, across: int, suffix: int) -> None:
    positions, following = prompt_positions(prefix, (down, across), suffix)
    expected = reference(prefix, (down, across), suffix)
    np.testing.assert_array_equal(positions, expected)
    assert following == expected.max() + 1
