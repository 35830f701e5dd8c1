"""Owns the check that an image's caption is the same wherever it is made, on this CPU, with this model.

The same bits are asked for: of a row in batches of any size, of a prompt prefilled in parts, with the threads that one
decoder and several have, and of an image encoded alone and beside others.
"""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from batchcap.config import JobConfig
from batchcap.core.machine import available_cores
from batchcap.core.records import Features, Patches
from batchcap.decoder.invariance import a_split_shows, rows_stay_equal
from batchcap.decoder.load import open_decoder
from batchcap.decoder.packed_weights import PackedWeightsCache, probe
from batchcap.engines.cores import Threads
from batchcap.engines.vision_worker import lane_count
from batchcap.model.bundle import Bundle
from batchcap.model.geometry import VisionGeometry
from batchcap.vision.backend import load_encoder

log = logging.getLogger(__name__)

MIN_SLOTS = 32
MAX_DECODERS = 4
# Merge blocks down and across: odd shapes, so that images begin anywhere in a pass.
GRIDS = ((3, 5), (1, 7), (6, 4), (2, 2))
SEED = 1


@dataclass(frozen=True, slots=True)
class Determinism:
    """What was found: `facts` by stage, and `problems` where the promise does not hold."""

    facts: dict[str, str]
    problems: list[str]


def check_determinism(bundle: Bundle, config: JobConfig) -> Determinism:
    """Load the model as a job would, and look. Takes seconds, and the memory of a job with few slots.

    Args:
        bundle: the model.
        config: a job, everything decided.
    """
    log.info("checking that captions are the same in every batch")
    most = max(MIN_SLOTS, config.placement.slots)
    cores = available_cores()
    placements = [dataclasses.replace(config.placement, decoders=count) for count in range(1, MAX_DECODERS + 1)]
    threads = sorted({Threads.of(one, cores).decoder for one in (*placements, config.placement)})
    vision_threads = sorted({1, Threads.of(config.placement, cores).vision})
    tile, broken = _decoder(bundle, threads, most)
    vision_broken = _vision(bundle, config, vision_threads)
    facts = {
        "decoder": broken
        or f"equal in batches of 1 to {most}, {_of(threads)}; batches are padded to a multiple of {tile}",
        "vision": vision_broken or f"equal for images alone and together, {_of(vision_threads)}",
    }
    problems = [
        f"captions are not batch-invariant on this CPU: {found}. Use the same --slots, --decoders and threads in all "
        "runs of a job, and expect single words to differ"
        for found in (broken, vision_broken)
        if found
    ]
    return Determinism(facts, problems)


def _of(threads: Sequence[int]) -> str:
    counts = " and ".join(map(str, threads))
    return f"with {counts} thread{'' if threads == [1] else 's'}"


def _decoder(bundle: Bundle, threads: Sequence[int], most: int) -> tuple[int, str | None]:
    """The row tile, and what breaks the promise, if anything does."""
    kept, bits, tile = PackedWeightsCache.of(bundle), set[bytes](), 0
    for count in threads:
        opened = open_decoder(bundle, count, kept)
        session, tile = opened.session, opened.batch_multiple
        bits.add(probe(session, bundle.geometry))
        if not rows_stay_equal(session, bundle.geometry, tile, most):
            return tile, f"decoder rows differ with the size of their batch ({_of([count])})"
        if a_split_shows(session, bundle.geometry, tile):
            return tile, f"prompts differ when they are prefilled in parts ({_of([count])})"
        del session, opened  # before the next one takes as much memory
    return tile, None if len(bits) == 1 else f"the decoder differs with its number of threads ({_of(threads)})"


def _vision(bundle: Bundle, config: JobConfig, threads: Sequence[int]) -> str | None:
    """What breaks the promise in the vision encoder, if anything does."""
    images = [_image(bundle.geometry.vision, number, grid) for number, grid in enumerate(GRIDS)]
    seen = list[list[Features]]()
    for count in threads:
        lanes = lane_count(count)
        encoder = load_encoder(bundle, config.vision, count, lanes)
        seen.append(encoder.encode(images, lanes))
        alone = [encoder.encode([image])[0] for image in images]
        if not _equal(seen[-1], alone):
            return f"images differ when they are encoded beside others ({_of([count])})"
        del encoder
    return None if _equal(seen[0], seen[-1]) else f"images differ with the encoder's threads ({_of(threads)})"


def _image(geometry: VisionGeometry, number: int, grid: tuple[int, int]) -> Patches:
    down, across = (blocks * geometry.merge_size for blocks in grid)
    random = np.random.default_rng((SEED, number))
    values = random.uniform(-1, 1, (down * across, geometry.patch_values)).astype(np.float32)
    return Patches(number, values, (down, across), 1, 1, "", 0.0)


def _equal(one: list[Features], other: list[Features]) -> bool:
    return all(
        np.array_equal(first.embeds, second.embeds) and np.array_equal(first.deepstack, second.deepstack)
        for first, second in zip(one, other, strict=True)
    )
