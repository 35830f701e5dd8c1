"""Images the image tests share: a scene whose corners tell every orientation apart, and ways to store it."""

import io
from typing import Any

import numpy as np
from PIL import Image

from batchcap.config import VisionConfig
from batchcap.core.records import Float32Array, ImageRow, Patches
from batchcap.core.sources import Bytes, FileAt
from batchcap.export.quality.images import load_patches
from batchcap.model.geometry import ImageSettings, VisionGeometry

GEOMETRY = VisionGeometry(
    depth=2,
    hidden_size=32,
    intermediate_size=64,
    heads=2,
    out_hidden_size=48,
    in_channels=3,
    patch_size=16,
    temporal_patch_size=2,
    merge_size=2,
    deepstack_levels=(0,),
    position_side=8,
    hidden_act="gelu_pytorch_tanh",
)
SETTINGS = ImageSettings(min_area_px=65536, max_area_px=16777216, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Random colours."""
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8))


def scene(width: int = 96, height: int = 64) -> Image.Image:
    """Four quarters: red, green, blue, yellow; no two orientations look alike."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (220, 30, 30)
    pixels[: height // 2, width // 2 :] = (30, 200, 30)
    pixels[height // 2 :, : width // 2] = (30, 30, 220)
    pixels[height // 2 :, width // 2 :] = (220, 220, 30)
    return Image.fromarray(pixels)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def row(data: bytes | None = None, path: str | None = None) -> ImageRow:
    """A manifest row."""
    image = None if path is None else FileAt(path)
    return ImageRow(3, "picture", "source", 0, image if data is None else Bytes(data))


def load(data: bytes | None = None, path: str | None = None, **vision: Any) -> Patches:
    """Patches of an image at the tests' geometry."""
    return load_patches(row(data, path), GEOMETRY, SETTINGS, VisionConfig(**vision))


def average_colours(patches: Patches) -> Float32Array:
    """What the patches show, as mean 0 … 255 colours of the four quarters [2, 2, 3]."""
    down, across = patches.grid
    values = patches.values.reshape(down // 2, across // 2, 2, 2, 3, 2, 16, 16)[..., 0, :, :]
    pixels = values.transpose(0, 2, 5, 1, 3, 6, 4).reshape(down * 16, across * 16, 3)
    pixels = (pixels * 0.5 + 0.5) * 255
    half_down, half_across = down * 8, across * 8
    quarters = [
        [pixels[:half_down, :half_across], pixels[:half_down, half_across:]],
        [pixels[half_down:, :half_across], pixels[half_down:, half_across:]],
    ]
    return np.array([[quarter.mean((0, 1)) for quarter in line] for line in quarters])
