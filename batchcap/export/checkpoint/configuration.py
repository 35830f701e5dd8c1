"""Owns what a checkpoint's JSON files say: one configuration, made the way transformers makes it, which all read.

Nothing heavy is imported before `normalised` is called, so that a first look at a folder is quick and works where
transformers is not installed.
"""

import copy
from pathlib import Path
from typing import Any

from batchcap.core.errors import CheckpointError
from batchcap.model.stored_json import read_json

CONFIG_FILE = "config.json"
MODEL_TYPE = "qwen3_vl"
ARCHITECTURE = "Qwen3VLForConditionalGeneration"
TIED = "tie_word_embeddings"
# What reading a value of another type than expected, or one that is missing, raises.
MISTYPED = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError)
DEFAULT_MROPE_SECTION = [24, 20, 20]  # transformers, Qwen3VLTextRotaryEmbedding
# transformers, Qwen2VLImageProcessor: for settings that leave them out.
DEFAULT_SIZE = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
DEFAULT_MEAN = [0.48145466, 0.4578275, 0.40821073]
DEFAULT_STD = [0.26862954, 0.26130258, 0.27577711]
# The keys of transformers' Qwen3VLConfig that shape a model. All others are left out: transformers ignores them, and
# the model builder obeys some, `layer_types` and `attn_logit_softcapping` for instance. `dtype` is left out, too: each
# tensor says its own.
_KEYS = frozenset(("image_token_id", "video_token_id", "vision_end_token_id", "vision_start_token_id", TIED))
_TEXT_KEYS = frozenset(
    (
        "attention_bias",
        "bos_token_id",
        "eos_token_id",
        "head_dim",
        "hidden_act",
        "hidden_size",
        "initializer_range",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "pad_token_id",
        "rms_norm_eps",
        "vocab_size",
    )
)
_ROPE_KEYS = frozenset(("mrope_interleaved", "mrope_section", "rope_theta"))
_DTYPES = frozenset(("dtype", "torch_dtype"))


def part_of(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A nested part of a configuration; an empty one where it is missing or no object."""
    part = config.get(name)
    return part if isinstance(part, dict) else {}


def rope_of(text: dict[str, Any]) -> dict[str, Any]:
    """What a text_config as stored says of rotation: `rope_scaling` (transformers 4) counts before `rope_parameters`.

    So it does in transformers (`convert_rope_params_to_dict`).
    """
    return part_of(text, "rope_scaling") or part_of(text, "rope_parameters")


def rope_type_of(text: dict[str, Any]) -> str:
    """The kind of rotation, under its new name or its old one."""
    rope = rope_of(text)
    return str(rope.get("rope_type") or rope.get("type") or "default")


def normalised(stored: dict[str, Any], path: Path) -> dict[str, Any]:
    """The configuration as transformers makes it: one spelling, defaults filled in, foreign keys left out.

    Args:
        stored: `config.json` of a model that passed `kinds.require_exportable`.
        path: where it was read, for messages.

    Returns:
        A dictionary of which `Qwen3VLConfig` makes the same again. `text_config` and `vision_config` have all sizes;
        `rope_parameters` of the former has `rope_theta` and `mrope_section`.

    Raises:
        CheckpointError: transformers can't read it.
    """
    from huggingface_hub.errors import StrictDataclassError  # noqa: PLC0415 - see above
    from transformers import Qwen3VLConfig  # noqa: PLC0415 - see above

    config = {name: value for name, value in stored.items() if name in _KEYS}
    try:
        vision = {name: value for name, value in stored["vision_config"].items() if name not in _DTYPES}
        made = Qwen3VLConfig(
            **config,
            architectures=[ARCHITECTURE],
            text_config=_text_config(stored["text_config"]),
            vision_config=copy.deepcopy(vision),  # transformers writes into it
        ).to_dict()
    except (*MISTYPED, StrictDataclassError) as error:
        raise CheckpointError(f"{path} has a missing or invalid setting: {' '.join(str(error).split())}") from None
    return {name: value for name, value in made.items() if name not in _DTYPES}


def _text_config(stored: dict[str, Any]) -> dict[str, Any]:
    text = {name: value for name, value in stored.items() if name in _TEXT_KEYS}
    rope = {name: value for name, value in rope_of(stored).items() if name in _ROPE_KEYS and value is not None}
    if stored.get("rope_theta") is not None:
        rope.setdefault("rope_theta", stored["rope_theta"])
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": DEFAULT_MROPE_SECTION, **rope}
    if "head_dim" in text and not text["head_dim"]:  # written by hand: transformers' attention takes it so
        text["head_dim"] = text["hidden_size"] // text["num_attention_heads"]
    if text.get("max_position_embeddings") is None:
        text.pop("max_position_embeddings", None)
    return text


def read_images(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The image processor's settings and their file, sizes and normalisation filled in.

    transformers 5 saves them inside the processor's own settings, and looks there first.
    """
    path, images = folder / "processor_config.json", None
    if path.exists():
        images = read_json(path).get("image_processor")
    if not isinstance(images, dict):
        path = folder / "preprocessor_config.json"
        images = read_json(path)
    defaults = {"size": DEFAULT_SIZE, "image_mean": DEFAULT_MEAN, "image_std": DEFAULT_STD}
    return path, images | {name: value for name, value in defaults.items() if images.get(name) is None}


def stop_tokens(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """The ids that end an answer: of generation_config.json, else of config.json, its top before its text_config.

    Raises:
        CheckpointError: none is named.
    """
    path = folder / "generation_config.json"
    places = (read_json(path) if path.exists() else {}, config, config["text_config"])
    given = next((one["eos_token_id"] for one in places if one.get("eos_token_id") is not None), None)
    if given is None:
        raise CheckpointError(
            f"{folder} names no eos_token_id, neither in generation_config.json nor in config.json: copy "
            "generation_config.json from the model it was trained from"
        )
    return tuple(int(token) for token in (given if isinstance(given, list) else [given]))
