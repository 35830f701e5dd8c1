"""Owns how much memory an engine needs, and how many slots fit into what is free."""

import logging
from dataclasses import dataclass, replace

from batchcap.config import VisionDtype
from batchcap.core.machine import MIB, available_cores, available_memory_bytes
from batchcap.decoder.packed_weights import decoder_bytes, shares_weights
from batchcap.decoder.prompt_inputs import needs_shared_slot, slot_positions
from batchcap.decoder.slots import kv_bytes_per_slot
from batchcap.engines.config import EngineConfig
from batchcap.engines.cores import Threads
from batchcap.engines.decoder_worker import lane_count
from batchcap.model.geometry import feature_bytes
from batchcap.model.prompt import PromptTemplate
from batchcap.vision.dtype import resolve_dtype

log = logging.getLogger(__name__)

# Measured: the demo model, whose weights are nothing, takes 670 MiB in its three processes with PyTorch.
RUNTIME_BYTES = 700 * MIB
# Measured at the start of a 2B decoder that shares its weights: 96 MiB; the rest is for what is at work.
MORE_DECODER_BYTES = 150 * MIB
# A session keeps the weights packed for its kernels, 1.01 (W8A8) to 1.08 times (INT4 in blocks of 128) the files' size;
# while it packs them it holds up to 1.3 times.
WEIGHT_COPIES = 1.3
# Part of the free memory that is left to everything else.
SPARE_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What an engine takes, in bytes; an estimate to a tenth or two.

    Attributes:
        runtime: libraries and what is at work in all processes.
        vision: weights of the encoder.
        decoders: weights of all decoders, which share one copy where they can.
        queue: features that wait.
        slot: keys and values of one slot and the features of its image, in all decoders together.
        shared: keys and values of what an image's prompts have in common, one slot a lane in all decoders together.
    """

    runtime: int
    vision: int
    decoders: int
    queue: int
    slot: int
    shared: int = 0

    def total(self, slots: int) -> int:
        """With so many slots in each decoder."""
        return self.runtime + self.vision + self.decoders + self.queue + self.shared + slots * self.slot

    def slots_within(self, free_bytes: int, asked: int) -> int:
        """The most slots up to those asked for that fit; at least one."""
        room = int(free_bytes * (1 - SPARE_SHARE)) - self.total(0)
        return max(1, min(asked, room // self.slot))


def memory_need(config: EngineConfig) -> MemoryNeed:
    """What an engine takes.

    Raises:
        UsageError: prompt, image and caption together need more positions than the bundle has.
    """
    bundle, generation, placement, vision = config.bundle, config.generation, config.placement, config.vision
    prompts = PromptTemplate.all_from_bundle(bundle, generation.prompts)
    positions = max(slot_positions(bundle, one, generation.sampling, vision.max_visual_tokens) for one in prompts)
    weight_copies = 1 if shares_weights(bundle, placement.decoders) else placement.decoders
    kv_bytes = kv_bytes_per_slot(bundle.geometry.text, positions)
    lanes = lane_count(Threads.of(placement, available_cores()).decoder, placement.slots)
    features = feature_bytes(bundle.geometry, vision.max_visual_tokens)
    # The file is in 16 bits most often: half of what it takes in float32.
    widened = 2 if resolve_dtype(vision) is VisionDtype.FP32 else 1
    return MemoryNeed(
        runtime=RUNTIME_BYTES + (placement.decoders - 1) * MORE_DECODER_BYTES,
        vision=widened * bundle.vision_weights_path.stat().st_size,
        decoders=int(weight_copies * WEIGHT_COPIES * decoder_bytes(bundle)),
        queue=placement.queue_mib * MIB,
        slot=placement.decoders * (kv_bytes + features),
        shared=placement.decoders * lanes * kv_bytes if needs_shared_slot(prompts) else 0,
    )


def fitted_to_memory(config: EngineConfig) -> EngineConfig:
    """The configuration with as many slots as fit into the free memory; captions don't depend on it."""
    need, asked = memory_need(config), config.placement.slots
    free_bytes = available_memory_bytes()
    slots = need.slots_within(free_bytes, asked)
    if slots < asked:
        log.warning(
            "%d slots need about %d MiB and %d MiB are free: using %d. Fewer --decoders, --max-visual-tokens or "
            "--max-new-tokens leave room for more.",
            asked,
            need.total(asked) // MIB,
            free_bytes // MIB,
            slots,
        )
    return replace(config, placement=replace(config.placement, slots=slots))
