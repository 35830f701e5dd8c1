"""Owns the judgement of rounded weights: is every block what rounding the checkpoint's weights can give?

Nothing here calls the functions that round: a block is judged by its own numbers, so that an error of the export
shows. Letters as in `decoder_weights`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from batchcap.core.records import Float32Array
from batchcap.verify.decoder_weights import RoundedRows

# Largest error of a weight in steps of plain rounding: largest weight of the block / (2^(bits - 1) - 1). Measured over
# weights of normal, Laplace, Student (3 degrees) and bfloat16 distributions and the demo model's, blocks of 32 to 256:
# rtn below 0.5, default below 1 (the largest weight of the other sign is cut to one level less), k_quant 1.25 at 4 bits
# and 1.41 at 8 (it gives up the ends of a block where that serves the others).
ERROR_STEPS = {"rtn": 0.5, "default": 1.0}
OTHER_ERROR_STEPS = 2.0
# What the definition of these two says of a scale: the block's range over its levels.
SCALE_TOLERANCE = 1e-4
# Elsewhere the scale is compared with the one that fits the stored levels best (least squares). Errors of rounding are
# spread evenly over a step, so that scale has a standard deviation of 1 / sqrt(12 · sum of squared levels); measured
# over the same weights the largest deviation is 6.2 of them.
FIT_DEVIATIONS = 12.0
# bfloat16 weights and levels of 8 bits lie on grids of nearly the same width, so their errors are not spread evenly.
FIT_FLOOR = 0.005
# In a block whose weights are this near to each other (in steps) all errors may be the same.
CROWDED_STEPS = 1.0


class BlockJudgement(NamedTuple):
    """How a piece's blocks compare with the checkpoint.

    Attributes:
        error: [n, B] largest error of a weight, in steps of plain rounding.
        scale: [n, B] deviation of the scale, as a part of what is allowed.
    """

    error: NDArray[np.float64]
    scale: NDArray[np.float64]


def error_tolerance(algorithm: str) -> float:
    """Largest error that an algorithm's blocks may have, in steps of plain rounding."""
    return ERROR_STEPS.get(algorithm, OTHER_ERROR_STEPS)


def judge_blocks(rows: RoundedRows, expected: Float32Array, bits: int, algorithm: str) -> BlockJudgement:
    """Judge some rows of a matrix.

    Args:
        rows: as stored.
        expected: [n, K] the checkpoint's weights.
        bits: of a level.
        algorithm: as `bundle.json` names it.
    """
    _rows, blocks, block_size = rows.levels.shape
    wanted = np.pad(expected, ((0, 0), (0, blocks * block_size - expected.shape[1]))).reshape(rows.levels.shape)
    largest = np.abs(wanted).max(-1)
    error = np.abs(wanted - rows.levels * rows.scales[:, :, None]).max(-1)
    steps = _ratio(error, largest / ((1 << (bits - 1)) - 1))
    if algorithm in ERROR_STEPS:
        levels = (1 << bits) - 1 if algorithm == "rtn" else 1 << bits
        scale = _ratio(np.abs(np.abs(rows.scales) - 2 * largest / levels), SCALE_TOLERANCE * 2 * largest / levels)
        scale[largest == 0] = 0  # a block of zeros has levels of zero, whatever its scale is
    else:
        scale = _fit_deviation(rows, wanted)
    return BlockJudgement(steps, scale)


def _fit_deviation(rows: RoundedRows, wanted: Float32Array) -> NDArray[np.float64]:
    """Deviation of the scales from those that fit the stored levels best, as a part of what is allowed."""
    levels = rows.levels.astype(np.float64)
    squares = (levels**2).sum(-1)
    steps = np.abs(rows.scales.astype(np.float64))
    deviation = np.abs(_ratio((levels * wanted).sum(-1), rows.scales.astype(np.float64) * squares) - 1)
    spread = FIT_DEVIATIONS / np.sqrt(12 * np.maximum(squares, 1))
    same_errors = np.abs(levels).sum(-1) / np.maximum(squares, 1)
    crowded = wanted.std(-1) < CROWDED_STEPS * steps
    allowed = np.maximum(np.where(crowded, same_errors, spread), FIT_FLOOR)
    return np.where(squares == 0, 0.0, deviation / allowed)


def _ratio(values: NDArray[np.floating], units: NDArray[np.floating]) -> NDArray[np.float64]:
    """Values in units; 0 where both are 0, infinite where only the unit is."""
    values, units = values.astype(np.float64), units.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = values / units
    ratio[(values == 0) & (units == 0)] = 0
    return ratio
