"""With an fp32 bundle the whole way from an image to its greedy caption is transformers' way, token for token."""

from pathlib import Path

import numpy as np
import pytest

from batchcap.core.records import Features
from batchcap.model.bundle import Bundle
from tests.export.pipeline import captions, encoded_image, features_of, reference

# Pixels across and down: thumbnails that grow, everyday sizes, large ones that shrink, both directions of every aspect
# up to nearly 1 : 120, and sides that are no multiples of anything.
SIZES = [
    *((16, 16), (31, 33), (64, 64), (97, 61), (320, 240), (240, 320), (333, 217), (512, 512)),
    *((1920, 1080), (1080, 1920), (2003, 1499), (800, 100), (100, 800), (1201, 41), (41, 1201)),
    *((3000, 30), (30, 3000), (2900, 25), (7, 640), (1023, 1025)),
]


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return [encoded_image(size, seed) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def features(images: list[bytes], tiny_bundle_fp32: Bundle) -> list[Features]:
    return features_of(tiny_bundle_fp32, images)


def test_captions_of_any_size_and_aspect(
    images: list[bytes], features: list[Features], tiny_checkpoint: Path, tiny_bundle_fp32: Bundle
) -> None:
    found = captions(tiny_bundle_fp32, features)
    expected = reference(tiny_checkpoint, tiny_bundle_fp32, images)
    assert {SIZES[index]: found[index] for index in found} == {SIZES[index]: expected[index] for index in expected}
    assert len(set(expected.values())) > len(SIZES) // 2, "the images must matter, or this test can't fail"


def test_the_images_reach_every_kind_of_grid(features: list[Features]) -> None:
    grids = [one.grid for one in features]
    assert len(set(grids)) > len(SIZES) // 2
    assert {1} < {min(grid) for grid in grids}
    assert any(across > 60 for _down, across in grids)
    assert any(down > 60 for down, _across in grids)
    assert all(np.abs(one.deepstack).max() > 0 for one in features)


def test_deepstack_decides_captions(features: list[Features], tiny_bundle_fp32: Bundle) -> None:
    levels = len(tiny_bundle_fp32.geometry.vision.deepstack_levels)
    complete = captions(tiny_bundle_fp32, features)
    for level in range(levels):
        lost = []
        for one in features:
            deepstack = one.deepstack.copy()
            deepstack[level] = 0
            sizes = (one.width, one.height, one.sha256, one.read_ms, one.vision_ms)
            lost.append(Features(one.index, one.embeds, deepstack, one.grid, *sizes))
        assert captions(tiny_bundle_fp32, lost) != complete
