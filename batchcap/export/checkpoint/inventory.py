"""Owns the list of tensors that a dense Qwen3-VL has: a checkpoint that lacks one is refused before any work.

Names and shapes follow `Qwen3VLForConditionalGeneration` of transformers, in `canonical_name`'s spelling.
"""

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batchcap.core.errors import CheckpointError
from batchcap.export.checkpoint.configuration import TIED, part_of
from batchcap.export.checkpoint.missing import missing_tensor
from batchcap.model.geometry import Geometry, TextGeometry, VisionGeometry
from batchcap.model.tensors import EMBEDDINGS, FLOAT_TYPES, HEAD, StoredTensor, same_bytes

Shape = tuple[int, ...]
FLOAT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_SHOWN = 3

log = logging.getLogger(__name__)


def chosen_tensors(
    tensors: dict[str, StoredTensor], geometry: Geometry, config: dict[str, Any], folder: Path
) -> dict[str, StoredTensor]:
    """The tensors that the configuration promises; others are left out with a warning, as by transformers.

    Token embeddings that are stored as the head alone are the head, if the two are tied; so they are for transformers.

    Raises:
        CheckpointError: one is missing, of another shape, or not floating point.
    """
    if head_is_tied(config) and HEAD in tensors and EMBEDDINGS not in tensors:
        tensors = {**tensors, EMBEDDINGS: tensors[HEAD]}
    chosen = {}
    for name, shape in expected_tensors(geometry, config):
        stored = tensors.get(name)
        if stored is None:
            raise CheckpointError(missing_tensor(name, shape, folder, config))
        if stored.shape != shape:
            raise CheckpointError(
                f"the tensor {name} has the shape {list(stored.shape)}, but config.json says {list(shape)}: "
                "config.json and the weights are of different models"
            )
        if stored.dtype not in FLOAT_TYPES:
            raise CheckpointError(
                f"the tensor {name} is {stored.dtype}; batchcap exports checkpoints in BF16, F16 or F32: "
                "take the one that was not quantized"
            )
        if stored.nbytes != math.prod(shape) * FLOAT_BYTES[stored.dtype]:
            raise CheckpointError(
                f"the tensor {name} takes {stored.nbytes} bytes in {stored.path}, which does not match "
                f"{list(shape)} in {stored.dtype}: copy the checkpoint again"
            )
        chosen[name] = stored
    others = sorted(tensors.keys() - chosen.keys() - {HEAD})
    if others:
        log.warning(
            "ignored %d tensors that are not part of this model: %s, …", len(others), ", ".join(others[:_SHOWN])
        )
    return chosen


def with_true_head(config: dict[str, Any], given: dict[str, Any], tensors: dict[str, StoredTensor]) -> dict[str, Any]:
    """The configuration with `tie_word_embeddings` as the weights have it.

    The head is its own where the weights hold another one than the token embeddings; transformers 5 goes by the
    weights, too (`PreTrainedModel.tie_weights`). It is tied where the weights hold none and only the text_config ties
    it, which transformers does not read there: its head would be random numbers.

    Args:
        config: normalised.
        given: `config.json` as stored.
        tensors: by their canonical names.
    """
    head, embeddings = tensors.get(HEAD), tensors.get(EMBEDDINGS)
    if TIED not in given and head is None and part_of(given, "text_config").get(TIED) is True:
        return {**config, TIED: True}
    if not head_is_tied(config) or head is None or embeddings is None or same_bytes(head, embeddings):
        return config
    log.warning(
        "config.json ties the head to the token embeddings, but the weights hold a separate head, which is used"
    )
    return {**config, TIED: False}


def expected_tensors(geometry: Geometry, config: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    """Name and shape of every tensor of a checkpoint."""
    text, vision = geometry.text, geometry.vision
    yield EMBEDDINGS, (text.vocab_size, text.hidden_size)
    for layer in range(text.layers):
        for name, shape in _decoder_layer(text, config["text_config"]):
            yield f"language_model.layers.{layer}.{name}", shape
    yield "language_model.norm.weight", (text.hidden_size,)
    if not head_is_tied(config):
        yield HEAD, (text.vocab_size, text.hidden_size)
    for name, shape in _vision_tower(vision):
        yield f"visual.{name}", shape


def head_is_tied(config: dict[str, Any]) -> bool:
    """Whether the head reads the token embeddings."""
    return bool(config[TIED])


def _decoder_layer(text: TextGeometry, config: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    hidden, inner = text.hidden_size, int(config["intermediate_size"])
    queries, keys = text.heads * text.head_dim, text.kv_heads * text.head_dim
    for name, width in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        yield f"self_attn.{name}.weight", (width, hidden)
        if config.get("attention_bias"):
            yield f"self_attn.{name}.bias", (width,)
    yield "self_attn.o_proj.weight", (hidden, queries)
    if config.get("attention_bias"):
        yield "self_attn.o_proj.bias", (hidden,)
    for name in ("q_norm", "k_norm"):
        yield f"self_attn.{name}.weight", (text.head_dim,)
    for name in ("gate_proj", "up_proj"):
        yield f"mlp.{name}.weight", (inner, hidden)
    yield "mlp.down_proj.weight", (hidden, inner)
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield f"{name}.weight", (hidden,)


def _vision_tower(vision: VisionGeometry) -> Iterator[tuple[str, Shape]]:
    hidden, wide = vision.hidden_size, vision.hidden_size * vision.merge_size**2
    patch = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    yield from _layer("patch_embed.proj", (hidden, *patch))
    yield "pos_embed.weight", (vision.position_side**2, hidden)
    for block in range(vision.depth):
        yield from _layer(f"blocks.{block}.norm1", (hidden,))
        yield from _layer(f"blocks.{block}.norm2", (hidden,))
        yield from _layer(f"blocks.{block}.attn.qkv", (3 * hidden, hidden))
        yield from _layer(f"blocks.{block}.attn.proj", (hidden, hidden))
        yield from _layer(f"blocks.{block}.mlp.linear_fc1", (vision.intermediate_size, hidden))
        yield from _layer(f"blocks.{block}.mlp.linear_fc2", (hidden, vision.intermediate_size))
    mergers = [("merger", hidden)]
    mergers += [(f"deepstack_merger_list.{level}", wide) for level in range(len(vision.deepstack_levels))]
    for name, norm_width in mergers:
        yield from _layer(f"{name}.norm", (norm_width,))
        yield from _layer(f"{name}.linear_fc1", (wide, wide))
        yield from _layer(f"{name}.linear_fc2", (vision.out_hidden_size, wide))


def _layer(name: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
    """A weight and the bias of its first axis."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]
