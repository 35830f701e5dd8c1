"""Owns the picture stage: one row of the manifest in, patches for the vision encoder out."""

import time

from batchcap.config import VisionConfig
from batchcap.core.records import EncodedPicture, ImageRow, Patches
from batchcap.images.colour import apply_profile
from batchcap.images.decode import decode
from batchcap.images.patchify import patchify, resize, target_size
from batchcap.inputs.encoded import digest, read_encoded
from batchcap.model.geometry import ImageSettings, VisionGeometry

__all__ = ["EncodedPicture", "load_patches", "patches_of", "read_picture"]


def read_picture(row: ImageRow) -> EncodedPicture:
    """Read one picture's bytes: `row.data`, else the file at `row.path`. Safe to call from several threads.

    Raises:
        RowError: there are none, or too many.
    """
    started = time.perf_counter()
    encoded = read_encoded(row)
    sha256 = digest(encoded)
    return EncodedPicture(row.index, encoded, sha256, (time.perf_counter() - started) * 1000)


def load_patches(row: ImageRow, geometry: VisionGeometry, settings: ImageSettings, config: VisionConfig) -> Patches:
    """Read one picture and make patches of it; see `read_picture` and `patches_of`."""
    return patches_of(read_picture(row), geometry, settings, config)


def patches_of(
    given: EncodedPicture, geometry: VisionGeometry, settings: ImageSettings, config: VisionConfig
) -> Patches:
    """Decode, turn upright, resize and cut one picture. Safe to call from several threads.

    Args:
        given: the picture.
        geometry: patch and merge size.
        settings: the checkpoint's area bounds, mean and deviation.
        config: budget of visual tokens and pixel limit.

    Returns:
        The picture's patches, [P, C·t·p·p] float32, at most `config.max_visual_tokens` · merge² of them.

    Raises:
        RowError: whatever is wrong with this picture; the message says what.
    """
    started = time.perf_counter()
    picture = decode(given.encoded, config.max_image_pixels)
    size = target_size(picture.pixels.size, geometry, settings, config.max_visual_tokens)
    pixels = apply_profile(resize(picture.pixels, size), picture.profile)
    values, grid = patchify(pixels, geometry, settings)
    width, height = picture.pixels.size
    return Patches(
        index=given.index,
        values=values,
        grid=grid,
        width=width,
        height=height,
        sha256=given.sha256,
        read_ms=given.read_ms + (time.perf_counter() - started) * 1000,
    )
