"""Owns what is said where a tensor is missing: what the weights hold in its place, and the next step."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from batchcap.export.checkpoint.configuration import CONFIG_FILE, TIED, part_of
from batchcap.export.checkpoint.kinds import MERGE
from batchcap.model.stored_json import read_json
from batchcap.model.tensors import HEAD, VISION, canonical_name, stored_tensors

LANGUAGE_MODEL = "language_model."
_FIRST = {LANGUAGE_MODEL: "layers.0.input_layernorm.weight", VISION: "patch_embed.proj.weight"}  # of each part
_ALONE = {LANGUAGE_MODEL: "a vision tower", VISION: "a language model"}  # what is left without it
_ADAPTED = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|base_layer)\.|^base_model\.model\.")
_LAYER = re.compile(r"language_model\.layers\.(\d+)\.")
# What parts of a matrix in few bits are called, by GPTQ and AWQ, compressed-tensors, bitsandbytes, and FP8.
_FEW_BITS = ("qweight", "weight_packed", "weight.absmax", "weight_scale", "weight_scale_inv")
_OF_ANOTHER_MODEL = "config.json and the weights are of different models, or a weight file is missing"
_TIED_SIZES = "if the model uses its token embeddings as its head (Qwen3-VL 2B and 4B do)"


def missing_tensor(name: str, shape: tuple[int, ...], folder: Path, config: dict[str, Any]) -> str:
    """The error message for a tensor that a checkpoint lacks.

    Args:
        name: its canonical name.
        shape: what it should be.
        folder: the checkpoint.
        config: its configuration, normalised.
    """
    stored = stored_tensors(folder).keys()
    names = {canonical_name(one) for one in stored}
    reason = (
        _not_merged(stored)
        or (name == HEAD and _without_head(folder, stored))
        or _in_few_bits(name, names)
        or _without_part(VISION if name.startswith(VISION) else LANGUAGE_MODEL, stored, names)
        or _of_another_shape(name, names, config)
        or ": copy it again"
    )
    return f"the checkpoint has no tensor {name} {list(shape)}{reason}"


def _not_merged(stored: Collection[str]) -> str:
    adapted = next(filter(_ADAPTED.search, stored), "")
    return adapted and f", but {adapted}: it holds an adapter (LoRA) that was not merged; {MERGE}"


def _without_head(folder: Path, stored: Collection[str]) -> str:
    if found := next((one for one in stored if one.endswith(f".{HEAD}")), None):
        return f", but {found}, which transformers does not read: rename it to {HEAD}"
    if part_of(read_json(folder / CONFIG_FILE), "text_config").get(TIED) is True:
        return (
            f', and config.json has "{TIED}" true in its text_config and false at its top, which counts: '
            f"{_TIED_SIZES}, "
            "write true at the top too"
        )
    return (
        f': copy the weight file that holds it again, or, {_TIED_SIZES}, write "{TIED}": true at the top of config.json'
    )


def _in_few_bits(name: str, names: set[str]) -> str:
    stem = name.removesuffix("weight")
    found = next((stem + part for part in _FEW_BITS if stem + part in names), "")
    return found and (
        f", but {found}: the weights were quantized, and config.json has no quantization_config that says how. "
        "Take the config.json that was saved with them, or the checkpoint in BF16, F16 or F32"
    )


def _without_part(part: str, stored: Collection[str], names: set[str]) -> str:
    """Where the language model or the vision tower is missing as a whole: under another prefix, or not there."""
    first = _FIRST[part]
    if part + first in names:
        return ""
    found = next((one for one in stored if one == first or one.endswith(f".{first}")), None)
    if found is not None:
        return (
            f", but {found}: names begin with {found.removesuffix(first)!r} where transformers reads "
            f"'model.{part}'. Save the model itself and not a wrapper or a part of it (`save_pretrained` of "
            "transformers), or rename the tensors"
        )
    if any(one.startswith(part) for one in names):
        return ""
    alone = _ALONE[part]
    return f", and none that begins with {part}: it is {alone} alone, or was saved in parts; take the whole Qwen3-VL"


def _of_another_shape(name: str, names: set[str], config: dict[str, Any]) -> str:
    """How the configuration and the weights differ, if not by a single tensor."""
    layers = {int(found[1]) for found in map(_LAYER.match, names) if found}
    layer = _LAYER.match(name)
    if layer and int(layer[1]) not in layers and layers == set(range(len(layers))):
        promised = config["text_config"]["num_hidden_layers"]
        return f", and {len(layers)} decoder layers where config.json says {promised}: {_OF_ANOTHER_MODEL}"
    if layer and name.endswith(".bias") and not any(one.endswith("q_proj.bias") for one in names):
        return f", and no biases where config.json wants them (attention_bias): {_OF_ANOTHER_MODEL}"
    return ""
