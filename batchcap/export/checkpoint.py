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
from batchcap.export.hub import fetch
from batchcap.export.inventory import chosen_tensors, with_true_head
from batchcap.export.prequantized import unpack_names
from batchcap.export.soundness import require_dense_qwen3_vl, require_model_folder, require_sound
from batchcap.export.tensors import StoredTensor, read_index, weight_files
from batchcap.geometry import Geometry, ImageSettings, TextGeometry, TokenIds, VisionGeometry

DEFAULT_HEAD_DIM = 128  # transformers, Qwen3VLTextConfig
# What reading a value of another type than expected, or one that is not there, raises.
_MISTYPED = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in Hugging Face layout, read but not loaded.

    Attributes:
        folder: where it is.
        name: what to call it in the bundle: no path of this machine.
        config: its config.json; `tie_word_embeddings` as the weights have it.
        geometry: the model's shape.
        tensors: every tensor of the model, by its canonical name.
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
    require_model_folder(folder)
    config = read_json(folder / "config.json")
    try:
        require_dense_qwen3_vl(config, checkpoint)
        stored = unpack_names(read_index(folder), config)
    except _MISTYPED as error:
        raise CheckpointError(f"{folder / 'config.json'} lacks or mistypes {error}") from None
    config = with_true_head(config, stored)
    images_path, images = _read_images(folder)
    try:
        geometry = _geometry(folder, config, _image_settings(images_path, images))
        require_sound(geometry, config, images)
        tensors = chosen_tensors(stored, geometry, config)
    except _MISTYPED as error:
        raise CheckpointError(f"{folder / 'config.json'} lacks or mistypes {error}") from None
    name = checkpoint if not Path(checkpoint).is_dir() else folder.resolve().name
    return Checkpoint(folder, name, config, geometry, tensors)


def _locate(checkpoint: str) -> Path:
    folder = Path(checkpoint)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise CheckpointError(f"{checkpoint} is a file: give the folder of the checkpoint, with its config.json")
    if folder.exists() or not _HUB_NAME.fullmatch(checkpoint):
        raise CheckpointError(f"there is no checkpoint folder at {checkpoint}")
    return fetch(checkpoint)


def read_json(path: Path) -> dict[str, Any]:
    """The object in one of a checkpoint's files.

    Raises:
        CheckpointError: it is missing, can't be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: {path.parent} is not a whole checkpoint") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"can't read {path}: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return content


def _read_images(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The image processor's settings and their file.

    transformers 5 saves them inside the processor's own settings, and looks there first.
    """
    path = folder / "processor_config.json"
    if path.exists():
        images = read_json(path).get("image_processor")
        if isinstance(images, dict):
            return path, images
    path = folder / "preprocessor_config.json"
    return path, read_json(path)


def _geometry(folder: Path, config: dict[str, Any], image: ImageSettings) -> Geometry:
    text, vision = config["text_config"], config["vision_config"]
    heads = int(text["num_attention_heads"])
    return Geometry(
        text=TextGeometry(
            layers=int(text["num_hidden_layers"]),
            hidden_size=int(text["hidden_size"]),
            heads=heads,
            kv_heads=int(text["num_key_value_heads"]),
            head_dim=int(text.get("head_dim", DEFAULT_HEAD_DIM) or text["hidden_size"] // heads),
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
        image=image,
        tokens=TokenIds(
            image_pad=int(config["image_token_id"]),
            vision_start=int(config["vision_start_token_id"]),
            vision_end=int(config["vision_end_token_id"]),
            stop=_stop_tokens(folder, text),
        ),
    )


def _image_settings(path: Path, images: dict[str, Any]) -> ImageSettings:
    """Areas in pixels, whatever the two sizes' names say; `min_pixels` and `max_pixels` of older files come first."""
    try:
        size = images.get("size") or {}
        smallest, largest = images.get("min_pixels"), images.get("max_pixels")
        mean, std = ([float(value) for value in images[key]] for key in ("image_mean", "image_std"))
        return ImageSettings(
            min_area_px=int(size["shortest_edge"] if smallest is None else smallest),
            max_area_px=int(size["longest_edge"] if largest is None else largest),
            mean=(mean[0], mean[1], mean[2]),
            std=(std[0], std[1], std[2]),
        )
    except (*_MISTYPED, IndexError) as error:
        raise CheckpointError(f"{path} lacks or mistypes {error}") from None


def _stop_tokens(folder: Path, text: dict[str, Any]) -> tuple[int, ...]:
    path = folder / "generation_config.json"
    given = read_json(path).get("eos_token_id") if path.exists() else None
    if given is None:
        given = text.get("eos_token_id")
    if given is None:
        raise CheckpointError(f"{folder} names no eos_token_id, neither in generation_config.json nor in config.json")
    return tuple(int(token) for token in (given if isinstance(given, list) else [given]))
