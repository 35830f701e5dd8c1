"""Owns the vision tower as an ONNX graph, drawn node by node: no tracing, so nothing of a sample image is frozen in.

Letters for shapes: B images of N patches each, K = C·t·p·p values in a patch, D hidden size, A heads, a = D / A head
size, F width of the MLP, m merge side, T = N / m² visual tokens, H hidden size of the decoder.

What depends on an image's grid comes in as arrays: interpolated position embeddings, rotary cosines and sines. The
only shape arithmetic left is on B and N, all of it in int64. Linear layers see one long axis of B·N patches.

The fp32 graph has no weights of its own: its initializers lie in the safetensors file that PyTorch reads, and are
widened to float32 when the session is made. Layout and names follow `Qwen3VLVisionModel` of transformers.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from batchcap.core.errors import CheckpointError
from batchcap.export.checkpoint.options import BY_ROWS
from batchcap.export.checkpoint.quantize import quantize_matrix
from batchcap.export.graph.int8_matmul import IntegerProducts, turned
from batchcap.export.graph.weights import WeightFile
from batchcap.model.geometry import VisionGeometry
from batchcap.model.tensors import StoredTensor

OPSET = 23  # the first with RotaryEmbedding
IR_VERSION = 11
NORM_EPS = 1e-6
# Gelu's attribute for the activations of the MLP; None: another operator.
ACTIVATIONS = {"gelu": "none", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh", "relu": None}
_ONNX_TYPES = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}


def write_vision_graph(path: Path, geometry: VisionGeometry, tensors: dict[str, StoredTensor]) -> None:
    """Write the fp32 graph.

    Args:
        path: the graph, in the folder of the safetensors file that holds the tensors.
        geometry: shape of the tower.
        tensors: the tower's tensors in that file, names without `visual.`.

    Raises:
        CheckpointError: the tower's activation is unknown.
    """
    ir.save(_Drawing(geometry, tensors, None).draw(), path)


def write_vision_graph_int8(path: Path, geometry: VisionGeometry, tensors: dict[str, StoredTensor]) -> None:
    """Write the graph with linear layers as products of 8-bit integers; its weights lie beside it in `NAME.data`.

    Raises:
        CheckpointError: the tower's activation is unknown.
    """
    with WeightFile(path.with_suffix(".onnx.data")) as file:
        ir.save(_Drawing(geometry, tensors, file).draw(), path)


class _Drawing:
    """Draws one graph; with a weight file, in INT8."""

    def __init__(self, geometry: VisionGeometry, tensors: dict[str, StoredTensor], file: WeightFile | None) -> None:
        if geometry.hidden_act not in ACTIVATIONS:
            known = ", ".join(sorted(ACTIVATIONS))
            raise CheckpointError(f"the vision tower's activation is {geometry.hidden_act!r}; known are {known}")
        self._geometry = geometry
        self._tensors = tensors
        self._file = file
        self._graph = ir.Graph([], [], nodes=[], name="vision", opset_imports={"": OPSET, "com.microsoft": 1})
        self._integers = IntegerProducts(self._graph)

    def draw(self) -> ir.Model:
        """Patches [B, N, K], positions [B, N, D], cos and sin [B, N, a / 2] to embeds and levels [B, T, H]."""
        geometry = self._geometry
        width = geometry.hidden_size
        patches = self._input("patches", geometry.patch_values)
        positions = self._input("positions", width)
        turn = (self._input("cos", geometry.head_dim // 2), self._input("sin", geometry.head_dim // 2))
        counts = self._node("Shape", [patches], "counts", start=0, end=2)  # [B, N]
        wide = self._node("Concat", [counts, self._constant([3 * width], "qkv_width")], "qkv_shape", axis=0)
        images = self._node("Shape", [patches], "pictures", start=0, end=1)  # [B]
        tokens = self._constant([-1, geometry.out_hidden_size], "tokens")
        shape = self._node("Concat", [images, tokens], "output_shape", axis=0)
        x = self._linear("patch_embed.proj", self._flat(patches, "patches", geometry.patch_values))
        x = self._node("Add", [x, self._flat(positions, "positions", width)], "embedded")
        for number in range(geometry.depth):
            x = self._block(f"blocks.{number}", x, turn, wide)
            if number in geometry.deepstack_levels:
                level = geometry.deepstack_levels.index(number)
                merged = self._merger(f"deepstack_merger_list.{level}", x, wide_norm=True)
                self._output(merged, shape, f"deepstack.{level}")
        self._output(self._merger("merger", x, wide_norm=False), shape, "embeds")
        return ir.Model(self._graph, ir_version=IR_VERSION, producer_name="batchcap")

    def _block(self, name: str, x: ir.Value, turn: tuple[ir.Value, ir.Value], wide: ir.Value) -> ir.Value:
        """One layer over [B·N, D]: attention and MLP, each after its own norm, each added to what came in."""
        heads, width = self._geometry.heads, self._geometry.hidden_size
        qkv = self._linear(f"{name}.attn.qkv", self._norm(f"{name}.norm1", x))
        # The names of values are in the file, and so in the bundle's id, to which jobs are bound: none is ever changed.
        qkv = self._node("Reshape", [qkv, wide], f"{name}.attn.qkv_by_picture")  # [B, N, 3·D]
        query, key, value = self._nodes("Split", [qkv], f"{name}.attn.split", 3, axis=-1, num_outputs=3)
        query, key = (
            self._node("RotaryEmbedding", [part, *turn], f"{name}.attn.turned_{which}", num_heads=heads)
            for which, part in (("query", query), ("key", key))
        )
        seen = self._node(
            "MultiHeadAttention", [query, key, value], f"{name}.attn.seen", domain="com.microsoft", num_heads=heads
        )
        out = self._linear(f"{name}.attn.proj", self._flat(seen, f"{name}.attn.seen", width))
        x = self._node("Add", [x, out], f"{name}.attn.sum")
        inner = self._linear(f"{name}.mlp.linear_fc1", self._norm(f"{name}.norm2", x))
        inner = self._activation(f"{name}.mlp.act", inner, self._geometry.hidden_act)
        return self._node("Add", [x, self._linear(f"{name}.mlp.linear_fc2", inner)], f"{name}.mlp.sum")

    def _merger(self, name: str, x: ir.Value, *, wide_norm: bool) -> ir.Value:
        """Joins m² neighbouring patches into one visual token: [B·N, D] to [B·T, H]."""
        width = self._geometry.hidden_size * self._geometry.merge_size**2
        if wide_norm:
            x = self._norm(f"{name}.norm", self._flat(x, name, width))
        else:
            x = self._flat(self._norm(f"{name}.norm", x), name, width)
        inner = self._activation(f"{name}.act", self._linear(f"{name}.linear_fc1", x), "gelu")
        return self._linear(f"{name}.linear_fc2", inner)

    def _activation(self, name: str, x: ir.Value, kind: str) -> ir.Value:
        approximate = ACTIVATIONS[kind]
        if approximate is None:
            return self._node("Relu", [x], name)
        return self._node("Gelu", [x], name, approximate=approximate)

    def _norm(self, name: str, x: ir.Value) -> ir.Value:
        weight, bias = self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        return self._node("LayerNormalization", [x, weight, bias], name, axis=-1, epsilon=NORM_EPS)

    def _linear(self, name: str, x: ir.Value) -> ir.Value:
        """A linear layer over rows [R, in] to [R, out]."""
        bias = self._weight(f"{name}.bias")
        if self._file is None:
            return self._node("Gemm", [x, self._weight(f"{name}.weight"), bias], name, transB=1)
        matrix = _as_matrix(self._tensors[f"{name}.weight"])
        rounded = quantize_matrix(matrix, BY_ROWS)
        values = self._file.add(f"{name}.values", turned(rounded), matrix.shape[::-1])
        scales = self._file.add(f"{name}.scales", [rounded.scales[:, 0]], matrix.shape[:1])
        weight = (self._initializer(f"{name}.values", values), self._initializer(f"{name}.scales", scales))
        product = self._integers.product(f"{name}.product", x, *weight, self._graph.append)
        return self._node("Add", [product, bias], name)

    def _weight(self, name: str) -> ir.Value:
        """A tensor of the checkpoint as float32."""
        tensor = _as_matrix(self._tensors[name])
        if self._file is not None:
            values = tensor.rows(0, tensor.shape[0])
            return self._initializer(name, self._file.add(name, [values], tensor.shape))
        stored = ir.ExternalTensor(
            tensor.path.name,
            tensor.start,
            tensor.nbytes,
            dtype=_ONNX_TYPES[tensor.dtype],
            shape=ir.Shape(tensor.shape),
            name=name,
            base_dir=tensor.path.parent,
        )
        value = self._initializer(name, stored)
        return value if tensor.dtype == "F32" else self._node("Cast", [value], f"{name}.wide", to=ir.DataType.FLOAT)

    def _flat(self, x: ir.Value, name: str, width: int) -> ir.Value:
        """Rows of one width, whatever came before."""
        return self._node("Reshape", [x, self._constant([-1, width], f"rows_of_{width}")], f"{name}.rows")

    def _input(self, name: str, width: int) -> ir.Value:
        shape = ir.Shape(["batch", "patches", width])
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
        self._graph.inputs.append(value)
        return value

    def _output(self, x: ir.Value, shape: ir.Value, name: str) -> None:
        value = self._node("Reshape", [x, shape], name)
        value.shape = ir.Shape(["batch", "tokens", self._geometry.out_hidden_size])
        value.type = ir.TensorType(ir.DataType.FLOAT)
        self._graph.outputs.append(value)

    def _constant(self, numbers: list[int], name: str) -> ir.Value:
        if name in self._graph.initializers:
            return self._graph.initializers[name]
        values: NDArray[Any] = np.array(numbers, np.int64)
        return self._initializer(name, ir.tensor(values, name=name))

    def _initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        shape = ir.Shape(tensor.shape.numpy())
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def _node(self, kind: str, inputs: list[ir.Value], name: str, **attributes: Any) -> ir.Value:
        return self._nodes(kind, inputs, name, 1, **attributes)[0]

    def _nodes(
        self, kind: str, inputs: list[ir.Value], name: str, count: int, *, domain: str = "", **attributes: Any
    ) -> list[ir.Value]:
        node = ir.node(kind, inputs, attributes, domain=domain, num_outputs=count, name=f"{name}/{kind}")
        for index, value in enumerate(node.outputs):
            value.name = name if count == 1 else f"{name}.{index}"
        self._graph.append(node)
        return list(node.outputs)


def _as_matrix(tensor: StoredTensor) -> StoredTensor:
    """The patch embedding's convolution [D, C, t, p, p] as the matrix [D, K] that it is; others as they are."""
    if len(tensor.shape) <= 2:
        return tensor
    width = int(np.prod(tensor.shape[1:]))
    return StoredTensor(tensor.path, tensor.dtype, (tensor.shape[0], width), tensor.start, tensor.nbytes)
