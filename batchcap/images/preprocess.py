"""Owns the steps from an encoded image to patches: decode, colours, size, patches."""

import time

from batchcap.config import VisionConfig
from batchcap.core.records import EncodedImage, Patches
from batchcap.images.colour import apply_profile
from batchcap.images.decode import decode
from batchcap.images.patchify import patchify, resize, target_size
from batchcap.model.geometry import ImageSettings, VisionGeometry


def patches_of(given: EncodedImage, geometry: VisionGeometry, settings: ImageSettings, config: VisionConfig) -> Patches:
    """Decode, turn upright, resize and cut one image. Safe to call from several threads.

    Args:
        given: the image.
        geometry: patch and merge size.
        settings: the checkpoint's area bounds, mean and deviation.
        config: budget of visual tokens and pixel limit.

    Returns:
        The image's patches, [P, C·t·p·p] float32, at most `config.max_visual_tokens` · merge² of them.

    Raises:
        RowError: whatever is wrong with this image; the message says what.
    """
    started = time.perf_counter()
    image = decode(given.encoded, config.max_image_pixels)
    size = target_size(image.pixels.size, geometry, settings, config.max_visual_tokens)
    pixels = apply_profile(resize(image.pixels, size), image.profile)
    values, grid = patchify(pixels, geometry, settings)
    width, height = image.pixels.size
    return Patches(
        index=given.index,
        values=values,
        grid=grid,
        width=width,
        height=height,
        sha256=given.sha256,
        read_ms=given.read_ms + (time.perf_counter() - started) * 1000,
    )
