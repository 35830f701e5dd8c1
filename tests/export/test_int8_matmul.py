"""Products of integers: right at the ends of the range, one rounding for all that read the same, rows by themselves."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from batchcap.core.records import Float32Array
from batchcap.decoder.invariance import find_batch_multiple
from batchcap.decoder.session import DecoderSession
from batchcap.engines.profiles import is_w8a8
from batchcap.export.checkpoint.options import BY_ROWS
from batchcap.export.checkpoint.quantize import MatrixInMemory, quantize_matrix
from batchcap.export.graph.int8_matmul import IntegerProducts, turned
from batchcap.model.bundle import Bundle

INPUTS, OUTPUTS = 512, 96


def graph_of(*matrices: Float32Array) -> ir.Model:
    """Products [.., N] of one input [.., K] with matrices [N, K]."""
    read = ir.Value(name="read", shape=ir.Shape(["tokens", INPUTS]), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([read], [], nodes=[], name="products", opset_imports={"": 21, "com.microsoft": 1})
    products = IntegerProducts(graph)
    for number, matrix in enumerate(matrices):
        rounded = quantize_matrix(MatrixInMemory(matrix), BY_ROWS)
        arrays = {"weight": np.concatenate([*turned(rounded)]), "scales": rounded.scales[:, 0]}
        parts = []
        for name, array in arrays.items():
            tensor = ir.tensor(np.ascontiguousarray(array), name=f"{name}.{number}")
            parts.append(ir.Value(name=tensor.name, const_value=tensor))
            graph.register_initializer(parts[-1])
        graph.outputs.append(products.product(f"product.{number}", read, *parts, graph.append))
    return ir.Model(graph, ir_version=10)


def run(model: ir.Model, read: Float32Array) -> list[Float32Array]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"read": read}))


@pytest.mark.parametrize("sign", [1, -1])
def test_nothing_overflows(sign: int) -> None:
    """All bytes at the end of their range: with weights of eight bits, pairs of products overflow on some CPUs."""
    matrix = np.ones((OUTPUTS, INPUTS), np.float32)
    (found,) = run(graph_of(sign * matrix), np.ones((7, INPUTS), np.float32))
    np.testing.assert_allclose(found, sign * INPUTS, rtol=0.01)


def test_pairs_of_products_fit_sixteen_bits() -> None:
    """Where the CPU of the tests adds in 32 bits, `test_nothing_overflows` could not tell."""
    rounded = quantize_matrix(MatrixInMemory(np.array([[-1, 0.5, 1, 0]], np.float32)), BY_ROWS)
    (weights,) = turned(rounded)
    assert weights.dtype == np.int8
    assert weights[:, 0].tolist() == [-64, 32, 63, 0]
    assert 2 * np.iinfo(np.uint8).max * np.abs(weights.astype(int)).max() <= np.iinfo(np.int16).max


def test_near_the_plain_product() -> None:
    random = np.random.default_rng(0)
    matrix = random.standard_normal((OUTPUTS, INPUTS), np.float32)
    read = random.standard_normal((9, INPUTS), np.float32) * np.logspace(-6, 6, 9, dtype=np.float32)[:, None]
    (found,) = run(graph_of(matrix), read)
    expected = read @ matrix.T
    errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    # Each token has its own scale, so small ones are as close as large ones; 0.021 measured.
    assert 0 < errors.max() < 0.03


def test_a_token_of_zeros() -> None:
    matrix = np.ones((OUTPUTS, INPUTS), np.float32)
    matrix[0] = 0
    (found,) = run(graph_of(matrix), np.zeros((2, INPUTS), np.float32))
    assert not found.any()


def test_what_is_read_is_rounded_once() -> None:
    matrices = [np.full((OUTPUTS, INPUTS), size, np.float32) for size in (1, 2, 3)]
    model = graph_of(*matrices)
    kinds = Counter(node.op_type for node in model.graph)
    assert (kinds["QuantizeLinear"], kinds["MatMulIntegerToFloat"]) == (1, 3)
    for size, found in zip((1, 2, 3), run(model, np.ones((2, INPUTS), np.float32)), strict=True):
        np.testing.assert_allclose(found, size * INPUTS, rtol=0.01)


def test_a_row_alone_is_the_row_among_others() -> None:
    random = np.random.default_rng(1)
    model = graph_of(random.standard_normal((OUTPUTS, INPUTS), np.float32))
    read = random.standard_normal((17, INPUTS), np.float32)
    (together,) = run(model, read)
    for place in range(len(read)):
        (alone,) = run(model, read[place : place + 1])
        np.testing.assert_array_equal(alone[0], together[place])


def test_a_decoder_of_integer_products_needs_no_padding(tiny_bundle_w8a8: Bundle) -> None:
    """Its rows are equal in batches of every size, odd ones too."""
    session = DecoderSession(tiny_bundle_w8a8.decoder_path, tiny_bundle_w8a8.geometry, threads=1)
    assert find_batch_multiple(session, tiny_bundle_w8a8.geometry) == 1


def test_such_a_decoder_is_told_from_others(tiny_bundle_w8a8: Bundle, tiny_bundle_int8: Bundle) -> None:
    assert (is_w8a8(tiny_bundle_w8a8), is_w8a8(tiny_bundle_int8)) == (True, False)
