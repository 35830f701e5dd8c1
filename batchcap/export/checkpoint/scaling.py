"""Owns the scales of activation-aware rounding: what is divided by them, what takes them up, how a bundle keeps them.

A scale belongs to one number that a norm or a matrix puts out. That norm's weight (that matrix's row) is divided by it,
and the columns of the matrices that read the number are multiplied by it: the product is the same, but the columns
that see large numbers are rounded in finer steps (AWQ, Lin et al. 2023, arXiv 2306.00978).

In a bundle: `decoder/awq.safetensors`, one F32 tensor [outputs] for each `Group`, called like the tensor of the
checkpoint that is divided, in `canonical_name`'s spelling. `scaled_tensors` gives the checkpoint's tensors as the
decoder's graph holds them before they are rounded.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from batchcap.core.records import Float32Array
from batchcap.export.checkpoint.quantize import Rows
from batchcap.model.geometry import TextGeometry
from batchcap.model.tensors import EMBEDDINGS, HEAD

SCALES_FILE = "decoder/awq.safetensors"

Scales = dict[str, Float32Array]


@dataclass(frozen=True, slots=True)
class Group:
    """Matrices that read the same numbers, and so share their scales.

    Attributes:
        divided: the tensor whose outputs are divided.
        readers: the matrices whose columns are multiplied.
        per_head: query heads that read one head of keys and values, and so share its scales; 1 elsewhere.
    """

    divided: str
    readers: tuple[str, ...]
    per_head: int = 1


def layer_groups(layer: int, text: TextGeometry) -> tuple[Group, ...]:
    """The groups of a decoder layer in the order of the forward pass."""
    names = f"language_model.layers.{layer}."
    attention, mlp = f"{names}self_attn.", f"{names}mlp."
    return (
        Group(f"{names}input_layernorm.weight", tuple(f"{attention}{kind}_proj.weight" for kind in "qkv")),
        Group(f"{attention}v_proj.weight", (f"{attention}o_proj.weight",), text.heads // text.kv_heads),
        Group(f"{names}post_attention_layernorm.weight", (f"{mlp}gate_proj.weight", f"{mlp}up_proj.weight")),
        Group(f"{mlp}up_proj.weight", (f"{mlp}down_proj.weight",)),
    )


def head_group(tensors: Mapping[str, Rows]) -> Group:
    """The head behind the last norm. A tied head is scaled in the decoder's graph, the token embeddings are not."""
    return Group("language_model.norm.weight", (HEAD if HEAD in tensors else EMBEDDINGS,))


def expanded(scales: Float32Array, group: Group, text: TextGeometry) -> Float32Array:
    """Scales of a group's outputs as scales of its readers' columns: each head's repeated for its query heads."""
    if group.per_head == 1:
        return scales
    heads = scales.reshape(text.kv_heads, 1, text.head_dim)
    return np.broadcast_to(heads, (text.kv_heads, group.per_head, text.head_dim)).reshape(-1)


@dataclass(frozen=True, slots=True)
class ScaledTensor:
    """A tensor of the checkpoint with scales folded in; read like the tensor itself.

    Attributes:
        tensor: [N, K] or [N].
        multiplied: [K] what its columns are multiplied by, or None.
        divided: [N] what its rows are divided by, or None.
    """

    tensor: Rows
    multiplied: Float32Array | None = None
    divided: Float32Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the tensor."""
        return self.tensor.shape

    def rows(self, start: int, stop: int) -> Float32Array:
        """Rows `start` to `stop`, float32."""
        values = self.tensor.rows(start, stop)
        if self.multiplied is not None:
            values = values * self.multiplied
        if self.divided is not None:
            values = values / self.divided[start:stop].reshape(-1, *[1] * (values.ndim - 1))
        return values


def scaled_tensors(tensors: Mapping[str, Rows], scales: Scales, text: TextGeometry) -> dict[str, Rows]:
    """The checkpoint's tensors as the decoder's graph holds them; without scales, as they are."""
    result = dict(tensors)
    divided, multiplied = dict[str, Float32Array](), dict[str, Float32Array]()
    for group in all_groups(tensors, text):
        if group.divided in scales:
            given = scales[group.divided]
            bias = group.divided.removesuffix("weight") + "bias"
            divided |= {name: given for name in (group.divided, bias) if name in tensors}
            multiplied |= dict.fromkeys(group.readers, expanded(given, group, text))
    for name in divided.keys() | multiplied.keys():
        result[name] = ScaledTensor(tensors[name], multiplied.get(name), divided.get(name))
    return result


def all_groups(tensors: Mapping[str, Rows], text: TextGeometry) -> Iterator[Group]:
    """Every group of a model."""
    for layer in range(text.layers):
        yield from layer_groups(layer, text)
    yield head_group(tensors)


def write_scales(folder: Path, scales: Scales) -> None:
    """Write the scales into a bundle's folder."""
    save_file({name: np.ascontiguousarray(values) for name, values in sorted(scales.items())}, folder / SCALES_FILE)


def read_scales(folder: Path) -> Scales:
    """The scales of a bundle; none where it was made without them."""
    path = folder / SCALES_FILE
    return load_file(path) if path.exists() else {}
