"""Owns the rules that a dense Qwen3-VL's numbers must keep to be exported; checked before any work.

The limits of ONNX Runtime's operators were found by trying (tests/export/test_geometries.py keeps to them).
"""

import math
from typing import Any

from batchcap.core.errors import CheckpointError
from batchcap.model.geometry import ROPE_THETA, Geometry, ImageSettings, TextGeometry, TokenIds, VisionGeometry

# The activations that transformers and the model builder both know under one name.
TEXT_ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu")
VISION_ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "gelu_new", "relu")
HEAD_MULTIPLE = 8  # of a decoder head's width: GroupQueryAttention, ONNX Runtime 1.32, CPU
VISION_HEAD_MULTIPLE = 4  # of a vision head's width: a rotation of rows and one of columns, of pairs each
CHANNELS = 3
# How the image processor prepares images; batchcap.images does the same and nothing else. 3 is bicubic.
IMAGE_STEPS = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
}


def require_sound(geometry: Geometry, config: dict[str, Any], images: dict[str, Any]) -> None:
    """Numbers that must fit each other; a graph made of others fails late or computes something else.

    Args:
        geometry: as read from both.
        config: config.json, normalised.
        images: the image processor's settings.

    Raises:
        CheckpointError: a rule is broken.
    """
    text, vision = geometry.text, geometry.vision
    for path, rules in (
        ("config.json contradicts itself", _text_rules(text, geometry.tokens, config)),
        ("config.json contradicts itself", _vision_rules(vision, text, config)),
        ("this checkpoint can't be exported", _limits(geometry, config)),
        ("the settings of the image processor do not fit", _image_rules(vision, geometry.image, images)),
    ):
        for rule, kept in rules.items():
            if not kept:
                raise CheckpointError(f"{path}: {rule}")


def _text_rules(text: TextGeometry, tokens: TokenIds, config: dict[str, Any]) -> dict[str, bool]:
    sections = config["text_config"]["rope_parameters"]["mrope_section"]
    of_pictures = (tokens.image_pad, tokens.vision_start, tokens.vision_end)
    sizes = (text.layers, text.hidden_size, text.heads, text.kv_heads, text.head_dim, text.vocab_size)
    return {
        "every size of the language model must be at least 1": min(sizes) >= 1,
        "num_key_value_heads must divide num_attention_heads": text.heads % max(1, text.kv_heads) == 0,
        "mrope_section must be three numbers that add up to half of head_dim": len(sections) == 3
        and min(sections) >= 0
        and 2 * sum(sections) == text.head_dim,
        "the ids of the image's tokens must be below vocab_size": all(
            0 <= id_ < text.vocab_size for id_ in of_pictures
        ),
        "eos_token_id must name at least one token, and only ids below vocab_size": bool(tokens.stop)
        and all(0 <= id_ < text.vocab_size for id_ in tokens.stop),
    }


def _vision_rules(vision: VisionGeometry, text: TextGeometry, config: dict[str, Any]) -> dict[str, bool]:
    levels = vision.deepstack_levels
    sizes = (vision.depth, vision.hidden_size, vision.intermediate_size, vision.heads, vision.patch_size)
    positions = int(config["vision_config"]["num_position_embeddings"])
    return {
        "every size of the vision tower must be at least 1": min(
            *sizes, vision.temporal_patch_size, vision.merge_size, vision.position_side
        )
        >= 1,
        "num_position_embeddings must be a square": vision.position_side**2 == positions,
        "out_hidden_size must be the language model's hidden_size": vision.out_hidden_size == text.hidden_size,
        "the vision tower's num_heads must divide its hidden_size": vision.hidden_size % max(1, vision.heads) == 0,
        "deepstack_visual_indexes must name different blocks in rising order": list(levels) == sorted(set(levels))
        and all(0 <= level < vision.depth for level in levels),
        "there must be a decoder layer for each of deepstack_visual_indexes": len(levels) <= text.layers,
    }


def _limits(geometry: Geometry, config: dict[str, Any]) -> dict[str, bool]:
    text, vision = geometry.text, geometry.vision
    acts = config["text_config"]["hidden_act"], vision.hidden_act
    theta = (config["vision_config"].get("rope_parameters") or {}).get("rope_theta", ROPE_THETA)
    return {
        f"head_dim must be a multiple of {HEAD_MULTIPLE}, not {text.head_dim}": text.head_dim % HEAD_MULTIPLE == 0,
        f"the vision tower's head size must be a multiple of {VISION_HEAD_MULTIPLE}, not {vision.head_dim}": (
            vision.head_dim % VISION_HEAD_MULTIPLE == 0
        ),
        f"rope_theta of the vision tower must be {ROPE_THETA:g}, not {theta}": theta == ROPE_THETA,
        f"images have {CHANNELS} channels, not {vision.in_channels}": vision.in_channels == CHANNELS,
        f"hidden_act of the language model is {acts[0]!r}, not one of {', '.join(TEXT_ACTIVATIONS)}": (
            acts[0] in TEXT_ACTIVATIONS
        ),
        f"hidden_act of the vision tower is {acts[1]!r}, not one of {', '.join(VISION_ACTIVATIONS)}": (
            acts[1] in VISION_ACTIVATIONS
        ),
    }


def _image_rules(vision: VisionGeometry, settings: ImageSettings, images: dict[str, Any]) -> dict[str, bool]:
    """Values that are left out are the image processor's own, which are these."""
    sizes = {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.merge_size,
    }
    rules = {
        f"{name} is {images[name]}, and the vision tower has {size}": images[name] == size
        for name, size in sizes.items()
        if images.get(name) is not None
    }
    steps = {
        f"batchcap prepares images with {name} {wanted}, and not with {images[name]}": images[name] == wanted
        for name, wanted in IMAGE_STEPS.items()
        if images.get(name) is not None
    }
    return {
        **rules,
        **steps,
        "image_mean and image_std must have one number for each channel": all(
            len(images[name]) == CHANNELS for name in ("image_mean", "image_std")
        ),
        "image_mean and image_std must be finite, and no deviation 0": all(map(math.isfinite, settings.mean))
        and all(math.isfinite(value) and value != 0 for value in settings.std),
        "an image's smallest area must be at most the largest, which has room for one visual token": (
            0 <= settings.min_area_px <= settings.max_area_px and settings.max_area_px >= vision.token_side_px**2
        ),
    }
