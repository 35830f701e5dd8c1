"""Owns the picture stage: one row of the manifest in, patches for the vision encoder out."""

import time

from batchcap.config import VisionConfig
from batchcap.geometry import ImageSettings, VisionGeometry
from batchcap.images.colour import apply_profile
from batchcap.images.decode import decode
from batchcap.images.patchify import patchify, resize, target_size
from batchcap.images.source import digest, read_encoded
from batchcap.records import ImageRow, Patches

__all__ = ["load_patches"]


def load_patches(row: ImageRow, geometry: VisionGeometry, settings: ImageSettings, config: VisionConfig) -> Patches:
    """Read, decode, turn upright, resize and cut one picture. Safe to call from several threads.

    Args:
        row: what to read: `data`, else the file at `path`.
        geometry: patch and merge size.
        settings: the checkpoint's area bounds, mean and deviation.
        config: budget of visual tokens and pixel limit.

    Returns:
        The picture's patches, [P, C·t·p·p] float32, at most `config.max_visual_tokens` · merge² of them.

    Raises:
        RowError: whatever is wrong with this picture; the message says what.
    """
    started = time.perf_counter()
    encoded = read_encoded(row)
    picture = decode(encoded, config.max_image_pixels)
    size = target_size(picture.pixels.size, geometry, settings, config.max_visual_tokens)
    pixels = apply_profile(resize(picture.pixels, size), picture.profile)
    values, grid = patchify(pixels, geometry, settings)
    width, height = picture.pixels.size
    return Patches(
        index=row.index,
        values=values,
        grid=grid,
        width=width,
        height=height,
        sha256=digest(encoded),
        read_ms=(time.perf_counter() - started) * 1000,
    )
