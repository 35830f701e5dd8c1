"""Every precision, block size and rounding exports, passes the export's own check, and stays near fp32."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from batchcap.core.records import Float32Array
from batchcap.decoder.positions import prompt_positions
from batchcap.export.checkpoint.options import BLOCK_SIZES, ExportOptions, Precision, RoundingAlgorithm
from batchcap.export.export import export_bundle
from batchcap.export.graph.check import DecoderRun
from batchcap.model.bundle import Bundle
from tests.checkpoints import Shape, make_checkpoint

CONTEXT = 128
# Inputs of the products have 160, 128 and 200 values: no whole blocks for most of the sizes, one block, odd numbers.
SHAPE = Shape(layers=3, hidden=160, intermediate=200, levels=(0, 2))
PREFIX, GRID, SUFFIX = 3, (2, 4), 5
# Largest difference of a logit as a part of the largest logit; random weights amplify what rounding does.
NEAR = {Precision.INT4: 0.9, Precision.INT8: 0.1}
COMBINATIONS = [
    ExportOptions(precision=precision, block_size=block_size, algorithm=algorithm, context=CONTEXT)
    for precision in NEAR
    for block_size in BLOCK_SIZES
    for algorithm in RoundingAlgorithm
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("precisions") / "checkpoint", SHAPE)


@pytest.fixture(scope="module")
def exact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The fp32 bundle."""
    options = ExportOptions(precision=Precision.FP32, context=CONTEXT)
    return export_bundle(str(checkpoint), tmp_path_factory.mktemp("exact") / "bundle", options)


def last_logits(bundle: Bundle) -> Float32Array:
    """Of one prompt with an image of random features."""
    random = np.random.default_rng(0)
    vision = bundle.geometry.vision
    image = slice(PREFIX, PREFIX + GRID[0] * GRID[1])
    positions, _next = prompt_positions(PREFIX, GRID, SUFFIX)
    embeds = bundle.embeddings().lookup(np.arange(positions.shape[1]))
    embeds[image] = random.standard_normal(embeds[image].shape)
    levels = [np.zeros_like(embeds) for _level in vision.deepstack_levels]
    for level in levels:
        level[image] = random.standard_normal(level[image].shape)
    logits, _token, _cache = DecoderRun(bundle.decoder_path, bundle.geometry)(embeds, levels, positions)
    return logits


def bytes_of_products(bundle: Bundle) -> int:
    """What the products' constants take."""
    graph = onnx.load(bundle.decoder_path).graph
    sizes = {tensor.name: tensor.ByteSize() for tensor in graph.initializer}
    kinds = ("MatMul", "MatMulNBits")
    return sum(sizes.get(name, 0) for node in graph.node if node.op_type in kinds for name in node.input)


@pytest.mark.parametrize("options", COMBINATIONS, ids=lambda one: f"{one.precision}-{one.block_size}-{one.algorithm}")
def test_a_combination(options: ExportOptions, checkpoint: Path, exact: Bundle, tmp_path: Path) -> None:
    bundle = export_bundle(str(checkpoint), tmp_path / "bundle", options)
    assert bundle.precision == f"{options.precision} block {options.block_size} {options.algorithm}"
    found, expected = last_logits(bundle), last_logits(exact)
    distance = np.abs(found - expected).max() / np.abs(expected).max()
    assert 0 < distance < NEAR[options.precision]
    padded = -(-max(128, SHAPE.hidden, SHAPE.intermediate) // options.block_size) * options.block_size
    share = options.precision.bits / 32 * padded / 128
    assert bytes_of_products(bundle) < 1.3 * share * bytes_of_products(exact)


def test_fp32_keeps_the_builders_weights(exact: Bundle) -> None:
    assert exact.precision == "fp32"
    assert not any(node.op_type == "MatMulNBits" for node in onnx.load(exact.decoder_path).graph.node)
