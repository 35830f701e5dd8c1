"""Owns the reading of a bundle's decoder: which initializer holds which tensor of the checkpoint, in plain numbers.

Letters used for shapes: N outputs and K inputs of a matrix, b weights of a block, B = ceil(K / b) blocks of a row.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from batchcap.core.errors import BundleError
from batchcap.core.records import Float32Array
from batchcap.export.checkpoint.options import BY_ROWS

INTERLEAVED = 1  # `mrope_layout` of MRotaryEmbedding
ROTARY_TABLES = ("cos_cache", "sin_cache")
PIECE_VALUES = 1 << 19  # what a piece needs stays in the CPU's cache
_VECTORS = ("norm.weight", "norm.layernorm.weight", ".Add.bias")
# What the model builder calls things, and what checkpoints do.
_WORDS = {
    ".attn.": ".self_attn.",
    ".layernorm.weight": ".weight",
    ".MatMul.weight.weight": ".weight",
    ".MatMul.weight": ".weight",
    ".Add.bias": ".bias",
    ".final_norm_layernorm.": ".norm.",
}


@dataclass(frozen=True, slots=True)
class RoundedRows:
    """Some rows of a rounded matrix.

    Attributes:
        levels: [n, B, b] float32, the stored integers less their zero points; 0 beyond K.
        scales: [n, B] float32.
    """

    levels: Float32Array
    scales: Float32Array

    def weights(self, inputs: int) -> Float32Array:
        """What the decoder multiplies with, [n, K]."""
        rows = len(self.levels)
        weights: Float32Array = (self.levels * self.scales[:, :, None]).reshape(rows, -1)[:, :inputs]
        return weights


@dataclass(frozen=True, slots=True)
class RoundedMatrix:
    """A matrix in few bits, as MatMulNBits reads it (onnxruntime, docs/ContribOperators.md).

    One with a scale for each output (W8A8) has a single block of K weights.

    Attributes:
        bits: 4, 7 or 8.
        block_size: weights that share a scale.
        shape: [N, K].
        packed: [N, B, b · bits / 8] uint8, mapped; of two values in a byte the first one in the lower half. Those of
            W8A8 are int8 [N, 1, K], signed already.
        scales: [N, B] float32, mapped.
        zero_points: [N, bytes of one value a block] uint8, mapped; None: the middle of the range.
    """

    bits: int
    block_size: int
    shape: tuple[int, int]
    packed: NDArray[Any]
    scales: Float32Array
    zero_points: NDArray[np.uint8] | None

    def rows(self, start: int, stop: int) -> RoundedRows:
        """Rows `start` to `stop`."""
        rows = slice(start, stop)
        scales = np.array(self.scales[rows])
        count, blocks = scales.shape
        packed = self.packed[rows]
        if packed.dtype == np.int8:
            return RoundedRows(packed.astype(np.float32), scales)
        levels = self._unpacked(packed).reshape(count, blocks, self.block_size).astype(np.float32)
        if self.zero_points is None:
            levels -= 1 << (self.bits - 1)
        else:
            levels -= self._unpacked(self.zero_points[rows])[:, :blocks, None]
        beyond = blocks * self.block_size - self.shape[1]
        if beyond:
            levels[:, -1, -beyond:] = 0  # the kernel never reads them
        return RoundedRows(levels, scales)

    def _unpacked(self, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The last axis with one value a byte."""
        if self.bits == 8:
            return values
        return np.stack([values & 15, values >> 4], axis=-1).reshape(*values.shape[:-1], -1)


@dataclass(frozen=True, slots=True)
class PlainTensor:
    """An initializer in float32, mapped; `turned` where the checkpoint holds it the other way round."""

    values: Float32Array
    turned: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """As the checkpoint has it."""
        return self.values.shape[::-1] if self.turned else self.values.shape

    def rows(self, start: int, stop: int) -> Float32Array:
        """Rows `start` to `stop` as the checkpoint has them."""
        values = self.values.T if self.turned else self.values
        return np.ascontiguousarray(values[start:stop])


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """Every number of a bundle's decoder that its checkpoint decides.

    Attributes:
        rounded: matrices in few bits, by the canonical name of the checkpoint's tensor.
        plain: matrices and vectors in float32, likewise.
        rotary: `cos_cache` and `sin_cache`, [positions, head_dim / 2].
        sections: by the name of each MRotaryEmbedding node, its mrope_section, and whether it interleaves them.
        unknown: initializers of more than one value that are none of these.
    """

    rounded: dict[str, RoundedMatrix]
    plain: dict[str, PlainTensor]
    rotary: dict[str, Float32Array]
    sections: dict[str, tuple[tuple[int, ...], bool]]
    unknown: tuple[str, ...]


def pieces(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Where the rows of a tensor are cut, so that little of it is in memory."""
    step = max(1, PIECE_VALUES // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def read_decoder(path: Path, layers: int) -> DecoderWeights:
    """Read a decoder's graph; its weights are mapped, not read.

    Args:
        path: the ONNX file.
        layers: decoder layers of the model; the builder counts the last norm as one more.

    Raises:
        BundleError: the graph can't be read.
    """
    try:
        graph = ir.load(path).graph
    except Exception as error:  # noqa: BLE001 - the library raises its own kinds for every fault of a file
        raise BundleError(f"the decoder's graph {path} can't be read ({error}): export the bundle again") from None
    rounded, plain = dict[str, RoundedMatrix](), dict[str, PlainTensor]()
    inputs = set[str | None]()
    sections = dict[str, tuple[tuple[int, ...], bool]]()
    for node in graph:
        if node.op_type in ("MatMul", "MatMulNBits", "MatMulIntegerToFloat"):
            weight = _input(node, 1)
            name = _tensor_name(str(weight.name), layers)
            if node.op_type == "MatMul":
                plain[name] = PlainTensor(_array(weight), turned=True)
            else:
                rounded[name] = _rounded(node) if node.op_type == "MatMulNBits" else _rounded_by_columns(node)
            inputs |= {value.name for value in node.inputs if value is not None}
        elif node.op_type == "MRotaryEmbedding":
            layout = node.attributes.get("mrope_layout")
            interleaved = layout is not None and layout.as_int() == INTERLEAVED
            sections[str(node.name)] = tuple(node.attributes["mrope_section"].as_ints()), interleaved
    rotary, unknown = dict[str, Float32Array](), list[str]()
    for name, value in graph.initializers.items():
        if name in inputs or value.const_value is None or value.const_value.size <= 1:
            continue
        if name in ROTARY_TABLES:
            rotary[name] = _array(value)
        elif name.endswith(_VECTORS):
            plain[_tensor_name(name, layers)] = PlainTensor(_array(value), turned=False)
        else:
            unknown.append(name)
    return DecoderWeights(rounded, plain, rotary, sections, tuple(unknown))


def _tensor_name(initializer: str, layers: int) -> str:
    """The canonical name of the checkpoint's tensor: `model.layers.0.attn.q_proj.MatMul.weight` and the like."""
    name = initializer.replace(f"model.layers.{layers}.final_norm_layernorm", "model.final_norm_layernorm")
    for ours, theirs in _WORDS.items():
        name = name.replace(ours, theirs)
    return f"language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name


def _rounded(node: ir.Node) -> RoundedMatrix:
    facts = {name: attribute.as_int() for name, attribute in node.attributes.items()}
    outputs, inputs, block_size = facts["N"], facts["K"], facts["block_size"]
    blocks = -(-inputs // block_size)
    has_points = len(node.inputs) > 3 and node.inputs[3] is not None
    return RoundedMatrix(
        bits=facts["bits"],
        block_size=block_size,
        shape=(outputs, inputs),
        packed=_array(_input(node, 1)).reshape(outputs, blocks, -1),
        scales=_array(_input(node, 2)).reshape(outputs, blocks),
        zero_points=_array(_input(node, 3)).reshape(outputs, -1) if has_points else None,
    )


def _rounded_by_columns(node: ir.Node) -> RoundedMatrix:
    """The weights [K, N] of a product of integers, one scale for each column."""
    columns = _array(_input(node, 1))
    return RoundedMatrix(
        bits=BY_ROWS.bits,
        block_size=len(columns),
        shape=columns.shape[::-1],
        packed=columns.T[:, None],
        scales=_array(_input(node, 3))[:, None],
        zero_points=None,
    )


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None, "these inputs are not optional"  # noqa: S101 - for the type checker
    return value


def _array(value: ir.Value) -> NDArray[Any]:
    if value.const_value is None:
        raise BundleError(f"the decoder multiplies with {value.name}, which is no weight: export the bundle again")
    array: NDArray[Any] = value.const_value.numpy()
    return array
