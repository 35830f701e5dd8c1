"""Owns the reading of a checkpoint: is it a dense Qwen3-VL, whole, and what is its shape."""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchcap.bundle import sha256_of
from batchcap.errors import CheckpointError
from batchcap.export.inventory import require_tensors
from batchcap.export.tensors import StoredTensor, read_index, weight_files
from batchcap.geometry import Geometry, ImageSettings, TextGeometry, TokenIds, VisionGeometry

MODEL_TYPE = "qwen3_vl"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in Hugging Face layout, read but not loaded.

    Attributes:
        folder: where it is.
        name: what to call it in the bundle: no path of this machine.
        config: its config.json.
        geometry: the model's shape.
        tensors: every tensor of it.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    geometry: Geometry
    tensors: dict[str, StoredTensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def weights_sha256(self) -> str:
        """One digest over all weight files."""
        digest = hashlib.sha256()
        for path in weight_files(self.folder):
            digest.update(f"{path.name} {sha256_of(path)}\n".encode())
        return digest.hexdigest()


def open_checkpoint(checkpoint: str) -> Checkpoint:
    """Read a checkpoint's description and check that all of it is there.

    Args:
        checkpoint: a folder, or a name on the Hugging Face hub where there is a network.

    Raises:
        CheckpointError: it is missing, broken, incomplete, or not a dense Qwen3-VL.
    """
    folder = _locate(checkpoint)
    config = _read_json(folder / "config.json")
    _require_dense_qwen3_vl(config, checkpoint)
    tensors = read_index(folder)
    try:
        geometry = _geometry(folder, config)
        _require_sound(geometry, config)
        require_tensors(tensors, geometry, config)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{folder / 'config.json'} lacks or mistypes {error}") from None
    name = checkpoint if not Path(checkpoint).is_dir() else folder.resolve().name
    return Checkpoint(folder, name, config, geometry, tensors)


def _locate(checkpoint: str) -> Path:
    folder = Path(checkpoint)
    if folder.is_dir():
        return folder
    if folder.exists() or not _HUB_NAME.fullmatch(checkpoint):
        raise CheckpointError(f"there is no checkpoint folder at {checkpoint}")
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only for names on the hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(checkpoint, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"there is no folder {checkpoint}, and it can't be had from the hub ({reason}): copy the checkpoint here "
            "and give its folder"
        ) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: {path.parent} is not a whole checkpoint") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"can't read {path}: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return content


def _require_dense_qwen3_vl(config: dict[str, Any], checkpoint: str) -> None:
    model_type = config.get("model_type")
    if model_type == "qwen3_vl_moe":
        raise CheckpointError(f"{checkpoint} is a mixture-of-experts Qwen3-VL; batchcap exports the dense ones")
    if model_type != MODEL_TYPE or "text_config" not in config or "vision_config" not in config:
        raise CheckpointError(f"{checkpoint} is of type {model_type!r}; batchcap exports dense Qwen3-VL ({MODEL_TYPE})")
    text = config["text_config"]
    rope = _rope(text)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "mrope"):
        raise CheckpointError(f"{checkpoint} stretches its positions ({rope_type}); batchcap exports plain mRoPE only")
    if "mrope_section" not in rope:
        raise CheckpointError(f"the config.json of {checkpoint} has no mrope_section: it is not a whole Qwen3-VL")


def _rope(text: dict[str, Any]) -> dict[str, Any]:
    """As `rope_scaling` (transformers 4) or `rope_parameters` (5); the model builder reads both."""
    rope: dict[str, Any] = text.get("rope_parameters") or text.get("rope_scaling") or {}
    return rope


def _geometry(folder: Path, config: dict[str, Any]) -> Geometry:
    text, vision = config["text_config"], config["vision_config"]
    images = _read_json(folder / "preprocessor_config.json")
    heads = int(text["num_attention_heads"])
    return Geometry(
        text=TextGeometry(
            layers=int(text["num_hidden_layers"]),
            hidden_size=int(text["hidden_size"]),
            heads=heads,
            kv_heads=int(text["num_key_value_heads"]),
            head_dim=int(text.get("head_dim") or text["hidden_size"] // heads),
            vocab_size=int(text["vocab_size"]),
        ),
        vision=VisionGeometry(
            depth=int(vision["depth"]),
            hidden_size=int(vision["hidden_size"]),
            intermediate_size=int(vision["intermediate_size"]),
            heads=int(vision["num_heads"]),
            out_hidden_size=int(vision["out_hidden_size"]),
            in_channels=int(vision.get("in_channels", 3)),
            patch_size=int(vision["patch_size"]),
            temporal_patch_size=int(vision["temporal_patch_size"]),
            merge_size=int(vision["spatial_merge_size"]),
            deepstack_levels=tuple(int(level) for level in vision["deepstack_visual_indexes"]),
            position_side=math.isqrt(int(vision["num_position_embeddings"])),
            hidden_act=str(vision["hidden_act"]),
        ),
        image=_image_settings(images),
        tokens=TokenIds(
            image_pad=int(config["image_token_id"]),
            vision_start=int(config["vision_start_token_id"]),
            vision_end=int(config["vision_end_token_id"]),
            stop=_stop_tokens(folder, text),
        ),
    )


def _require_sound(geometry: Geometry, config: dict[str, Any]) -> None:
    """Numbers that must fit each other; a graph made of others fails late or computes something else."""
    text, vision = geometry.text, geometry.vision
    levels, sections = vision.deepstack_levels, _rope(config["text_config"])["mrope_section"]
    unsound = {
        "num_position_embeddings must be a square": vision.position_side**2
        == int(config["vision_config"]["num_position_embeddings"]),
        "out_hidden_size must be the language model's hidden_size": vision.out_hidden_size == text.hidden_size,
        "the vision tower's num_heads must divide its hidden_size": vision.hidden_size % vision.heads == 0,
        "the vision tower's head size must be a multiple of 4": vision.head_dim % 4 == 0,
        "num_key_value_heads must divide num_attention_heads": text.heads % text.kv_heads == 0,
        "mrope_section must add up to half of head_dim": 2 * sum(sections) == text.head_dim,
        "deepstack_visual_indexes must name different blocks in rising order": list(levels) == sorted(set(levels))
        and all(0 <= level < vision.depth for level in levels),
        "there must be a decoder layer for each of deepstack_visual_indexes": len(levels) <= text.layers,
    }
    for rule, kept in unsound.items():
        if not kept:
            raise CheckpointError(f"config.json contradicts itself: {rule}")


def _image_settings(images: dict[str, Any]) -> ImageSettings:
    # In Qwen's files these two are areas in pixels, whatever their names say.
    size = images["size"]
    mean, std = ([float(value) for value in images[key]] for key in ("image_mean", "image_std"))
    return ImageSettings(
        min_area_px=int(size["shortest_edge"]),
        max_area_px=int(size["longest_edge"]),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
    )


def _stop_tokens(folder: Path, text: dict[str, Any]) -> tuple[int, ...]:
    path = folder / "generation_config.json"
    given = _read_json(path).get("eos_token_id") if path.exists() else None
    if given is None:
        given = text.get("eos_token_id")
    if given is None:
        raise CheckpointError(f"{folder} names no eos_token_id, neither in generation_config.json nor in config.json")
    return tuple(int(token) for token in (given if isinstance(given, list) else [given]))
