"""Owns the reading of a checkpoint: is it a dense Qwen3-VL, whole, and what is its shape."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchcap.core.errors import CheckpointError
from batchcap.export.checkpoint.configuration import (
    CONFIG_FILE,
    MISTYPED,
    normalised,
    read_images,
    stop_tokens,
)
from batchcap.export.checkpoint.inventory import chosen_tensors, with_true_head
from batchcap.export.checkpoint.kinds import HUB_NAME, require_exportable, require_model_folder
from batchcap.export.checkpoint.prequantized import unpack_names
from batchcap.export.checkpoint.requirements import require_sound
from batchcap.export.hub import fetch
from batchcap.model.bundle import sha256_of
from batchcap.model.geometry import Geometry, ImageSettings, TextGeometry, TokenIds, VisionGeometry
from batchcap.model.stored_json import read_json
from batchcap.model.tensors import StoredTensor, read_index, weight_files


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in Hugging Face layout, read but not loaded.

    Attributes:
        folder: where it is.
        name: what to call it in the bundle: no path of this machine.
        config: its config.json, `normalised`; `tie_word_embeddings` as the weights have it.
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
        return weights_sha256(self.folder)


def weights_sha256(folder: Path) -> str:
    """One digest over all weight files of a checkpoint.

    Raises:
        CheckpointError: one is missing.
    """
    digest = hashlib.sha256()
    for path in weight_files(folder):
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
    path = folder / CONFIG_FILE
    given = read_json(path)
    try:
        require_exportable(given, checkpoint)
        stored = unpack_names(read_index(folder), given)
        config = with_true_head(normalised(given, path), given, stored)
        images_path, images = read_images(folder)
        image = _image_settings(images_path, images)
        geometry = _geometry(config, image, stop_tokens(folder, given))
        require_sound(geometry, config, images)
        tensors = chosen_tensors(stored, geometry, config, folder)
    except MISTYPED as error:
        raise CheckpointError(f"{path} has a missing or invalid setting: {error}") from None
    name = checkpoint if not Path(checkpoint).is_dir() else folder.resolve().name
    return Checkpoint(folder, name, config, geometry, tensors)


def _locate(checkpoint: str) -> Path:
    folder = Path(checkpoint)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise CheckpointError(f"{checkpoint} is a file: give the folder of the checkpoint, with its config.json")
    if folder.exists() or not HUB_NAME.fullmatch(checkpoint):
        raise CheckpointError(f"there is no checkpoint folder at {checkpoint}")
    return fetch(checkpoint)


def _geometry(config: dict[str, Any], image: ImageSettings, stop: tuple[int, ...]) -> Geometry:
    text, vision = config["text_config"], config["vision_config"]
    return Geometry(
        text=TextGeometry(
            layers=int(text["num_hidden_layers"]),
            hidden_size=int(text["hidden_size"]),
            heads=int(text["num_attention_heads"]),
            kv_heads=int(text["num_key_value_heads"]),
            head_dim=int(text["head_dim"]),
            vocab_size=int(text["vocab_size"]),
        ),
        vision=VisionGeometry(
            depth=int(vision["depth"]),
            hidden_size=int(vision["hidden_size"]),
            intermediate_size=int(vision["intermediate_size"]),
            heads=int(vision["num_heads"]),
            out_hidden_size=int(vision["out_hidden_size"]),
            in_channels=int(vision["in_channels"]),
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
            stop=stop,
        ),
    )


def _image_settings(path: Path, images: dict[str, Any]) -> ImageSettings:
    """Areas in pixels, whatever the two sizes' names say; `min_pixels` and `max_pixels` of older files come first."""
    try:
        size = images["size"]
        smallest, largest = images.get("min_pixels"), images.get("max_pixels")
        mean, std = ([float(value) for value in images[key]] for key in ("image_mean", "image_std"))
        return ImageSettings(
            min_area_px=int(size["shortest_edge"] if smallest is None else smallest),
            max_area_px=int(size["longest_edge"] if largest is None else largest),
            mean=(mean[0], mean[1], mean[2]),
            std=(std[0], std[1], std[2]),
        )
    except (*MISTYPED, IndexError) as error:
        raise CheckpointError(f"{path} has a missing or invalid setting: {error}") from None
