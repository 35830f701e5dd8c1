"""Owns the numbers of the vision tower's rotary table; they are computed once, at export, and kept in the bundle."""

import torch

from batchcap.core.records import Float32Array
from batchcap.model.geometry import ROPE_THETA

# Patches along one side of an image: 131,072 pixels. An image of the default context is at most as long.
POSITIONS = 8192


def rotary_table(head_dim: int, positions: int = POSITIONS) -> Float32Array:
    """Cosines and sines [2, positions, head_dim / 4] float32, as `Qwen3VLVisionRotaryEmbedding` computes them."""
    axis_dim = head_dim // 2
    exponents = torch.arange(0, axis_dim, 2, dtype=torch.float32) / axis_dim
    inverse_frequencies = 1.0 / (ROPE_THETA**exponents)
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * inverse_frequencies
    table: Float32Array = torch.stack((angles.cos(), angles.sin())).numpy()
    return table
