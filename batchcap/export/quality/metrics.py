"""Owns the numbers that say how far two models' answers are apart. V is the vocabulary."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from batchcap.core.records import Float32Array

Float64Array = NDArray[np.float64]


class Distance(NamedTuple):
    """Distance of two logits over the same vocabulary.

    Attributes:
        divergence: Kullback-Leibler divergence of the second distribution from the first, in nats.
        same_top: whether both have the same likeliest token.
        error: largest difference of a logit, as a part of the first one's largest magnitude.
    """

    divergence: float
    same_top: bool
    error: float


def distance(expected: Float32Array, found: Float32Array) -> Distance:
    """Distance of the logits [V] found from those expected."""
    return Distance(
        divergence=float(divergence(expected, found)),
        same_top=bool(expected.argmax() == found.argmax()),
        error=relative_error(expected, found),
    )


def divergence(expected: Float32Array, found: Float32Array) -> Float64Array:
    """Kullback-Leibler divergence in nats, along the last axis: sum of p·(log p − log q), p = softmax(expected)."""
    expected_log, found_log = _log_softmax(expected), _log_softmax(found)
    total: Float64Array = (np.exp(expected_log) * (expected_log - found_log)).sum(-1)
    return np.maximum(total, 0)  # rounding can bring it a little below


def relative_error(expected: Float32Array, found: Float32Array) -> float:
    """Largest difference, as a part of the largest magnitude expected."""
    scale = np.abs(expected).max(initial=0)
    difference = np.abs(expected - found).max(initial=0)
    return float(difference / scale) if scale else float(difference)


def _log_softmax(logits: Float32Array) -> Float64Array:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    shifted: Float64Array = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    return shifted
