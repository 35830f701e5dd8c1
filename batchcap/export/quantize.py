"""Owns the rounding of the decoder's weights to few bits: the model builder's own rounding, one matrix at a time.

The builder rounds the whole model at once, which holds it in memory twice. Here ONNX Runtime's functions get a few
columns of one matrix at a time: a block of weights lies inside one column, so the numbers are the same to the last
bit, and what a slice needs stays in the CPU's cache.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer
from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor, quant_tensor_k_quant_cpu

from batchcap.export.options import ACCURACY_LEVEL, ExportOptions, RoundingAlgorithm
from batchcap.machine import available_cores
from batchcap.records import Float32Array

SLICE_VALUES = 1 << 19

UInt8Array = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A matrix [K, N] as MatMulNBits reads it; its blocks lie along K, the last one filled up with zeros.

    Attributes:
        packed: [N, blocks, block_size · bits / 8], of two values in a byte the first one in the lower half.
        scales: [N, blocks].
        zero_points: [N, bytes of one value a block], packed alike; None where it is the middle of the range.
    """

    packed: UInt8Array
    scales: Float32Array
    zero_points: UInt8Array | None

    @property
    def inputs(self) -> dict[str, NDArray[Any]]:
        """The node's inputs after the first, in their order."""
        inputs: dict[str, NDArray[Any]] = {"weight": self.packed, "scales": self.scales}
        return inputs if self.zero_points is None else {**inputs, "zero_points": self.zero_points}


def quantize_matmuls(graph: ir.Graph, options: ExportOptions) -> int:
    """Replace every MatMul by a constant matrix with a MatMulNBits; the constants may lie in an external file.

    Returns:
        How many were replaced.
    """
    replaced = 0
    for node in list(graph):
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
            continue
        _replace(graph, node, weight, options)
        replaced += 1
    return replaced


def _replace(graph: ir.Graph, node: ir.Node, weight: ir.Value, options: ExportOptions) -> None:
    stored = weight.const_value
    assert stored is not None, "the caller looked"  # noqa: S101 - for the type checker
    rows, columns = stored.shape.numpy()
    quantized = quantize_matrix(stored.numpy(), options)
    if isinstance(stored, ir.ExternalTensor):
        stored.release()  # or the mapped file would count as memory until the end
    values = []
    for kind, array in quantized.inputs.items():
        name = f"{weight.name}.{kind}"
        values.append(ir.Value(name=name, const_value=ir.tensor(array, name=name)))
        graph.register_initializer(values[-1])
    bits = options.precision.bits
    product = ir.node(
        "MatMulNBits",
        [node.inputs[0], *values],
        {"K": rows, "N": columns, "bits": bits, "block_size": options.block_size, "accuracy_level": ACCURACY_LEVEL},
        domain="com.microsoft",
        name=f"{node.name}_Q{bits}",
    )
    old, new = node.outputs[0], product.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [product], [old], [new])
    if not weight.uses():
        graph.initializers.pop(str(weight.name))


def quantize_matrix(weight: Float32Array, options: ExportOptions) -> QuantizedMatrix:
    """Round a matrix [K, N] as the model builder does with these options."""
    with ThreadPoolExecutor(available_cores()) as threads:
        parts = list(threads.map(lambda columns: _quantize(columns, options), _slices(weight)))
    zero_points = [part.zero_points for part in parts if part.zero_points is not None]
    return QuantizedMatrix(
        packed=np.concatenate([part.packed for part in parts]),
        scales=np.concatenate([part.scales for part in parts]),
        zero_points=np.concatenate(zero_points) if zero_points else None,
    )


def _slices(weight: Float32Array) -> Iterator[Float32Array]:
    rows, columns = weight.shape
    width = max(1, SLICE_VALUES // rows)
    for start in range(0, columns, width):
        yield weight[:, start : start + width]


def _quantize(weight: Float32Array, options: ExportOptions) -> QuantizedMatrix:
    bits, block_size = options.precision.bits, options.block_size
    if options.algorithm is RoundingAlgorithm.DEFAULT:
        config = DefaultWeightOnlyQuantConfig(block_size=block_size, is_symmetric=True, bits=bits)
        packed, scales, _middle = DefaultWeightOnlyQuantizer(config).qbits_block_quant(np.ascontiguousarray(weight))
        return QuantizedMatrix(packed, scales, None)
    rows, columns = weight.shape
    blocks = -(-rows // block_size)
    padded = np.pad(weight, ((0, blocks * block_size - rows), (0, 0))).T
    zero_points: UInt8Array | None = None
    if options.algorithm is RoundingAlgorithm.K_QUANT:
        with np.errstate(divide="ignore", invalid="ignore"):  # blocks of equal values: it keeps its first scale then
            values, scales, zero_points = quant_tensor_k_quant_cpu(padded, bits, block_size)
    else:
        values, scales, _middle = quant_tensor(padded, bits, block_size, "sym", "uint")
    return QuantizedMatrix(
        packed=_pack(values.astype(np.uint8).reshape(columns, blocks, block_size), bits),
        scales=scales.astype(np.float32).reshape(columns, blocks),
        # The builder packs zero points across columns, so it fails where a column has an odd number of blocks.
        zero_points=None if zero_points is None else _pack(zero_points.reshape(columns, blocks), bits),
    )


def _pack(values: UInt8Array, bits: int) -> UInt8Array:
    """Values of the last axis, two in a byte if they have four bits."""
    if bits == 8:
        return values
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    low, high = values[..., ::2], values[..., 1::2]
    return np.bitwise_or(low, np.left_shift(high, 4), dtype=np.uint8)
