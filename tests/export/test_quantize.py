"""The decoder's weights are rounded exactly as the model builder rounds them, in whatever slices."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import (
    KQuantWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
    RTNWeightOnlyQuantConfig,
)
from onnxruntime_genai.models.builder import create_model, parse_extra_options

from batchcap.core.records import Float32Array
from batchcap.export.checkpoint import quantize
from batchcap.export.checkpoint.checkpoint import open_checkpoint
from batchcap.export.checkpoint.matrix_names import HEAD
from batchcap.export.checkpoint.options import (
    ACCURACY_LEVEL,
    BLOCK_SIZES,
    ExportOptions,
    Int8Matrices,
    Precision,
    RoundingAlgorithm,
)
from batchcap.export.checkpoint.quantize import quantize_matrix
from batchcap.export.graph.decoder import Drawing, draw_decoder
from batchcap.export.graph.weights import WeightFile, fill_weights
from tests.checkpoints import Shape, make_checkpoint

CONTEXT = 4096  # what the tiny checkpoints have
ROUNDED = (Precision.INT4, Precision.INT8)
COMBINATIONS = [
    ExportOptions(precision=precision, block_size=block_size, algorithm=algorithm)
    for precision in ROUNDED
    for block_size in BLOCK_SIZES
    for algorithm in RoundingAlgorithm
]
# Columns of a product have 500, 512 or 490 values: not always whole blocks, but always an even number of blocks, since
# the builder's k_quant fails where it is odd.
SHAPE = Shape(layers=1, hidden=500, heads=8, head_dim=64, mrope_section=(12, 10, 10), intermediate=490, levels=(0,))
# Largest error, in steps of the rounding; the extremes of a block may fall outside of its values.
MAX_ERROR_STEPS = {RoundingAlgorithm.DEFAULT: 1.01, RoundingAlgorithm.RTN: 0.51, RoundingAlgorithm.K_QUANT: 2.0}


def by_name(options: ExportOptions) -> str:
    return f"{options.precision}-{options.block_size}-{options.algorithm}"


@dataclass(frozen=True)
class InMemory:
    """A matrix [N, K] as `quantize_matrix` reads it."""

    values: Float32Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def rows(self, start: int, stop: int) -> Float32Array:
        return self.values[start:stop]


def random_matrix(rows: int, columns: int, seed: int = 0) -> Float32Array:
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


def rounded_at_once(weight: Float32Array, options: ExportOptions) -> list[NDArray[Any]]:
    """The inputs that ONNX Runtime's own quantizer gives a model of one product with the whole matrix."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "one product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    bits = options.precision.bits
    algorithms = {
        RoundingAlgorithm.RTN: RTNWeightOnlyQuantConfig,
        RoundingAlgorithm.K_QUANT: KQuantWeightOnlyQuantConfig,
    }
    config = algorithms.get(options.algorithm)
    quantizer = MatMulNBitsQuantizer(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]),
        bits=bits,
        block_size=options.block_size,
        is_symmetric=True,
        algo_config=config(customized_weight_config={"product": {"bits": bits}}) if config else None,
    )
    quantizer.process()
    done = quantizer.model.model.graph
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in done.initializer}
    return [found[name] for name in done.node[0].input[1:]]


@pytest.mark.parametrize("rows", [512, 500, 1025 + 256])
@pytest.mark.parametrize("options", COMBINATIONS, ids=by_name)
def test_slices_of_a_matrix_give_what_the_whole_gives(
    options: ExportOptions, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "SLICE_VALUES", 7 * rows)
    weight = random_matrix(rows, 37)
    blocks = -(-rows // options.block_size)
    if options.algorithm is RoundingAlgorithm.K_QUANT and options.precision is Precision.INT4 and blocks % 2:
        with pytest.raises(ValueError, match="cannot reshape"):  # it packs zero points across columns
            rounded_at_once(weight, options)
        return
    found, expected = quantize_matrix(InMemory(weight.T), options.rounding(HEAD, 1)), rounded_at_once(weight, options)
    assert len(found.inputs) == len(expected)
    for mine, theirs in zip(found.inputs.values(), expected, strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("rows", [32, 96, 300])
@pytest.mark.parametrize("options", COMBINATIONS, ids=by_name)
def test_the_kernel_reads_what_is_written(options: ExportOptions, rows: int) -> None:
    """Products of unit vectors show each weight: odd numbers of blocks and cut blocks included."""
    weight = random_matrix(rows, 24)
    matrix = quantize_matrix(InMemory(weight.T), options.rounding(HEAD, 1))
    bits = options.precision.bits
    attributes = {"K": rows, "N": 24, "bits": bits, "block_size": options.block_size}
    node = helper.make_node("MatMulNBits", ["x", *matrix.inputs], ["y"], domain="com.microsoft", **attributes)
    graph = helper.make_graph(
        [node],
        "one product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 24])],
        [numpy_helper.from_array(array, name) for name, array in matrix.inputs.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    read = session.run(None, {"x": np.eye(rows, dtype=np.float32)})[0]
    np.testing.assert_allclose(read, matrix.values(rows).T, atol=1e-5)
    steps = np.abs(matrix.scales).max() * MAX_ERROR_STEPS[options.algorithm]
    assert np.abs(read - weight).max() < steps


def test_blocks_of_equal_values_survive(recwarn: pytest.WarningsRecorder) -> None:
    weight = np.zeros((96, 4), np.float32)
    weight[:, 1] = 0.5
    for options in COMBINATIONS:
        matrix = quantize_matrix(InMemory(weight.T), options.rounding(HEAD, 1))
        assert np.isfinite(matrix.scales).all()
        found = matrix.values(96).T
        assert (found[:, [0, 2, 3]] == 0).all()
    assert not recwarn.list


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("quantize") / "checkpoint", SHAPE)


def built(checkpoint: Path, folder: Path, precision: str, *options: str) -> Path:
    """The model builder's own output, by the steps of its command line."""
    places = (None, str(checkpoint), str(folder / precision), precision, "cpu", str(folder / "cache"))
    create_model(*places, **parse_extra_options(*places, ["exclude_embeds=true", "prune_lm_head=true", *options]))
    return folder / precision / "model.onnx"


def nodes_with_constants(path: Path) -> dict[str, tuple[object, ...]]:
    """Each node by its name: kind, edges, attributes and constants, whatever the names of these."""
    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes: dict[str, tuple[object, ...]] = {}
    for node in graph.node:
        inputs = [
            (constants[name].dtype, constants[name].shape, constants[name].tobytes()) if name in constants else name
            for name in node.input
        ]
        attributes = sorted((one.name, helper.get_attribute_value(one)) for one in node.attribute)
        nodes[node.name] = (node.domain, node.op_type, inputs, list(node.output), str(attributes))
    return nodes


_DRAWN: dict[Path, Drawing] = {}


def filled(checkpoint: Path, folder: Path, options: ExportOptions) -> Path:
    """The graph as the export makes it before it adds DeepStack and the arg-max; drawn once for each checkpoint."""
    opened = open_checkpoint(str(checkpoint))
    if checkpoint not in _DRAWN:
        scratch = checkpoint.with_name(f"{checkpoint.name}-drawn")
        scratch.mkdir()
        _DRAWN[checkpoint] = draw_decoder(opened, CONTEXT, scratch)
    drawing = _DRAWN[checkpoint]
    model = ir.load(drawing.path)
    with WeightFile(folder / "mine.onnx.data") as file:
        fill_weights(model.graph, drawing.sources, opened.tensors, options, file)
    ir.save(model, folder / "mine.onnx")
    return folder / "mine.onnx"


@pytest.mark.parametrize("options", COMBINATIONS, ids=by_name)
def test_the_graph_is_the_model_builders_own(options: ExportOptions, checkpoint: Path, tmp_path: Path) -> None:
    theirs = built(
        checkpoint,
        tmp_path,
        str(options.precision),
        f"block_size={options.block_size}",
        f"algo_config={options.algorithm}",
        f"accuracy_level={ACCURACY_LEVEL}",
    )
    mine = filled(checkpoint, tmp_path, options)
    assert nodes_with_constants(mine) == nodes_with_constants(theirs)


@pytest.fixture(scope="module")
def deep_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten layers: the first two, the last two, and one of three between are sensitive."""
    shape = Shape(layers=10, hidden=64, heads=2, kv_heads=1, intermediate=128, levels=(0,), vision_depth=1)
    return make_checkpoint(tmp_path_factory.mktemp("quantize") / "deep", shape)


@pytest.mark.parametrize("algorithm", RoundingAlgorithm)
def test_mixed_bits_are_the_model_builders_own(
    algorithm: RoundingAlgorithm, deep_checkpoint: Path, tmp_path: Path
) -> None:
    options = ExportOptions(block_size=32, algorithm=algorithm, int8_matrices=Int8Matrices.SENSITIVE)
    theirs = built(
        deep_checkpoint,
        tmp_path,
        "int4",
        "block_size=32",
        f"algo_config={algorithm}",
        f"accuracy_level={ACCURACY_LEVEL}",
        "matmul_mixed_precision=last_matmul:int8,mixed_layers:int8",
    )
    mine = filled(deep_checkpoint, tmp_path, options)
    assert nodes_with_constants(mine) == nodes_with_constants(theirs)
    names = [name for name in nodes_with_constants(mine) if name.endswith("_Q8")]
    assert "/lm_head/MatMul_Q8" in names
    assert sum("v_proj" in name for name in names) == sum("down_proj" in name for name in names)
    assert 4 < sum("v_proj" in name for name in names) < 10


def test_the_head_alone_in_8_bits() -> None:
    options = ExportOptions(int8_matrices=Int8Matrices.HEAD)
    assert [options.rounding(name, 4).bits for name in (HEAD, "layers.0.mlp.down_proj")] == [8, 4]
    whole = ExportOptions(precision=Precision.INT8, int8_matrices=Int8Matrices.HEAD)
    assert whole.rounding("layers.0.mlp.down_proj", 4).bits == 8
    assert "int8_matrices" not in whole.precision_facts()


def test_the_graph_of_fp32_is_the_model_builders_own(checkpoint: Path, tmp_path: Path) -> None:
    theirs = built(checkpoint, tmp_path, "fp32")
    mine = filled(checkpoint, tmp_path, ExportOptions(precision=Precision.FP32))
    assert nodes_with_constants(mine) == nodes_with_constants(theirs)
