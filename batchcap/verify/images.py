"""Owns the images that a bundle is verified with: the user's, or generated ones of all shapes an image can have."""

import io
import os
import random
from pathlib import Path

import numpy as np
from PIL import Image

from batchcap.core.records import ImageRow
from batchcap.core.sources import Bytes
from batchcap.demo.scenes import compose, draw
from batchcap.export.quality.images import ImageChoice, input_rows

# Pixels across and down: a thumbnail that grows, everyday sizes, large ones that shrink, both directions of extreme
# aspects, and sides that are no multiples of anything. The first kind shows drawn things, as the demo model knows them.
SCENES = ((320, 240), (240, 320), (448, 448), (640, 200))
SHAPES = ((31, 33), (97, 61), (1023, 1025), (1920, 1080), (1201, 41), (30, 2000), (7, 320), (160, 900))
_SEED = 1 << 38  # no scene that the demo model was trained or is evaluated on
_NOISE = 12


def chosen_rows(images: tuple[str, ...], limit: int) -> list[ImageRow]:
    """The images of the inputs, at most `limit` of them and evenly spread; without inputs, the generated ones.

    Raises:
        UsageError: an input does not exist or has no image.
    """
    if not images:
        return generated_rows()
    return list(input_rows(ImageChoice(images, limit), Path(os.devnull)))


def generated_rows() -> list[ImageRow]:
    """Images without loss, the same ones each time."""
    images = {f"scene {width} x {height}": _scene(width, height) for width, height in SCENES}
    images |= {f"colours {width} x {height}": _colours(width, height) for width, height in SHAPES}
    return [
        ImageRow(index, name, "generated", index, Bytes(_encoded(image)))
        for index, (name, image) in enumerate(images.items())
    ]


def _scene(width: int, height: int) -> Image.Image:
    """A few drawn things on a background."""
    chance = random.Random(_SEED + width)  # noqa: S311 - it draws, it keeps no secret
    return draw(compose(chance, width / height), chance, width, height)


def _colours(width: int, height: int) -> Image.Image:
    """Coarse shapes, which survive the resize, and noise."""
    chance = np.random.default_rng(width * height)
    coarse = Image.fromarray(chance.integers(0, 256, (3, 3, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noise = chance.integers(-_NOISE, _NOISE + 1, smooth.shape)
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
