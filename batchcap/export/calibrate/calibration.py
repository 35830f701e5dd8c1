"""Owns the calibration of activation-aware rounding: images become prompts with answers, prompts become scales."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from batchcap.config import VisionConfig, VisionDtype
from batchcap.core.machine import available_cores
from batchcap.core.records import Patches
from batchcap.export.calibrate.awq import find_scales
from batchcap.export.checkpoint.checkpoint import Checkpoint
from batchcap.export.checkpoint.options import ExportOptions
from batchcap.export.checkpoint.scaling import Scales
from batchcap.export.graph.decoder import GRAPH_FILE, Drawing, fill_decoder
from batchcap.export.quality.images import ImageChoice, fitted, images_sha256, load_images
from batchcap.export.quality.rollout import ImagePrompt, Rollout
from batchcap.model.bundle import Bundle
from batchcap.model.prompt import PromptTemplate
from batchcap.vision.torch_encoder import VisionEncoder

log = logging.getLogger(__name__)

ANSWER_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was found, and what `bundle.json` says of it."""

    scales: Scales
    facts: dict[str, Any]


def calibrate(
    unfinished: Bundle, checkpoint: Checkpoint, drawing: Drawing, options: ExportOptions, choice: ImageChoice
) -> Calibration:
    """Find the scales for a checkpoint by images.

    The answers are those of a decoder rounded with the same options and no scales: a draft that takes seconds where the
    checkpoint itself would take minutes, and whose few other words do not matter here.

    Args:
        unfinished: a bundle that lacks its decoder.
        checkpoint: the model.
        drawing: its decoder's graph.
        options: how it will be rounded.
        choice: images and prompt.

    Raises:
        UsageError: no image can be read, or they do not fit into the bundle's context.
    """
    choice = fitted(choice, unfinished, ANSWER_TOKENS)
    images = load_images(choice, checkpoint.geometry, unfinished.folder)
    log.info("calibrating on %d images", len(images))
    prompts = image_prompts(unfinished, images, choice.prompt)
    answers = _draft_answers(unfinished, checkpoint, drawing, options, prompts)
    answered = [*zip(prompts, answers, strict=True)]
    return calibrate_on(unfinished, checkpoint, options, answered, images_sha256(choice, images))


def _draft_answers(
    unfinished: Bundle,
    checkpoint: Checkpoint,
    drawing: Drawing,
    options: ExportOptions,
    prompts: Sequence[ImagePrompt],
) -> list[tuple[int, ...]]:
    """What a decoder without scales answers; it is gone from memory and disk afterwards."""
    with tempfile.TemporaryDirectory(prefix="draft-", dir=unfinished.folder) as folder:
        draft = Path(folder) / "decoder"
        fill_decoder(drawing, checkpoint.tensors, options, draft)
        rollout = Rollout(draft / GRAPH_FILE, checkpoint.geometry, unfinished.embeddings(), available_cores())
        return rollout.greedy(prompts, ANSWER_TOKENS)


def calibrate_on(
    unfinished: Bundle,
    checkpoint: Checkpoint,
    options: ExportOptions,
    answered: Sequence[tuple[ImagePrompt, tuple[int, ...]]],
    inputs_sha256: str,
) -> Calibration:
    """Find the scales for a checkpoint by prompts and answers to them.

    Args:
        unfinished: a bundle that lacks its decoder.
        checkpoint: the model.
        options: how its matrices will be rounded.
        answered: prompts, each with the tokens after it.
        inputs_sha256: digest of the images and what is asked about them.
    """
    torch.set_num_threads(available_cores())
    table = unfinished.embeddings()
    scales = find_scales(checkpoint, [prompt.continued(answer, table) for prompt, answer in answered], options)
    return Calibration(scales, {"pictures": len(answered), "inputs_sha256": inputs_sha256, "scaled": len(scales)})


def image_prompts(unfinished: Bundle, images: Sequence[Patches], text: str) -> list[ImagePrompt]:
    """Prompts about images, seen by the checkpoint's vision encoder in float32.

    Raises:
        UsageError: the prompt can't be used.
    """
    encoder = VisionEncoder(unfinished, VisionConfig(dtype=VisionDtype.FP32), available_cores())
    prompt = PromptTemplate.from_bundle(unfinished, text)
    table = unfinished.embeddings()
    return [ImagePrompt.of(encoder.encode([image])[0], prompt, table) for image in images]
