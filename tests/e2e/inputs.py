"""The inputs of the end-to-end jobs: images of many sizes and a Parquet file, with a few that can't be read."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

SEED = 11
MIN_SIDE, MAX_SIDE = 40, 260
BROKEN_EVERY = 41


def image(number: int) -> bytes:
    """An encoded image; every number gives another one, of another size and shape."""
    generator = np.random.default_rng((SEED, number))
    width, height = (int(side) for side in generator.integers(MIN_SIDE, MAX_SIDE, 2))
    image = Image.new("RGB", (width, height), tuple(int(value) for value in generator.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    for _shape in range(4):
        left, top = int(generator.integers(0, width)), int(generator.integers(0, height))
        right, bottom = (int(value) for value in generator.integers(10, 200, 2))
        colour = tuple(int(value) for value in generator.integers(0, 256, 3))
        draw.ellipse((left, top, left + right, top + bottom), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if number % 2 else "JPEG")
    data = buffer.getvalue()
    return data[: len(data) // 2] if number % BROKEN_EVERY == 7 else data


def write_images(folder: Path, count: int) -> Path:
    """A folder of images, some of them in folders below it; a few are cut off, one is no image at all."""
    for number in range(count):
        path = folder / f"{number % 3}" / f"{number:04d}.{'png' if number % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number))
    (folder / "text.png").write_text("no image")
    return folder


def write_parquet(path: Path, count: int) -> Path:
    """A Parquet file of several row groups: image bytes and a label; a few cells are null."""
    numbers = range(10_000, 10_000 + count)
    images = [None if number % BROKEN_EVERY == 8 else image(number) for number in numbers]
    table = pa.table({"image": pa.array(images, pa.binary()), "label": [f"label {number}" for number in numbers]})
    pq.write_table(table, path, row_group_size=25)
    return path
