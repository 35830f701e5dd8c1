"""With an fp32 bundle the whole way from a picture to its greedy caption is transformers' way, token for token."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

from batchcap.bundle import Bundle
from batchcap.config import GenerationConfig, VisionConfig, VisionDtype
from batchcap.decoder.scheduler import Decoder, DecoderPlacement
from batchcap.images import load_patches
from batchcap.prompt import PromptTemplate
from batchcap.records import Features, ImageRow
from batchcap.vision.encoder import VisionEncoder

MAX_VISUAL_TOKENS = 128
NEW_TOKENS = 24
PICTURES_A_PASS = 3
SLOTS = 4  # several captions a step, slots used again
# Pixels across and down: thumbnails that grow, everyday sizes, large ones that shrink, both directions of every aspect
# up to nearly 1 : 120, and sides that are no multiples of anything.
SIZES = [
    *((16, 16), (31, 33), (64, 64), (97, 61), (320, 240), (240, 320), (333, 217), (512, 512)),
    *((1920, 1080), (1080, 1920), (2003, 1499), (800, 100), (100, 800), (1201, 41), (41, 1201)),
    *((3000, 30), (30, 3000), (2900, 25), (7, 640), (1023, 1025)),
]


def encoded_picture(index: int) -> bytes:
    """A picture with coarse shapes, which survive the resize, and noise; without loss, so both decoders agree."""
    random = np.random.default_rng(index)
    coarse = Image.fromarray(random.integers(0, 256, (3, 3, 3), np.uint8)).resize(
        SIZES[index], Image.Resampling.BICUBIC
    )
    noise = random.integers(-12, 13, (coarse.height, coarse.width, 3))
    picture = Image.fromarray(np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [encoded_picture(index) for index in range(len(SIZES))]


@pytest.fixture(scope="module")
def features(pictures: list[bytes], tiny_bundle_fp32: Bundle) -> list[Features]:
    config = VisionConfig(max_visual_tokens=MAX_VISUAL_TOKENS, dtype=VisionDtype.FP32)
    encoder = VisionEncoder(tiny_bundle_fp32, config, threads=1)
    geometry = tiny_bundle_fp32.geometry
    rows = [ImageRow(index, str(index), "memory", index, data=data) for index, data in enumerate(pictures)]
    patches = [load_patches(row, geometry.vision, geometry.image, config) for row in rows]
    batches = [patches[start : start + PICTURES_A_PASS] for start in range(0, len(patches), PICTURES_A_PASS)]
    return [one for batch in batches for one in encoder.encode(batch)]


def captions(bundle: Bundle, features: list[Features]) -> dict[int, tuple[int, ...]]:
    generation = GenerationConfig(prompt="Describe this image.", max_new_tokens=NEW_TOKENS, loop_stop=False)
    prompt = PromptTemplate.from_bundle(bundle, generation.prompt)
    decoder = Decoder(bundle, prompt, generation, DecoderPlacement(SLOTS, 1, MAX_VISUAL_TOKENS))
    waiting, done = list(features), {}
    while waiting or decoder.active:
        while waiting and decoder.free_slots:
            decoder.admit(waiting[0], str(waiting.pop(0).index))
        done |= {caption.index: caption.token_ids for caption in decoder.step()}
    return done


@torch.no_grad()
def reference(checkpoint: Path, bundle: Bundle, pictures: list[bytes]) -> dict[int, tuple[int, ...]]:
    """What transformers makes of the encoded pictures, one at a time."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    settings, vision = bundle.geometry.image, bundle.geometry.vision
    area = {"shortest_edge": settings.min_area_px, "longest_edge": MAX_VISUAL_TOKENS * vision.token_side_px**2}
    processor = Qwen2VLImageProcessorPil.from_pretrained(checkpoint, size=area)
    prompt = PromptTemplate.from_bundle(bundle, "Describe this image.")
    pad, stop = bundle.geometry.tokens.image_pad, bundle.geometry.tokens.stop
    found = {}
    for index, encoded in enumerate(pictures):
        inputs = processor(Image.open(io.BytesIO(encoded)), return_tensors="pt")
        visual = int(inputs["image_grid_thw"].prod()) // vision.merge_size**2
        ids = torch.tensor([[*prompt.prefix_ids, *[pad] * visual, *prompt.suffix_ids]])
        picture = (ids == pad).int()
        new = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=picture,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            **inputs,
        )[0, ids.shape[1] :].tolist()
        ends = [place for place, token in enumerate(new) if token in stop]
        found[index] = tuple(new[: ends[0]] if ends else new)
    return found


def test_captions_of_any_size_and_aspect(
    pictures: list[bytes], features: list[Features], tiny_checkpoint: Path, tiny_bundle_fp32: Bundle
) -> None:
    found = captions(tiny_bundle_fp32, features)
    expected = reference(tiny_checkpoint, tiny_bundle_fp32, pictures)
    assert {SIZES[index]: found[index] for index in found} == {SIZES[index]: expected[index] for index in expected}
    assert len(set(expected.values())) > len(SIZES) // 2, "the pictures must matter, or this test can't fail"


def test_the_pictures_reach_every_kind_of_grid(features: list[Features]) -> None:
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
