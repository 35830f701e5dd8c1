"""Faults put into good bundles on purpose; the checksums are made anew, so that only a comparison can find them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from batchcap.model.bundle import BUNDLE_FILE, DECODER_FILE, EMBEDDINGS_FILE, VISION_FILE, Bundle, bundle_id, sha256_of

IMAGE_ROPE = "MRotaryEmbedding"


@dataclass(frozen=True)
class Opened:
    """A copy of a bundle, open for change."""

    folder: Path
    model: onnx.ModelProto

    @property
    def nodes(self) -> dict[str, onnx.NodeProto]:
        return {node.name: node for node in self.model.graph.node}

    def change_value(self, initializer: str, place: int, change: Callable[[np.generic], np.generic]) -> None:
        """Change one number in the data file."""
        tensor = next(one for one in self.model.graph.initializer if one.name == initializer)
        where = {entry.key: entry.value for entry in tensor.external_data}
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        data = np.memmap(
            self.folder / "decoder" / where["location"], dtype, "r+", int(where["offset"]), tuple(tensor.dims)
        )
        data.flat[place] = change(data.flat[place])
        data.flush()


Fault = Callable[[Opened], None]


def broken(bundle: Bundle, folder: Path, fault: Fault) -> Path:
    """A copy of a bundle with a fault that its checksums don't show."""
    shutil.copytree(bundle.folder, folder)
    opened = Opened(folder, onnx.load(folder / DECODER_FILE, load_external_data=False))
    fault(opened)
    onnx.save(opened.model, folder / DECODER_FILE)
    content = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))
    for name, known in content["files"].items():
        known["sha256"], known["bytes"] = sha256_of(folder / name), (folder / name).stat().st_size
    (folder / BUNDLE_FILE).write_text(json.dumps({**content, "id": bundle_id(content)}))
    return folder


def level_lost(level: int) -> Fault:
    """A DeepStack input that nothing reads."""

    def fault(opened: Opened) -> None:
        add = opened.nodes[f"/model/layers.{level}/deepstack/Add"]
        add.op_type = "Identity"
        del add.input[1]

    return fault


def all_levels_lost(opened: Opened) -> None:
    for level in range(3):
        level_lost(level)(opened)


def levels_swapped(opened: Opened) -> None:
    first, second = (opened.nodes[f"/model/layers.{level}/deepstack/Add"] for level in (0, 1))
    first.input[1], second.input[1] = second.input[1], first.input[1]


def level_late(opened: Opened) -> None:
    """The second level is added one layer after its own, with the third."""
    late, third = (opened.nodes[f"/model/layers.{layer}/deepstack/Add"] for layer in (1, 2))
    opened.nodes["/model/layers.2/input_layernorm/SkipLayerNorm"].input[1] = late.input[0]
    late.input[0], third.input[0] = third.input[0], late.output[0]
    nodes = opened.model.graph.node
    moved = onnx.NodeProto()
    moved.CopyFrom(late)
    nodes.remove(late)
    nodes.insert(list(nodes).index(third), moved)


def sections_permuted(opened: Opened) -> None:
    for node in opened.model.graph.node:
        if node.op_type == IMAGE_ROPE:
            _permute(node)


def sections_permuted_once(opened: Opened) -> None:
    """For the keys of one layer alone."""
    _permute(opened.nodes[f"/model/layers.2/attn/k_rotary/{IMAGE_ROPE}"])


def _permute(node: onnx.NodeProto) -> None:
    sections = _attribute(node, "mrope_section")
    sections.ints[:] = [sections.ints[1], sections.ints[2], sections.ints[0]]


def sections_in_blocks(opened: Opened) -> None:
    """Not interleaved, as Qwen2-VL has them."""
    for node in opened.model.graph.node:
        if node.op_type == IMAGE_ROPE:
            _attribute(node, "mrope_layout").i = 0


def rows_are_columns(opened: Opened) -> None:
    """The second and the third of a token's three positions change places."""
    order = onnx.numpy_helper.from_array(np.array([0, 2, 1], np.int64), "order")
    for node in opened.model.graph.node:
        for place, name in enumerate(node.input):
            if name == "position_ids":
                node.input[place] = "turned_position_ids"
    opened.model.graph.initializer.append(order)
    turn = onnx.helper.make_node("Gather", ["position_ids", "order"], ["turned_position_ids"], "turn", axis=0)
    opened.model.graph.node.insert(0, turn)


def _attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    return next(attribute for attribute in node.attribute if attribute.name == name)


def attention_scaled(opened: Opened) -> None:
    """One layer's attention is 2 % sharper."""
    node = opened.nodes["/model/layers.1/attn/GroupQueryAttention"]
    _attribute(node, "scale").f *= 1.02


def scale_off(factor: float) -> Fault:
    """One scale of one block of one matrix."""

    def fault(opened: Opened) -> None:
        opened.change_value("model.layers.1.mlp.up_proj.MatMul.weight.scales", 77, lambda scale: scale * factor)

    return fault


def level_off(opened: Opened) -> None:
    """One weight of few bits is another by far."""
    opened.change_value(
        "model.layers.3.attn.v_proj.MatMul.weight.weight", 500, lambda byte: byte ^ byte.dtype.type(0x44)
    )


def weight_off(opened: Opened) -> None:
    """One float32 weight by a millionth."""
    opened.change_value("model.layers.3.attn.v_proj.MatMul.weight", 500, lambda weight: weight * np.float32(1.000001))


def matrices_swapped(opened: Opened) -> None:
    """Two matrices of one shape, in the graph."""
    gate, up = (
        opened.nodes[name]
        for name in opened.nodes
        if name.startswith(("/model/layers.0/mlp/gate_proj/", "/model/layers.0/mlp/up_proj/"))
    )
    for place in range(1, len(gate.input)):
        gate.input[place], up.input[place] = up.input[place], gate.input[place]


def norm_off(opened: Opened) -> None:
    opened.change_value("model.layers.2.input_layernorm.weight", 5, lambda weight: weight * np.float32(1.01))


def rotary_off(opened: Opened) -> None:
    opened.change_value("cos_cache", 5, lambda cosine: cosine + np.float32(1e-5))


def embedding_off(opened: Opened) -> None:
    table = np.load(opened.folder / EMBEDDINGS_FILE, mmap_mode="r+")
    table[9, 3] *= 1.5
    table.flush()


def vision_off(opened: Opened) -> None:
    path = opened.folder / VISION_FILE
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x40
    path.write_bytes(content)
