"""Owns the decoder's graph: built by ONNX Runtime GenAI's model builder, then given what the builder leaves out.

The builder drops DeepStack and reads every logit out. Here one input a DeepStack level is added to the hidden state
after the decoder's first layers, and the arg-max becomes part of the graph.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from batchcap.core.errors import BatchcapError, CheckpointError
from batchcap.export.checkpoint.checkpoint import Checkpoint
from batchcap.export.checkpoint.configuration import CONFIG_FILE
from batchcap.export.checkpoint.options import ExportOptions
from batchcap.export.checkpoint.quantize import Rows
from batchcap.export.graph.int8_matmul import unscaled
from batchcap.export.graph.weights import Source, WeightFile, fill_weights
from batchcap.model.tensors import canonical_name

log = logging.getLogger(__name__)

GRAPH_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
_LOG_LINES = 12


@dataclass(frozen=True, slots=True)
class Drawing:
    """The model builder's graph, kept as a file: drawing takes seconds, and it can be filled any number of times.

    Attributes:
        path: the graph, its weights not filled in.
        sources: for each initializer without values the tensor of the checkpoint that it is made of.
        levels: DeepStack levels of the model.
    """

    path: Path
    sources: dict[str, Source]
    levels: int


def draw_decoder(checkpoint: Checkpoint, context: int, scratch: Path) -> Drawing:
    """Let the model builder draw a checkpoint's graph.

    Args:
        checkpoint: what to draw.
        context: positions of the rotary tables.
        scratch: an empty folder; needed as long as the drawing.

    Raises:
        CheckpointError: the model builder can't read the checkpoint.
    """
    staging = scratch / "checkpoint"
    graph, sources = scratch / GRAPH_FILE, scratch / "sources.json"
    _stage(checkpoint, context, staging)
    log.info("building the decoder's graph")
    output = _run_builder([staging, graph, sources, scratch / "cache"])
    if not graph.exists():
        raise CheckpointError(f"ONNX Runtime GenAI's model builder wrote no decoder:\n  {output}")
    found: dict[str, Source] = {
        name: Source(canonical_name(source["parameter"]), turned=source["turned"])
        for name, source in json.loads(sources.read_text(encoding="utf-8")).items()
    }
    return Drawing(graph, found, len(checkpoint.geometry.vision.deepstack_levels))


def fill_decoder(drawing: Drawing, tensors: Mapping[str, Rows], options: ExportOptions, target: Path) -> None:
    """Make the decoder in the new folder `target`: weights filled in, DeepStack inputs and arg-max added.

    Raises:
        CheckpointError: a tensor is missing, or the graph has another shape than expected.
    """
    model = ir.load(drawing.path)
    target.mkdir()
    with WeightFile(target / WEIGHTS_FILE) as file:
        fill_weights(model.graph, drawing.sources, tensors, options, file)
    add_deepstack_inputs(model.graph, drawing.levels)
    add_argmax(model.graph)
    narrow_last_layer(model.graph, drawing.levels)
    ir.save(model, target / GRAPH_FILE)


def _stage(checkpoint: Checkpoint, context: int, staging: Path) -> None:
    """The checkpoint's configuration as the model builder may see it.

    It gets fewer positions, since the rotary tables of the real ones take 134 MB, and the stop tokens, wherever they
    were named, since it ends without some.
    """
    staging.mkdir()
    for path in checkpoint.folder.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name != CONFIG_FILE:
            (staging / path.name).symlink_to(path.resolve())
    stop = list(checkpoint.geometry.tokens.stop)
    text = {**checkpoint.config["text_config"], "max_position_embeddings": context, "eos_token_id": stop}
    (staging / CONFIG_FILE).write_text(json.dumps({**checkpoint.config, "text_config": text}), encoding="utf-8")


def _run_builder(places: list[Path]) -> str:
    """Run the builder in a process of its own, so that its memory is given back; returns the end of its output."""
    command = [sys.executable, "-P", "-m", "batchcap.export.graph.builder_process", str(os.getpid()), *map(str, places)]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode < 0:
        raise BatchcapError(
            f"the model builder was killed by signal {-done.returncode}: the system may have run out of memory"
        )
    tail = "\n  ".join(done.stdout.strip().splitlines()[-_LOG_LINES:])
    if done.returncode:
        raise CheckpointError(f"ONNX Runtime GenAI's model builder could not build the decoder:\n  {tail}")
    return tail


def add_deepstack_inputs(graph: ir.Graph, levels: int) -> None:
    """Add the inputs `deepstack_embeds.{i}` [batch or 1, sequence or 1, H], one for each level.

    Level i belongs after decoder layer i (transformers, modeling_qwen3_vl.py, `_deepstack_process`). The builder fuses
    the residual sum of layer i into the norm that opens layer i + 1; adding to the skip input of that norm is the same
    sum, and the norm passes it on as the new residual.

    Raises:
        CheckpointError: the graph has no such norm.
    """
    nodes = {node.name: node for node in graph}
    embeds = next((value for value in graph.inputs if value.name == "inputs_embeds"), None)
    if embeds is None or embeds.shape is None:
        raise CheckpointError("the model builder made a graph without the input inputs_embeds")
    hidden_size = embeds.shape[2]
    dtype = embeds.dtype or ir.DataType.FLOAT
    for level in range(levels):
        norm = nodes.get(f"/model/layers.{level + 1}/input_layernorm/SkipLayerNorm") or nodes.get(
            f"/model/layers.{level + 1}/final_norm_layernorm/SkipLayerNorm"
        )
        if norm is None:
            raise CheckpointError(
                f"the model builder's graph has no norm after layer {level} to add DeepStack level to"
            )
        features = ir.Value(
            name=f"deepstack_embeds.{level}",
            shape=ir.Shape(["deepstack_batch", "deepstack_sequence", hidden_size]),
            type=ir.TensorType(dtype),
        )
        graph.inputs.append(features)
        add = ir.Node("", "Add", [norm.inputs[1], features], name=f"/model/layers.{level}/deepstack/Add")
        add.outputs[0].name = f"/model/layers.{level}/deepstack/Add/output_0"
        add.outputs[0].dtype = dtype
        graph.insert_before(norm, add)
        norm.replace_input_with(1, add.outputs[0])


def add_argmax(graph: ir.Graph) -> None:
    """Add the output `next_token` [batch, 1] int64: the likeliest token, the first one where several are.

    Greedy decoding then never copies 151,936 logits a row out of the graph. A product of integers is read before its
    row is scaled, which can't change what is largest; the scaling is left out of a run that asks for no logits.
    """
    logits = next(value for value in graph.outputs if value.name == "logits")
    attributes = [ir.AttrInt64("axis", -1), ir.AttrInt64("keepdims", 0)]
    argmax = ir.Node("", "ArgMax", [unscaled(logits)], attributes=attributes, name="/next_token/ArgMax")
    token = argmax.outputs[0]
    token.name = "next_token"
    token.dtype = ir.DataType.INT64
    token.shape = ir.Shape([logits.shape[0], 1]) if logits.shape is not None else None
    graph.append(argmax)
    graph.outputs.append(token)


def narrow_last_layer(graph: ir.Graph, levels: int) -> None:
    """Let the last layer compute the last token alone behind its attention, since the head reads no other.

    The builder cuts the hidden state down in front of the head (`prune_lm_head`). The cut belongs where nothing behind
    it mixes tokens: on what attention gives, and on the residual sum beside it. At 2B it saves 3 % of a prefill.

    Args:
        graph: the decoder.
        levels: DeepStack levels; where one is added behind the last layer, the graph stays as it is.

    Raises:
        CheckpointError: the graph has another shape than expected.
    """
    nodes = {node.name: node for node in graph}
    last = sum(node.op_type == "GroupQueryAttention" for node in graph) - 1
    if levels > last:
        return
    attention = nodes.get(f"/model/layers.{last}/attn/GroupQueryAttention")
    norm = nodes.get(f"/model/layers.{last}/post_attention_layernorm/SkipLayerNorm")
    cut, widened = nodes.get("/lm_head/prune/Gather"), nodes.get("/lm_head/prune/Unsqueeze")
    if attention is None or norm is None or cut is None or widened is None:
        raise CheckpointError("the model builder's graph has no last layer, or no cut between it and the head")
    seen, summed, whole = attention.outputs[0], norm.inputs[0], cut.inputs[0]
    assert summed is not None and whole is not None, "a norm and a cut read something"  # noqa: S101, PT018 - for mypy
    index = ir.Value(name="last_token", const_value=ir.tensor(np.array([-1], np.int64), name="last_token"))
    graph.register_initializer(index)
    for value, name in ((seen, "attention"), (summed, "residual")):
        readers = [use for use in value.uses() if value is seen or use.node is norm]
        gather = ir.node("Gather", [value, index], {"axis": 1}, name=f"/model/layers.{last}/last_token/{name}")
        gather.outputs[0].name, gather.outputs[0].type = f"{gather.name}/output_0", value.type
        graph.insert_after(attention, gather)
        for use in readers:
            use.node.replace_input_with(use.idx, gather.outputs[0])
    ir.convenience.replace_all_uses_with(widened.outputs[0], whole)
    graph.remove([widened, cut], safe=True)
