"""The four published dense sizes, from their configurations and hollow weights: opened, and the largest shape drawn."""

import json
import shutil
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from batchcap.export.checkpoint.checkpoint import open_checkpoint
from batchcap.export.checkpoint.inventory import expected_tensors
from batchcap.export.graph.decoder import add_argmax, add_deepstack_inputs, draw_decoder, narrow_last_layer
from batchcap.model.tensors import EMBEDDINGS, VISION, canonical_name
from tests.checkpoints import DATA, write_hollow_weights

pytestmark = pytest.mark.slow

# Size: layers, hidden size, heads, tied head, DeepStack levels.
PUBLISHED = {
    "2B": (28, 2048, 16, True, (5, 11, 17)),
    "4B": (36, 2560, 32, True, (5, 11, 17)),
    "8B": (36, 4096, 32, False, (8, 16, 24)),
    "32B": (64, 5120, 64, False, (8, 16, 24)),
}
FILES = ("generation_config.json", "preprocessor_config.json", "tokenizer.json", "chat_template.jinja")


def published_config(size: str) -> dict[str, Any]:
    """The config.json of a size.

    That of 32B has its published numbers (config.json of huggingface.co/Qwen/Qwen3-VL-32B-Instruct) in the frame of
    the 8B file, whose vision tower differs in the width of its output only.
    """
    if size != "32B":
        content: dict[str, Any] = json.loads((DATA / f"config-{size}.json").read_text(encoding="utf-8"))
        return content
    config = published_config("8B")
    config["text_config"] |= {"hidden_size": 5120, "intermediate_size": 25600}
    config["text_config"] |= {"num_hidden_layers": 64, "num_attention_heads": 64}
    config["vision_config"]["out_hidden_size"] = 5120
    return config


def hollow_checkpoint(folder: Path, size: str) -> dict[str, tuple[int, ...]]:
    """Write a checkpoint of a size without weights; names and shapes of transformers' model."""
    for name in FILES:
        shutil.copyfile(DATA / name, folder / name)
    (folder / "config.json").write_text(json.dumps(published_config(size)))
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_pretrained(folder))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    write_hollow_weights(folder, shapes)
    return {canonical_name(name): shape for name, shape in shapes.items()}


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_inventory_is_that_of_transformers(tmp_path: Path, size: str) -> None:
    layers, hidden, heads, tied, levels = PUBLISHED[size]
    shapes = hollow_checkpoint(tmp_path, size)
    opened = open_checkpoint(str(tmp_path))
    geometry = opened.geometry
    expected = list(expected_tensors(geometry, opened.config))
    assert dict(expected) == shapes
    assert len(expected) == len(shapes)
    assert (geometry.text.layers, geometry.text.hidden_size, geometry.text.heads) == (layers, hidden, heads)
    assert (geometry.text.kv_heads, geometry.text.head_dim, geometry.text.vocab_size) == (8, 128, 151936)
    assert ("lm_head.weight" in opened.tensors) is not tied
    assert geometry.vision.deepstack_levels == levels
    assert (geometry.vision.position_side, geometry.vision.token_side_px) == (48, 32)
    assert (geometry.image.min_area_px, geometry.image.max_area_px) == (65536, 16777216)
    assert geometry.tokens.stop == (151645, 151643)
    assert geometry.tokens.image_pad == 151655


def test_the_graph_of_8b(tmp_path: Path) -> None:
    """The smallest size with a separate head; drawing it takes 9 s of one core and 0.6 GiB, weights are not read."""
    checkpoint, scratch = tmp_path / "checkpoint", tmp_path / "scratch"
    checkpoint.mkdir()
    scratch.mkdir()
    shapes = hollow_checkpoint(checkpoint, "8B")
    drawing = draw_decoder(open_checkpoint(str(checkpoint)), context=256, scratch=scratch)
    graph = ir.load(drawing.path).graph
    used = {source.tensor for source in drawing.sources.values()}
    assert used == {name for name in shapes if not name.startswith(VISION) and name != EMBEDDINGS}
    for name, source in drawing.sources.items():
        shape = shapes[source.tensor]
        assert tuple(graph.initializers[name].shape.numpy()) == (shape[::-1] if source.turned else shape)
    add_deepstack_inputs(graph, drawing.levels)
    add_argmax(graph)
    inputs = {value.name: value.shape for value in graph.inputs}
    assert [inputs[f"deepstack_embeds.{level}"][2] for level in range(3)] == [4096] * 3
    caches = [name for name in inputs if name.startswith("past_key_values.")]
    assert len(caches) == 2 * 36
    assert {inputs[name][1] for name in caches} == {8}
    assert graph.outputs[-1].name == "next_token"
    before = [node.name for node in graph]
    narrow_last_layer(graph, levels=36)
    assert [node.name for node in graph] == before, "behind the last layer all tokens would be needed"
    narrow_last_layer(graph, levels=3)
    assert {node.name for node in graph} - set(before) == {
        f"/model/layers.35/last_token/{what}" for what in ("attention", "residual")
    }
    assert set(before) - {node.name for node in graph} == {"/lm_head/prune/Gather", "/lm_head/prune/Unsqueeze"}
