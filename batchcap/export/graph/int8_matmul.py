"""Owns products of 8-bit integers (W8A8): weights with one scale a column, activations with one scale a token.

A product x @ W.T becomes ((q @ Q) * column scale) * token scale, where q are unsigned bytes about 128 and Q signed
ones. Where the CPU has 8-bit dot products (AVX-512 VNNI, AMX) that is its fastest arithmetic for many tokens at once,
and since sums of integers are exact a row never depends on the rows beside it.

Weights are at most 64 in magnitude, seven bits: ONNX Runtime's kernel adds pairs of products in 16 bits on CPUs without
VNNI, where 2 · 255 · 64 fits and more would overflow without a word. Its kernel for unsigned weights, which could take
all eight bits, is a fifth slower there.

Letters used for shapes: S tokens, K inputs and N outputs of a matrix.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from batchcap.export.checkpoint.quantize import QuantizedMatrix

MIDDLE = 128  # of the activations
LARGEST = 127
SMALLEST_SCALE = 1e-12  # a token of zeros has a scale, too
_INPUTS_AT_ONCE = 4096
ROUNDING = "/w8a8/"  # within the names of nodes that round activations

# Puts a node into the graph, at the place where the product belongs.
Insert = Callable[[ir.Node], None]


class IntegerProducts:
    """Makes products of integers in a graph; those that read the same round it once.

    Args:
        graph: gets the constants.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._rounded: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._constants: dict[str, ir.Value] = {}

    def product(self, name: str, read: ir.Value, weight: ir.Value, scales: ir.Value, insert: Insert) -> ir.Value:
        """A product in float32 [.., N] of what is read [.., K].

        Args:
            name: of the product.
            read: [.., K] float32.
            weight: [K, N] int8, as `turned` gives it.
            scales: [N] float32.
            insert: takes the nodes in their order.
        """
        whole, scale = self._rounded.get(read) or self._round(read, insert)
        one, middle = self._constant("one", 1, np.float32), self._constant("middle", MIDDLE, np.uint8)
        integers = ir.Node(
            "com.microsoft", "MatMulIntegerToFloat", [whole, weight, one, scales, middle], name=f"{name}_W8A8"
        )
        insert(integers)
        integers.outputs[0].name, integers.outputs[0].dtype = f"{name}_W8A8/output_0", ir.DataType.FLOAT
        return _node("Mul", [integers.outputs[0], scale], f"{name}/scale/Mul", insert)

    def _round(self, value: ir.Value, insert: Insert) -> tuple[ir.Value, ir.Value]:
        """A value as bytes [.., K], and the scale of each token [.., 1]."""
        name = f"{value.name}{ROUNDING}"

        def node(kind: str, *inputs: ir.Value, dtype: ir.DataType = ir.DataType.FLOAT, **attributes: Any) -> ir.Value:
            return _node(kind, list(inputs), f"{name}{kind}", insert, dtype, **attributes)

        axis = self._constant("last_axis", [-1], np.int64)
        largest = node("Max", node("ReduceMax", value, axis), node("Neg", node("ReduceMin", value, axis)))
        steps = node("Mul", largest, self._constant("one_step", 1 / LARGEST, np.float32))
        scale = _node("Max", [steps, self._constant("smallest", SMALLEST_SCALE, np.float32)], f"{name}scale", insert)
        # One operator that knows each row's scale, instead of a division first: 1.0 ms instead of 2.2 for [900, 4096].
        rows = node("Flatten", value, axis=-1)
        row_scales = node("Reshape", scale, axis)
        count = _node("Shape", [row_scales], f"{name}count", insert, ir.DataType.INT64)
        middle = ir.tensor(np.array([MIDDLE], np.uint8))
        middles = node("ConstantOfShape", count, dtype=ir.DataType.UINT8, value=middle)
        whole_rows = node("QuantizeLinear", rows, row_scales, middles, dtype=ir.DataType.UINT8, axis=0)
        shape = node("Shape", value, dtype=ir.DataType.INT64)
        whole = _node("Reshape", [whole_rows, shape], f"{name}whole", insert, ir.DataType.UINT8)
        self._rounded[value] = whole, scale
        return whole, scale

    def _constant(self, name: str, number: float | list[int], dtype: type[np.generic]) -> ir.Value:
        """A small initializer, the same one each time."""
        if name not in self._constants:
            values: NDArray[Any] = np.array(number, dtype)
            tensor = ir.tensor(values, name=f"w8a8.{name}")
            self._constants[name] = ir.Value(name=tensor.name, const_value=tensor)
            self._graph.register_initializer(self._constants[name])
        return self._constants[name]


def _node(
    kind: str,
    inputs: list[ir.Value],
    name: str,
    insert: Insert,
    dtype: ir.DataType = ir.DataType.FLOAT,
    **attributes: Any,
) -> ir.Value:
    node = ir.node(kind, inputs, attributes, name=name)
    node.outputs[0].name, node.outputs[0].dtype = f"{name}/output_0", dtype
    insert(node)
    return node.outputs[0]


def unscaled(product: ir.Value) -> ir.Value:
    """A product of integers before each token's scale; any other value as it is."""
    scaling = product.producer()
    first = scaling.inputs[0] if scaling is not None and scaling.op_type == "Mul" else None
    source = first.producer() if first is not None else None
    return first if first is not None and source is not None and source.op_type == "MatMulIntegerToFloat" else product


def turned(matrix: QuantizedMatrix) -> Iterator[NDArray[np.int8]]:
    """The integers of a matrix as the kernel reads them, [K, N], in pieces of a few inputs."""
    values = matrix.packed[:, 0]
    middle = np.uint8(1 << matrix.bits - 1)
    for start in range(0, values.shape[1], _INPUTS_AT_ONCE):
        yield (values[:, start : start + _INPUTS_AT_ONCE].T - middle).view(np.int8)
