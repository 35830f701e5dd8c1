"""Owns the way from an RGB image to the patches the vision tower takes, equal to transformers' image processor."""

import math

import numpy as np
from PIL import Image

from batchcap.core.errors import ErrorKind, RowError
from batchcap.core.records import Float32Array
from batchcap.model.geometry import ImageSettings, VisionGeometry

MAX_ASPECT_RATIO = 200
RESCALE = 1 / 255


def target_size(
    size: tuple[int, int], geometry: VisionGeometry, settings: ImageSettings, max_visual_tokens: int
) -> tuple[int, int]:
    """Pixels across and down to resize an image to.

    `smart_resize` of `Qwen2VLImageProcessorPil` in transformers, with the area bounds of the checkpoint and of the
    budget. Where that would pass the budget (very long images, very small budgets) the longer side gives way.

    Args:
        size: pixels across and down.
        geometry: gives the side of the square a visual token covers.
        settings: area bounds of the checkpoint.
        max_visual_tokens: the budget.

    Raises:
        RowError: BAD_SHAPE, one side is more than 200 times the other.
    """
    width, height = size
    if max(size) > MAX_ASPECT_RATIO * min(size):
        message = f"{width} x {height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other"
        raise RowError(ErrorKind.BAD_SHAPE, message)
    side = geometry.token_side_px
    max_area = min(settings.max_area_px, max_visual_tokens * side**2)
    min_area = max(1, min(settings.min_area_px, max_area))
    down, across = _smart_resize(height, width, side, (min_area, max_area))
    budget = max(1, max_area // side**2)
    if down * across > budget:
        down, across = (min(down, budget // across), across) if down > across else (down, budget // down)
    return across * side, down * side


def _smart_resize(height: int, width: int, side: int, area: tuple[int, int]) -> tuple[int, int]:
    """Visual tokens down and across; the same float arithmetic as transformers, in the same order."""
    min_area, max_area = area
    down, across = round(height / side), round(width / side)
    if down * across * side**2 > max_area:
        shrink = math.sqrt((height * width) / max_area)
        return max(1, math.floor(height / shrink / side)), max(1, math.floor(width / shrink / side))
    if down * across * side**2 < min_area:
        grow = math.sqrt(min_area / (height * width))
        return math.ceil(height * grow / side), math.ceil(width * grow / side)
    return down, across


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bicubic, on 8-bit values: the processor's resampling."""
    return image.resize(size, Image.Resampling.BICUBIC)


def patchify(
    image: Image.Image, geometry: VisionGeometry, settings: ImageSettings
) -> tuple[Float32Array, tuple[int, int]]:
    """Normalise an RGB image and cut it into patches.

    Args:
        image: sides are multiples of patch · merge.
        geometry: patch, merge and temporal patch size.
        settings: mean and deviation a channel.

    Returns:
        Patches [P, C·t·p·p] float32 in merge-block order, each pixel repeated for the t frames; and the grid.
    """
    patch, merge = geometry.patch_size, geometry.merge_size
    down, across = image.height // patch, image.width // patch
    # [rows of blocks, in block, in patch, columns of blocks, in block, in patch, C]
    pixels = np.asarray(image).reshape(down // merge, merge, patch, across // merge, merge, patch, 3)
    ordered = pixels.transpose(0, 3, 1, 4, 6, 2, 5)  # [block row, block column, m, m, C, p, p]
    shape = (*ordered.shape[:5], geometry.temporal_patch_size, patch, patch)
    values = np.empty(shape, np.float32)
    for channel, table in enumerate(_normalised_levels(settings)):
        values[:, :, :, :, channel] = table[ordered[:, :, :, :, channel, None]]
    return values.reshape(down * across, geometry.patch_values), (down, across)


def _normalised_levels(settings: ImageSettings) -> Float32Array:
    """What each of the 256 levels becomes, [C, 256]: the processor's rescale in float64, the rest in float32."""
    levels = (np.arange(256).astype(np.float64) * RESCALE).astype(np.float32)
    mean = np.array(settings.mean, np.float32)[:, None]
    std = np.array(settings.std, np.float32)[:, None]
    return (levels - mean) / std
