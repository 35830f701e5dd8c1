"""Owns the decoder's weights on their way from the checkpoint into the graph: read, rounded and written in pieces."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from tqdm import tqdm

from batchcap.core.errors import CheckpointError
from batchcap.core.records import Float32Array
from batchcap.export.checkpoint.matrix_names import layer_count, matrix_name
from batchcap.export.checkpoint.options import ACCURACY_LEVEL, WHOLE_ROW, ExportOptions, Precision, Rounding
from batchcap.export.checkpoint.prequantized import PackedMatrix
from batchcap.export.checkpoint.quantize import Rows, quantize_matrix
from batchcap.export.graph.int8_matmul import IntegerProducts, turned

ALIGNMENT = 4096  # of a memory page, so that the runtime can map each tensor by itself
INLINE_BYTES = 1024  # smaller constants stay in the graph
_PIECE_VALUES = 1 << 22


@dataclass(frozen=True, slots=True)
class Source:
    """Where an initializer's values come from: a tensor of the checkpoint, as it is or turned (transposed)."""

    tensor: str
    turned: bool


class WeightFile:
    """The data file beside a graph, written front to back.

    Args:
        path: the file to make.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, name: str, pieces: Iterable[NDArray[Any]], shape: tuple[int, ...]) -> ir.ExternalTensor:
        """Write a tensor, its values in row-major order in pieces of any shape."""
        self._file.write(bytes(-self._file.tell() % ALIGNMENT))
        offset = self._file.tell()
        dtype: np.dtype[Any] | None = None
        for piece in pieces:
            dtype = piece.dtype
            self._file.write(np.ascontiguousarray(piece).data)
        assert dtype is not None, "a tensor has at least one piece"  # noqa: S101 - for the type checker
        return ir.ExternalTensor(
            self._path.name,
            offset,
            self._file.tell() - offset,
            dtype=ir.DataType.from_numpy(dtype),
            shape=ir.Shape(shape),
            name=name,
            base_dir=self._path.parent,
        )


def fill_weights(
    graph: ir.Graph,
    sources: dict[str, Source],
    tensors: Mapping[str, Rows],
    options: ExportOptions,
    file: WeightFile,
) -> None:
    """Give every initializer its values; matrix products become those of few-bit numbers where weights are rounded.

    Args:
        graph: as the model builder draws it, without weights.
        sources: of the initializers without values.
        tensors: the checkpoint's, by canonical name.
        options: how to round.
        file: takes the values.

    Raises:
        CheckpointError: a tensor is missing or the file can't be read.
    """
    if options.precision is not Precision.FP32:
        products = [node for node in graph if _is_product(node, sources)]
        layers = layer_count(source.tensor for source in sources.values())
        integers = IntegerProducts(graph)
        for node in tqdm(products, desc="rounding", unit="matrix", disable=None, leave=False):
            source = sources[str(node.inputs[1].name)]
            rounding = options.rounding(matrix_name(source.tensor), layers)
            _replace(graph, node, _tensor(tensors, source), rounding, file, integers)
    for name, value in graph.initializers.items():
        stored = value.const_value
        if name in sources:
            tensor, turned = _tensor(tensors, sources[name]), sources[name].turned
            shape = tensor.shape[::-1] if turned else tensor.shape
            value.const_value = file.add(name, _pieces(tensor, turned=turned), shape)
        elif stored is not None and not isinstance(stored, ir.ExternalTensor) and stored.nbytes >= INLINE_BYTES:
            value.const_value = file.add(name, [stored.numpy()], tuple(stored.shape.numpy()))


def _is_product(node: ir.Node, sources: dict[str, Source]) -> bool:
    weight = node.inputs[1] if node.op_type == "MatMul" else None
    return weight is not None and weight.name in sources and sources[str(weight.name)].turned


def _tensor(tensors: Mapping[str, Rows], source: Source) -> Rows:
    if source.tensor not in tensors:
        raise CheckpointError(f"the checkpoint has no tensor {source.tensor}: copy it again")
    return tensors[source.tensor]


def _pieces(tensor: Rows, *, turned: bool) -> Iterator[Float32Array]:
    """A tensor as float32 in row-major order; of a turned matrix some columns at a time."""
    step = max(1, _PIECE_VALUES // max(1, math.prod(tensor.shape[1:])))
    if not turned:
        for start in range(0, tensor.shape[0], step):
            yield tensor.rows(start, min(start + step, tensor.shape[0]))
        return
    whole = tensor.rows(0, tensor.shape[0])
    step = max(1, _PIECE_VALUES // tensor.shape[0])
    for start in range(0, tensor.shape[1], step):
        yield whole[:, start : start + step].T


def _replace(
    graph: ir.Graph, node: ir.Node, tensor: Rows, rounding: Rounding, file: WeightFile, integers: IntegerProducts
) -> None:
    """Put a product with rounded weights in the place of a MatMul."""
    if isinstance(tensor, PackedMatrix):
        matrix, rounding = tensor.quantized(), tensor.rounding
    else:
        matrix = quantize_matrix(tensor, rounding)
    weight = node.inputs[1]
    assert weight is not None, "the caller looked"  # noqa: S101 - for the type checker

    def added(kind: str, pieces: Iterable[NDArray[Any]], shape: tuple[int, ...]) -> ir.Value:
        name = f"{weight.name}.{kind}"
        value = ir.Value(name=name, const_value=file.add(name, pieces, shape))
        graph.register_initializer(value)
        return value

    if rounding.block_size == WHOLE_ROW:
        values = added("weight", turned(matrix), tensor.shape[::-1])
        scales = added("scales", [matrix.scales[:, 0]], tensor.shape[:1])
        _replace_by_rows(graph, node, values, scales, integers)
    else:
        inputs = [added(kind, [array], array.shape) for kind, array in matrix.inputs.items()]
        _replace_by_blocks(graph, node, tensor.shape, rounding, inputs)
    graph.initializers.pop(str(weight.name))


def _replace_by_rows(
    graph: ir.Graph, node: ir.Node, weight: ir.Value, scales: ir.Value, integers: IntegerProducts
) -> None:
    """Put a product of integers in the place of a MatMul."""
    read, old = node.inputs[0], node.outputs[0]
    assert read is not None, "a product reads something"  # noqa: S101 - for the type checker
    new = integers.product(str(node.name), read, weight, scales, lambda made: graph.insert_before(node, made))
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    new.name, new.type, new.shape = old.name, old.type, old.shape


def _replace_by_blocks(
    graph: ir.Graph, node: ir.Node, shape: tuple[int, ...], rounding: Rounding, inputs: list[ir.Value]
) -> None:
    """Put a MatMulNBits of a matrix [N, K] in the place of a MatMul."""
    columns, rows = shape
    bits = rounding.bits
    product = ir.node(
        "MatMulNBits",
        [node.inputs[0], *inputs],
        {"K": rows, "N": columns, "bits": bits, "block_size": rounding.block_size, "accuracy_level": ACCURACY_LEVEL},
        domain="com.microsoft",
        name=f"{node.name}_Q{bits}",
    )
    old, new = node.outputs[0], product.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [product], [old], [new])
