"""The whole way from encoded images to greedy captions: batchcap's, and transformers'."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

from batchcap.config import GenerationConfig, VisionBackend, VisionConfig, VisionDtype
from batchcap.core.records import Features, ImageRow
from batchcap.core.sources import Bytes
from batchcap.decoder.requests import DecoderPlacement
from batchcap.export.quality.images import load_patches
from batchcap.model.bundle import Bundle
from batchcap.model.prompt import PromptTemplate
from batchcap.vision.backend import load_encoder
from tests.decoder.asking import AskingDecoder

PROMPT = "Describe this image."
MAX_VISUAL_TOKENS = 128
NEW_TOKENS = 24
IMAGES_A_PASS = 3
SLOTS = 4  # several captions a step, slots used again


def encoded_image(size: tuple[int, int], seed: int) -> bytes:
    """An image with coarse shapes, which survive the resize, and noise; without loss, so both decoders agree."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (3, 3, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = random.integers(-12, 13, (coarse.height, coarse.width, 3))
    image = Image.fromarray(np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def features_of(bundle: Bundle, images: list[bytes], backend: VisionBackend = VisionBackend.TORCH) -> list[Features]:
    """What the bundle's encoder sees in fp32, several images a pass."""
    config = VisionConfig(max_visual_tokens=MAX_VISUAL_TOKENS, dtype=VisionDtype.FP32, backend=backend)
    encoder = load_encoder(bundle, config, threads=1)
    geometry = bundle.geometry
    rows = [ImageRow(index, str(index), "memory", index, Bytes(data)) for index, data in enumerate(images)]
    patches = [load_patches(row, geometry.vision, geometry.image, config) for row in rows]
    batches = [patches[start : start + IMAGES_A_PASS] for start in range(0, len(patches), IMAGES_A_PASS)]
    return [one for batch in batches for one in encoder.encode(batch)]


def captions(bundle: Bundle, features: list[Features]) -> dict[int, tuple[int, ...]]:
    """The bundle's greedy captions."""
    generation = GenerationConfig(prompt=PROMPT, max_new_tokens=NEW_TOKENS, loop_stop=False)
    prompt = PromptTemplate.from_bundle(bundle, PROMPT)
    decoder = AskingDecoder(bundle, [prompt], generation, DecoderPlacement(SLOTS, 1, MAX_VISUAL_TOKENS))
    waiting, done = list(features), {}
    while waiting or decoder.active:
        while waiting and decoder.free_slots:
            decoder.add_request(waiting[0], str(waiting.pop(0).index))
        done |= {caption.index: caption.token_ids for caption in decoder.step()}
    return done


@torch.no_grad()
def reference(checkpoint: Path, bundle: Bundle, images: list[bytes]) -> dict[int, tuple[int, ...]]:
    """What transformers makes of the encoded images, one at a time."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    settings, vision = bundle.geometry.image, bundle.geometry.vision
    area = {"shortest_edge": settings.min_area_px, "longest_edge": MAX_VISUAL_TOKENS * vision.token_side_px**2}
    processor = Qwen2VLImageProcessorPil.from_pretrained(checkpoint, size=area)
    prompt = PromptTemplate.from_bundle(bundle, PROMPT)
    pad, stop = bundle.geometry.tokens.image_pad, bundle.geometry.tokens.stop
    found = {}
    for index, encoded in enumerate(images):
        inputs = processor(Image.open(io.BytesIO(encoded)), return_tensors="pt")
        visual = int(inputs["image_grid_thw"].prod()) // vision.merge_size**2
        ids = torch.tensor([[*prompt.prefix_ids, *[pad] * visual, *prompt.suffix_ids]])
        image = (ids == pad).int()
        new = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=image,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            **inputs,
        )[0, ids.shape[1] :].tolist()
        ends = [place for place, token in enumerate(new) if token in stop]
        found[index] = tuple(new[: ends[0]] if ends else new)
    return found
