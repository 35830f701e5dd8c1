"""Rotary table and position embeddings equal transformers' bit for bit."""

import numpy as np
import pytest
import torch
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionRotaryEmbedding
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from batchcap.export.checkpoint.options import ExportOptions
from batchcap.vision.positions import CACHED_GRIDS, PositionEmbeddings
from batchcap.vision.rope import RotaryTable, merge_block_order
from batchcap.vision.rotary import POSITIONS, rotary_table

SIDES = [12, 18, 24, 32, 48, 64, 96]
FIRST_SIDE = 128  # of the tables here; the ones of bundles are longer
BEYOND_TABLE = [FIRST_SIDE - 2, FIRST_SIDE, FIRST_SIDE + 2, 3 * FIRST_SIDE + 2]
GRIDS = [
    *((side, side) for side in SIDES),
    *((side, 2) for side in (*SIDES, *BEYOND_TABLE)),
    *((2, side) for side in (*SIDES, *BEYOND_TABLE)),
    (2, 2),
    (14, 22),
    (34, 6),
]


@pytest.mark.parametrize("heads", [16, 8, 4])  # head sizes 64, 128 and 256
def test_rotary_table_equals_transformers(heads: int) -> None:
    config = Qwen3VLVisionConfig(hidden_size=1024, num_heads=heads)
    rotary = Qwen3VLVisionRotaryEmbedding(config)
    table = RotaryTable(rotary_table(1024 // heads, FIRST_SIDE), merge=2)
    for down, across in GRIDS:
        ids = get_vision_position_ids(torch.tensor([[1, down, across]]), 2)
        for ours, theirs in zip(table.for_grid((down, across)), rotary(torch.zeros(1), ids), strict=True):
            assert ours.dtype == np.float32
            assert np.abs(np.concatenate((ours, ours), axis=-1) - theirs.numpy()).max() == 0.0


def test_a_grown_table_gives_what_a_fresh_one_gives() -> None:
    grown = RotaryTable(rotary_table(64, FIRST_SIDE), merge=2)
    before = grown.for_grid((18, 24))
    grown.for_grid((2, 5 * FIRST_SIDE))
    for a, b in zip(before, grown.for_grid((18, 24)), strict=True):
        assert np.array_equal(a, b)


def test_no_job_grows_the_table_of_a_bundle() -> None:
    """The longest image that the default context can hold, one visual token high."""
    longest = ExportOptions().context * 2
    assert longest <= POSITIONS


def test_merge_block_order_of_a_small_grid() -> None:
    rows, columns = merge_block_order((2, 4), 2)
    assert rows.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert columns.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [48, 16, 7])
def test_positions_equal_transformers(side: int, dtype: torch.dtype) -> None:
    torch.manual_seed(side)
    learned = torch.nn.Embedding(side**2, 80).to(dtype)
    positions = PositionEmbeddings(learned.weight.detach().float().numpy(), merge=2)
    for grid in GRIDS:
        indices, weights = get_vision_interpolation_indices_and_weights(
            torch.tensor([[1, *grid]]), side, align_corners=True, spatial_merge_size=2
        )
        expected = (learned(indices) * weights[:, :, None]).sum(1).to(dtype)
        found = positions.for_grid(grid)
        assert found.dtype == np.float32
        assert torch.equal(torch.from_numpy(found).to(dtype), expected)


def test_positions_are_kept_for_a_bounded_number_of_grids() -> None:
    positions = PositionEmbeddings(np.random.default_rng(0).standard_normal((49, 8), np.float32), merge=2)
    first = positions.for_grid((2, 2))
    assert positions.for_grid((2, 2)) is first
    for across in range(4, 4 + 2 * CACHED_GRIDS, 2):
        positions.for_grid((2, across))
    assert positions.for_grid((2, 2)) is not first
    assert np.array_equal(positions.for_grid((2, 2)), first)
