"""Patches and sizes against transformers' own image processor, bit for bit."""

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from batchcap.config import VisionConfig
from batchcap.core.errors import ErrorKind, RowError
from batchcap.core.records import Float32Array
from batchcap.export.quality.images import load_patches
from batchcap.images.patchify import patchify, target_size
from batchcap.model.geometry import ImageSettings
from tests.images.samples import GEOMETRY, SETTINGS, encode, load, noise, row

SIDE = GEOMETRY.token_side_px
SIZES = [
    (1, 1), (3, 500), (500, 3), (2, 400), (31, 33), (32, 32), (33, 31), (640, 480), (481, 641), (1023, 77),
    (77, 1023), (1000, 1000), (17, 3000), (256, 256), (255, 257), (2000, 1500),
]  # fmt: skip


def processor(min_area: int, max_area: int, mean: list[float], std: list[float]) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": min_area, "longest_edge": max_area},
        patch_size=16,
        temporal_patch_size=2,
        merge_size=2,
        image_mean=mean,
        image_std=std,
    )


def reference(image: Image.Image, max_visual_tokens: int) -> tuple[Float32Array, tuple[int, ...]]:
    max_area = max_visual_tokens * SIDE**2
    bounds = min(SETTINGS.min_area_px, max_area), max_area
    found = processor(*bounds, list(SETTINGS.mean), list(SETTINGS.std))(image, return_tensors="np")
    return found["pixel_values"], tuple(int(n) for n in found["image_grid_thw"][0, 1:])


@pytest.mark.parametrize("tokens", [64, 256, 1000])
@pytest.mark.parametrize("size", SIZES)
def test_patches_equal_transformers_bit_for_bit(size: tuple[int, int], tokens: int) -> None:
    image = noise(*size)
    values, grid = reference(image, tokens)
    ours = load(encode(image), max_visual_tokens=tokens)
    assert ours.grid[0] * ours.grid[1] <= tokens * 4
    if grid[0] * grid[1] > tokens * 4:  # transformers passes the budget here; we may not
        return
    assert ours.grid == grid
    assert ours.values.dtype == np.float32
    assert np.array_equal(ours.values, values)


@pytest.mark.parametrize("size", [(640, 480), (77, 1023), (31, 33)])
@pytest.mark.parametrize(("patch", "frames", "merge"), [(14, 2, 2), (8, 3, 3), (16, 1, 1), (7, 4, 5)])
def test_other_patches_equal_transformers_bit_for_bit(
    size: tuple[int, int], patch: int, frames: int, merge: int
) -> None:
    geometry = replace(GEOMETRY, patch_size=patch, temporal_patch_size=frames, merge_size=merge)
    bounds = replace(SETTINGS, min_area_px=4096, max_area_px=100_000)
    theirs = Qwen2VLImageProcessorPil(
        size={"shortest_edge": bounds.min_area_px, "longest_edge": bounds.max_area_px},
        patch_size=patch,
        temporal_patch_size=frames,
        merge_size=merge,
        image_mean=list(bounds.mean),
        image_std=list(bounds.std),
    )(noise(*size), return_tensors="np")
    ours = load_patches(row(encode(noise(*size))), geometry, bounds, VisionConfig(max_visual_tokens=4096))
    assert ours.grid == tuple(theirs["image_grid_thw"][0, 1:])
    assert np.array_equal(ours.values, theirs["pixel_values"])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_modes_are_converted_as_transformers_does(mode: str) -> None:
    image = noise(200, 150)
    if mode in {"RGBA", "LA"}:
        image.putalpha(noise(200, 150, seed=1).getchannel(0))
    image = image.convert(mode)
    data = encode(image, "TIFF" if mode == "CMYK" else "PNG")
    values, grid = reference(Image.open(io.BytesIO(data)), 256)
    ours = load(data)
    assert ours.grid == grid
    assert np.array_equal(ours.values, values)


def test_mean_and_deviation_of_the_checkpoint_are_used_in_float32() -> None:
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    image = noise(320, 256)
    found = processor(65536, 1 << 24, list(mean), list(std))(image, return_tensors="np")
    values, grid = patchify(image, GEOMETRY, ImageSettings(65536, 1 << 24, mean, std))
    assert grid == (16, 20)
    assert np.array_equal(values, found["pixel_values"])


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(4, 600))
def test_sizes_equal_transformers_within_the_budget(width: int, height: int, tokens: int) -> None:
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(RowError) as caught:
            target_size((width, height), GEOMETRY, SETTINGS, tokens)
        assert caught.value.kind is ErrorKind.BAD_SHAPE
        return
    across, down = target_size((width, height), GEOMETRY, SETTINGS, tokens)
    assert across % SIDE == 0
    assert down % SIDE == 0
    assert 1 <= (across // SIDE) * (down // SIDE) <= tokens
    max_area = tokens * SIDE**2
    theirs = smart_resize(height, width, SIDE, min(SETTINGS.min_area_px, max_area), max_area)
    if theirs[0] * theirs[1] <= max_area:
        assert (down, across) == theirs


def test_the_longest_image_keeps_to_the_smallest_budget() -> None:
    assert target_size((2000, 10), GEOMETRY, SETTINGS, 4) == (4 * SIDE, SIDE)
    assert target_size((10, 2000), GEOMETRY, SETTINGS, 4) == (SIDE, 4 * SIDE)


def test_the_checkpoints_own_largest_area_holds_below_the_budget() -> None:
    small = ImageSettings(1024, 10 * SIDE**2, SETTINGS.mean, SETTINGS.std)
    across, down = target_size((4000, 3000), GEOMETRY, small, 256)
    assert across * down <= 10 * SIDE**2
