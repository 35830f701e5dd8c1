"""Blocks that the export's own rounding makes are passed, whatever the weights are; a block that is off is found."""

import numpy as np
import pytest

from batchcap.core.records import Float32Array
from batchcap.export.checkpoint.options import BLOCK_SIZES, Rounding, RoundingAlgorithm
from batchcap.export.checkpoint.quantize import MatrixInMemory, quantize_matrix
from batchcap.verify.decoder_weights import RoundedMatrix, RoundedRows
from batchcap.verify.rounding import BlockJudgement, error_tolerance, judge_blocks

ROWS, WIDTH = 48, 500  # no whole number of blocks
ROUNDINGS = [
    Rounding(bits, block_size, algorithm)
    for bits in (4, 8)
    for block_size in BLOCK_SIZES
    for algorithm in RoundingAlgorithm
]


def kinds_of_weights() -> dict[str, Float32Array]:
    random = np.random.default_rng(0)
    normal = random.standard_normal((ROWS, WIDTH))
    sparse = np.where(random.random((ROWS, WIDTH)) < 0.02, normal, 0)
    outliers = random.standard_t(3, (ROWS, WIDTH))
    kinds = {"normal": normal, "outliers": outliers, "laplace": random.laplace(size=(ROWS, WIDTH)), "sparse": sparse}
    kinds |= {"zeros": np.zeros_like(normal), "tiny": normal * 1e-12, "huge": normal * 1e9}
    wide = {name: (0.02 * values).astype(np.float32) for name, values in kinds.items()}
    return {**wide, "bf16": (wide["normal"].view(np.uint32) & 0xFFFF0000).view(np.float32)}


def stored(weights: Float32Array, rounding: Rounding) -> RoundedRows:
    made = quantize_matrix(MatrixInMemory(weights), rounding)
    shape = (len(weights), weights.shape[1])
    matrix = RoundedMatrix(rounding.bits, rounding.block_size, shape, made.packed, made.scales, made.zero_points)
    rows = matrix.rows(0, len(weights))
    np.testing.assert_array_equal(rows.weights(weights.shape[1]), made.values(weights.shape[1]))
    return rows


def judged(rows: RoundedRows, weights: Float32Array, rounding: Rounding) -> BlockJudgement:
    return judge_blocks(rows, weights, rounding.bits, str(rounding.algorithm))


def passes(judgement: BlockJudgement, rounding: Rounding) -> np.ndarray:
    return (judgement.error <= error_tolerance(str(rounding.algorithm))) & (judgement.scale <= 1)


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda one: f"{one.bits}-{one.block_size}-{one.algorithm}")
def test_rounded_weights_pass(rounding: Rounding) -> None:
    for kind, weights in kinds_of_weights().items():
        assert passes(judged(stored(weights, rounding), weights, rounding), rounding).all(), kind


@pytest.mark.parametrize("algorithm", [RoundingAlgorithm.RTN, RoundingAlgorithm.DEFAULT])
def test_equal_weights_pass(algorithm: RoundingAlgorithm) -> None:
    for bits in (4, 8):
        for weights in (np.full((3, 70), 0.37, np.float32), np.full((3, 70), -0.37, np.float32)):
            rounding = Rounding(bits, 32, algorithm)
            assert passes(judged(stored(weights, rounding), weights, rounding), rounding).all()


# What a factor on one scale must be at least to be found: the definition of a scale tells all, the best fit less.
@pytest.mark.parametrize(
    ("algorithm", "factor"),
    [
        (RoundingAlgorithm.RTN, 1.001),
        (RoundingAlgorithm.RTN, 0.999),
        (RoundingAlgorithm.DEFAULT, 1.001),
        (RoundingAlgorithm.K_QUANT, 1.35),
        (RoundingAlgorithm.K_QUANT, 0.7),
        (RoundingAlgorithm.K_QUANT, -1),
    ],
)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("bits", [4, 8])
def test_one_scale_that_is_off_is_found(
    algorithm: RoundingAlgorithm, factor: float, block_size: int, bits: int
) -> None:
    rounding = Rounding(bits, block_size, algorithm)
    weights = kinds_of_weights()["normal"]
    rows = stored(weights, rounding)
    rows.scales[7, 0] *= factor
    found = passes(judged(rows, weights, rounding), rounding)
    assert not found[7, 0]
    assert found.sum() == found.size - 1


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda one: f"{one.bits}-{one.block_size}-{one.algorithm}")
def test_one_level_that_is_off_is_found(rounding: Rounding) -> None:
    weights = kinds_of_weights()["normal"]
    rows = stored(weights, rounding)
    rows.levels[5, 0, 3] += 3 * np.sign(weights[5, 3])
    found = passes(judged(rows, weights, rounding), rounding)
    assert not found[5, 0]
    assert found.sum() == found.size - 1


def test_numbers_that_are_none_are_found() -> None:
    rounding = Rounding(4, 32, RoundingAlgorithm.RTN)
    weights = kinds_of_weights()["normal"]
    rows = stored(weights, rounding)
    rows.scales[1, 1] = np.nan
    assert not passes(judged(rows, weights, rounding), rounding)[1, 1]
