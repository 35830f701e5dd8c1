"""Owns the rounding of the decoder's weights to few bits: the model builder's own rounding, one matrix at a time.

The builder rounds the whole model at once, which holds it in memory twice. Here ONNX Runtime's functions get a few
outputs of one matrix at a time: a block of weights belongs to one output, so the numbers are the same to the last
bit, and what a slice needs stays in the CPU's cache.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer
from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor, quant_tensor_k_quant_cpu

from batchcap.core.machine import available_cores
from batchcap.core.records import Float32Array
from batchcap.export.checkpoint.options import WHOLE_ROW, Rounding, RoundingAlgorithm

SLICE_VALUES = 1 << 19

UInt8Array = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A matrix [N, K] as MatMulNBits reads it; its blocks lie along K, the last one filled up with zeros.

    Where all of a row shares one scale it has one block of K values.

    Attributes:
        packed: [N, blocks, block_size · bits / 8], of two values in a byte the first one in the lower half.
        scales: [N, blocks].
        zero_points: [N, bytes of one value a block], packed alike; None where it is the middle of the range.
        bits: of one value; of more than four, each has a byte of its own.
    """

    packed: UInt8Array
    scales: Float32Array
    zero_points: UInt8Array | None
    bits: int

    @property
    def inputs(self) -> dict[str, NDArray[Any]]:
        """The node's inputs after the first, in their order."""
        inputs: dict[str, NDArray[Any]] = {"weight": self.packed, "scales": self.scales}
        return inputs if self.zero_points is None else {**inputs, "zero_points": self.zero_points}

    def values(self, width: int) -> Float32Array:
        """The numbers it stands for, [N, K] with K = `width`."""
        rows, blocks, _bytes = self.packed.shape
        steps = _unpack(self.packed, self.bits).astype(np.float32)
        if self.zero_points is None:
            steps -= 1 << self.bits - 1
        else:
            steps -= _unpack(self.zero_points, self.bits)[:, :blocks, None]
        steps *= self.scales[..., None]
        return steps.reshape(rows, -1)[:, :width]


class Rows(Protocol):
    """A matrix as checkpoints keep it: a row for each output, read in pieces."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, K]."""

    def rows(self, start: int, stop: int) -> Float32Array:
        """Rows `start` to `stop`, [n, K] float32."""


@dataclass(frozen=True, slots=True)
class MatrixInMemory:
    """A matrix [N, K] that is there already."""

    values: Float32Array

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, K]."""
        return self.values.shape

    def rows(self, start: int, stop: int) -> Float32Array:
        """Rows `start` to `stop`; not a copy."""
        return self.values[start:stop]


def quantize_matrix(matrix: Rows, rounding: Rounding) -> QuantizedMatrix:
    """Round a matrix [N, K] as the model builder does with this rounding, a few rows at a time."""
    outputs, inputs = matrix.shape
    height = max(1, SLICE_VALUES // inputs)

    def quantized(start: int) -> QuantizedMatrix:
        return _quantize(matrix.rows(start, min(start + height, outputs)), rounding)

    with ThreadPoolExecutor(available_cores()) as threads:
        parts = list(threads.map(quantized, range(0, outputs, height)))
    zero_points = [part.zero_points for part in parts if part.zero_points is not None]
    return QuantizedMatrix(
        packed=np.concatenate([part.packed for part in parts]),
        scales=np.concatenate([part.scales for part in parts]),
        zero_points=np.concatenate(zero_points) if zero_points else None,
        bits=rounding.bits,
    )


def _quantize(weight: Float32Array, rounding: Rounding) -> QuantizedMatrix:
    """Round some rows [n, K]."""
    bits = rounding.bits
    block_size = weight.shape[1] if rounding.block_size == WHOLE_ROW else rounding.block_size
    if rounding.algorithm is RoundingAlgorithm.DEFAULT:
        config = DefaultWeightOnlyQuantConfig(block_size=block_size, is_symmetric=True, bits=bits)
        turned = np.ascontiguousarray(weight.T)
        packed, scales, _middle = DefaultWeightOnlyQuantizer(config).qbits_block_quant(turned)
        return QuantizedMatrix(packed, scales, None, bits)
    rows, width = weight.shape
    blocks = -(-width // block_size)
    padded = np.pad(weight, ((0, 0), (0, blocks * block_size - width)))
    zero_points: UInt8Array | None = None
    if rounding.algorithm is RoundingAlgorithm.K_QUANT:
        with np.errstate(divide="ignore", invalid="ignore"):  # blocks of equal values: it keeps its first scale then
            values, scales, zero_points = quant_tensor_k_quant_cpu(padded, bits, block_size)
    else:
        values, scales, _middle = quant_tensor(padded, bits, block_size, "sym", "uint")
    return QuantizedMatrix(
        packed=pack(values.astype(np.uint8).reshape(rows, blocks, block_size), bits),
        scales=scales.astype(np.float32).reshape(rows, blocks),
        # The builder packs zero points across columns, so it fails where a column has an odd number of blocks.
        zero_points=None if zero_points is None else pack(zero_points.reshape(rows, blocks), bits),
        bits=bits,
    )


def pack(values: UInt8Array, bits: int) -> UInt8Array:
    """Values of the last axis, two in a byte if they have four bits, the first one in the lower half."""
    if bits > 4:
        return values
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    low, high = values[..., ::2], values[..., 1::2]
    return np.bitwise_or(low, np.left_shift(high, 4), dtype=np.uint8)


def _unpack(packed: UInt8Array, bits: int) -> UInt8Array:
    """The values of `pack`, along the last axis."""
    if bits > 4:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
