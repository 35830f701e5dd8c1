"""Owns the training batches: scenes drawn by the seed of a step, in a process of their own."""

import multiprocessing
import random
from collections.abc import Generator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from queue import Full

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from batchcap.demo.scenes import compose, draw
from training.huggingface import MAX_AREA_PX, MIN_AREA_PX
from training.text import choose_prompt

TOKEN_PX = 32
MAX_ASPECT = 2.2
SIDES_PX = (96, 640)
JPEG_SHARE = 0.15
# Of the scenes whose caption holds without colours, this share loses them.
GREY_SHARE = 0.1
GRID_TRIES = 20_000
PARENT_CHECK_S = 5.0
GREYS = frozenset({"black", "gray", "white"})
TRAIN_SEED_SPACE = 1 << 40  # evaluation seeds are below, training seeds above


@dataclass(frozen=True, slots=True)
class Batch:
    """Scenes of one grid: pixels [B, height, width, 3] uint8, their prompts and true captions."""

    pixels: NDArray[np.uint8]
    prompts: list[str]
    captions: list[str]


def random_size(rng: random.Random) -> tuple[int, int]:
    """Width and height in pixels of an image: small to large, long to narrow."""
    aspect = MAX_ASPECT ** rng.uniform(-1, 1)
    shorter = rng.randint(SIDES_PX[0], round(SIDES_PX[1] / max(aspect, 1 / aspect)))
    return round(shorter * max(1.0, aspect)), round(shorter * max(1.0, 1 / aspect))


def token_grid(width: int, height: int) -> tuple[int, int]:
    """Visual tokens down and across that the image processor makes of an image."""
    down_px, across_px = smart_resize(height, width, TOKEN_PX, MIN_AREA_PX, MAX_AREA_PX)
    return down_px // TOKEN_PX, across_px // TOKEN_PX


@cache
def grids() -> tuple[tuple[int, int], ...]:
    """All grids that images of random size become."""
    rng = random.Random(0)
    return tuple(sorted({token_grid(*random_size(rng)) for _ in range(GRID_TRIES)}))


def _picture(rng: random.Random, grid: tuple[int, int]) -> tuple[Image.Image, str]:
    """A scene as the image processor hands it on: drawn at some size that becomes this grid, then resized."""
    size = random_size(rng)
    while token_grid(*size) != grid:
        size = random_size(rng)
    scene = compose(rng, size[0] / size[1])
    image = draw(scene, rng, *size)
    if GREYS.issuperset(scene.background.colours) and rng.random() < GREY_SHARE:
        image = image.convert("L").convert("RGB")
    if rng.random() < JPEG_SHARE:
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(60, 95))
        image = Image.open(buffer).convert("RGB")
    down, across = grid
    return image.resize((across * TOKEN_PX, down * TOKEN_PX), Image.Resampling.BICUBIC), scene.caption


def make_batch(seed: int, step: int, size: int) -> Batch:
    """The batch of a step: the same for the same seed and step."""
    rng = random.Random(TRAIN_SEED_SPACE + (seed << 32) + step)
    grid = rng.choice(grids())
    # Larger grids in smaller batches: every step has about the same work.
    size = max(16, round(size * 20 / (grid[0] * grid[1] + 4)))
    pictures = [_picture(rng, grid) for _ in range(size)]
    pixels = np.stack([np.asarray(image) for image, _caption in pictures])
    return Batch(pixels, [choose_prompt(rng) for _ in pictures], [caption for _image, caption in pictures])


def _produce(queue: "multiprocessing.Queue[Batch]", seed: int, first_step: int, size: int) -> None:
    parent = multiprocessing.parent_process()
    step = first_step
    batch = make_batch(seed, step, size)
    # A training that was killed can't say so: its drawing process would wait for ever.
    while parent is not None and parent.is_alive():
        try:
            queue.put(batch, timeout=PARENT_CHECK_S)
        except Full:
            continue
        step += 1
        batch = make_batch(seed, step, size)


def batches(seed: int, first_step: int, size: int) -> Generator[Batch, None, None]:
    """Batches from a step on, drawn ahead by a background process that ends when this is closed."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[Batch] = context.Queue(maxsize=8)
    process = context.Process(target=_produce, args=(queue, seed, first_step, size), daemon=True)
    process.start()
    try:
        while True:
            yield queue.get()
    finally:
        process.terminate()
        process.join()
