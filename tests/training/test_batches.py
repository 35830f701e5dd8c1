"""The training batches: the same for a seed and a step, of grids the image processor makes."""

import multiprocessing
import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from batchcap.demo.scenes import COLOURS
from batchcap.export.demo import demo_checkpoint
from training.batches import GREYS, TOKEN_PX, batches, grids, make_batch, random_size, token_grid
from training.fast_model import patchify

pytestmark = pytest.mark.slow

# The processor multiplies in another order.
PATCH_TOLERANCE = 1e-6


def test_a_batch_is_decided_by_seed_and_step() -> None:
    first, again = make_batch(3, 11, 16), make_batch(3, 11, 16)
    assert np.array_equal(first.pixels, again.pixels)
    assert (first.captions, first.prompts) == (again.captions, again.prompts)
    assert make_batch(3, 12, 16).captions != first.captions
    assert make_batch(4, 11, 16).captions != first.captions


def test_training_sees_the_grids_the_processor_makes() -> None:
    processor = AutoImageProcessor.from_pretrained(demo_checkpoint())
    rng = random.Random(1)
    for _ in range(200):
        size = random_size(rng)
        made = processor(images=[Image.new("RGB", size)], return_tensors="pt")["image_grid_thw"][0].tolist()
        assert made == [1, *(2 * side for side in token_grid(*size))]
        assert token_grid(*size) in grids()


def test_batches_are_of_every_grid() -> None:
    shapes = {make_batch(0, step, 1).pixels.shape[1:3] for step in range(40)}  # the last one comes at 38
    assert shapes == {(down * TOKEN_PX, across * TOKEN_PX) for down, across in grids()}


def test_the_background_process_draws_the_same_and_ends() -> None:
    drawn = batches(2, 5, 1)
    for step in (5, 6):
        assert next(drawn).captions == make_batch(2, step, 1).captions
    drawn.close()
    assert not multiprocessing.active_children()


def test_only_captions_without_colours_lose_them() -> None:
    made = [make_batch(1, step, 16) for step in range(12)]
    grey = [
        caption
        for batch in made
        for pixels, caption in zip(batch.pixels, batch.captions, strict=True)
        if (pixels == pixels[..., :1]).all()
    ]
    assert grey
    assert not [caption for caption in grey if any(colour in caption for colour in set(COLOURS) - GREYS)]


def test_patches_are_those_of_the_processor() -> None:
    pixels = make_batch(0, 0, 16).pixels[:2]
    processor = AutoImageProcessor.from_pretrained(demo_checkpoint())
    height, width = pixels.shape[1:3]
    # The least and the largest area are this one's: the processor leaves the size alone.
    same_size = {"shortest_edge": height * width, "longest_edge": height * width}
    theirs = processor(images=[Image.fromarray(each) for each in pixels], size=same_size, return_tensors="pt")
    ours = patchify(torch.from_numpy(pixels)).reshape(theirs["pixel_values"].shape)
    assert (ours - theirs["pixel_values"]).abs().max() <= PATCH_TOLERANCE
