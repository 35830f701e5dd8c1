"""Owns the verification of a bundle: the reference is asked, dropped, and the bundle asked the same."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from batchcap import __version__
from batchcap.config import VisionConfig
from batchcap.core.errors import RowError, UsageError
from batchcap.core.records import Features, Patches
from batchcap.export.advice import load_named_bundle
from batchcap.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from batchcap.export.checkpoint.prequantized import require_unquantized
from batchcap.export.checkpoint.scaling import read_scales
from batchcap.export.quality.images import load_patches
from batchcap.export.quality.metrics import relative_error
from batchcap.export.quality.quality import QualityTable
from batchcap.export.quality.reference import Continuation, Reference, ReferenceDtype
from batchcap.model.bundle import BUNDLE_FILE, Bundle, geometry_to_dict
from batchcap.model.prompt import PromptTemplate
from batchcap.verify.decoder_weights import pieces
from batchcap.verify.decoding import DecodingLimits, DecodingPlan, Image, check_captions, check_logits
from batchcap.verify.features import ENCODERS, EXACT, check_features, encode_images, runs_here
from batchcap.verify.images import chosen_rows
from batchcap.verify.options import VerifyOptions
from batchcap.verify.structure import Answers, Structure
from batchcap.verify.table import Report, Row
from batchcap.verify.weights import check_weights, decoder_tensors

log = logging.getLogger(__name__)

MAX_VISUAL_TOKENS = 256
# Of a prefill's logits, as a part of the largest, with the scales of activation-aware rounding folded in.
SCALING_TOLERANCE = {ReferenceDtype.FP32: 1e-4, ReferenceDtype.BF16: 0.2}
# By the bits of the decoder's weights. fp32 must be the reference's equal. What rounding costs depends on the
# checkpoint, and random weights amplify it most. Measured on tiny ones, 12 images, all algorithms and blocks: the
# mean divergence is 0.035 to 0.075 nats at 4 bits and below 0.001 at 8, the share of same tokens 0.56 to 0.72 and
# 0.94, of one image at least 0.06 and 0.81. So these bounds only find gross damage; faults of an export are found by
# the checks of weights and structure, which rounding does not blur. Captions part at the first near tie: how many are
# the same is only told.
_OF_8_BITS = DecodingLimits(error=0.2, divergence=0.01, same_top=0.5, same_captions=0.0)
LIMITS = {
    32: DecodingLimits(error=1e-3, divergence=1e-5, same_top=0.99, same_captions=1.0),
    8: _OF_8_BITS,
    7: _OF_8_BITS,  # of w8a8
    4: DecodingLimits(error=1.0, divergence=0.3, same_top=0.05, same_captions=0.0),
}


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the reference said with the checkpoint's own weights, and with the bundle's."""

    dtype: ReferenceDtype
    features: list[Features]
    continuations: list[Continuation]
    weights: list[Row]
    structure: Structure
    answers: Answers


def verify_bundle(folder: Path, checkpoint: str, options: VerifyOptions) -> Report:
    """Compare a bundle with the checkpoint it was made from.

    Args:
        folder: the bundle.
        checkpoint: folder in Hugging Face layout, or a name on the hub where there is a network.
        options: images and prompt.

    Raises:
        UsageError: bundle and checkpoint don't belong together, an image can't be read, or memory is short.
        BundleError: the bundle is missing or broken.
        CheckpointError: the checkpoint is missing or broken.
    """
    started_s = time.perf_counter()
    bundle = load_named_bundle(folder)
    description: dict[str, Any] = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))
    opened = open_checkpoint(checkpoint)
    require_unquantized(opened.tensors, "verify")
    require_pair(bundle, description["source"], opened)
    prompt = PromptTemplate.from_bundle(bundle, options.prompt)
    plan = _plan(bundle, prompt, options.steps)
    names, images = _load_images(bundle, plan, options)
    asked = _ask(bundle, opened, plan, images, description["precision"])
    rows = list(_check(bundle, plan, (names, images), asked, int(description["precision"]["bits"])))
    facts = {
        "bundle": f"{folder}, {bundle.precision}",
        "bundle_id": bundle.id,
        "checkpoint": opened.name,
        "reference": f"transformers, {asked.dtype}",
        "pictures": len(images),
        "steps": plan.steps,
        "batchcap": __version__,
        "elapsed_s": round(time.perf_counter() - started_s, 1),
        "picture_names": names,
    }
    return Report(facts, tuple(rows))


def write_json(report: Report | QualityTable, path: Path) -> None:
    """Write a report.

    Raises:
        UsageError: the file can't be written.
    """
    try:
        path.write_text(report.to_json() + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"can't write {path} ({error.strerror}): choose another --json") from None


def require_pair(bundle: Bundle, source: dict[str, Any], checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that the bundle was not made from.

    Raises:
        UsageError: geometry or weights are others.
    """
    ours, theirs = (geometry_to_dict(one.geometry) for one in (bundle, checkpoint))
    for part, values in ours.items():
        for name, value in values.items():
            if value != theirs[part][name]:
                raise UsageError(
                    f"{bundle.folder} was made from another checkpoint than {checkpoint.folder}: {part} {name} is "
                    f"{value} in the bundle and {theirs[part][name]} in the checkpoint. Name the "
                    f"checkpoint {source['name']!r}"
                )
    log.info("comparing the checkpoint's weights with those that the bundle was made from")
    if source["weights_sha256"] != checkpoint.weights_sha256():
        raise UsageError(
            f"{bundle.folder} was made from other weights than those in {checkpoint.folder} (their checksums differ): "
            f"name the checkpoint {source['name']!r} it was made from, or export this one again"
        )


def _plan(bundle: Bundle, prompt: PromptTemplate, steps: int) -> DecodingPlan:
    """As many visual tokens and steps as wanted, or as the bundle's context has room for."""
    room = bundle.context - prompt.text_tokens
    steps = min(steps, room // 2)
    visual = min(MAX_VISUAL_TOKENS, room - steps)
    if visual < VisionConfig(max_visual_tokens=4).max_visual_tokens:
        raise UsageError(
            f"a context of {bundle.context} tokens has no room for an image beside this prompt: "
            "export with a larger --context"
        )
    return DecodingPlan(prompt, steps, visual)


def _load_images(bundle: Bundle, plan: DecodingPlan, options: VerifyOptions) -> tuple[list[str], list[Patches]]:
    """Names and patches; an image that can't be read is left out with a warning."""
    config = VisionConfig(max_visual_tokens=plan.max_visual_tokens)
    names, images = [], []
    for row in chosen_rows(options.images, options.limit):
        try:
            images.append(load_patches(row, bundle.geometry.vision, bundle.geometry.image, config))
            names.append(row.id)
        except RowError as error:
            log.warning("%s is skipped: %s", row.id, error.message)
    if not images:
        raise UsageError("none of the images can be read: name others with --images")
    return names, images


def _ask(
    bundle: Bundle,
    checkpoint: Checkpoint,
    plan: DecodingPlan,
    images: Sequence[Patches],
    precision: dict[str, Any],
) -> _Asked:
    """Everything that needs the reference; it is gone afterwards."""
    reference = Reference(checkpoint.folder)
    log.info("asking transformers (%s) about %d images, %d tokens each", reference.dtype, len(images), plan.steps)
    features, continuations = [], []
    for image in tqdm(images, desc="reference", unit="image", disable=None, leave=False):
        features.append(reference.features(image))
        continuations.append(reference.greedy(image, plan.prompt, plan.steps))
    log.info("comparing every weight with the checkpoint's")
    scaling = list(_check_scaling(bundle, checkpoint, reference, (images[0], plan.prompt, continuations[0])))
    weights = scaling + list(check_weights(bundle, checkpoint, precision, reference.replace_rows))
    scale = [
        float(np.sqrt(np.mean([np.square(one.deepstack[level]).mean() for one in features])))
        for level in range(len(bundle.geometry.vision.deepstack_levels))
    ]
    structure = Structure(bundle, scale)
    return _Asked(reference.dtype, features, continuations, weights, structure, structure.ask(reference))


def _check_scaling(
    bundle: Bundle,
    checkpoint: Checkpoint,
    reference: Reference,
    known: tuple[Patches, PromptTemplate, Continuation],
) -> Iterator[Row]:
    """Where the bundle was made with scales: folded into the unrounded weights, they must cancel out."""
    if not read_scales(bundle.folder):
        return
    for name, tensor in decoder_tensors(bundle, checkpoint).items():
        for start, stop in pieces(tensor.shape):
            reference.replace_rows(name, start, tensor.rows(start, stop))
    image, prompt, continuation = known
    error = relative_error(continuation.logits[0], reference.logits(image, prompt)[0])
    yield Row("decoder, scales that cancel out", error, SCALING_TOLERANCE[reference.dtype], unit="of the logits")


def _check(
    bundle: Bundle, plan: DecodingPlan, named: tuple[list[str], list[Patches]], asked: _Asked, bits: int
) -> Iterator[Row]:
    """The rows of the table, in its order."""
    names, images = named
    log.info("running the bundle's vision encoders")
    seen: list[Features] = []
    for encoder in filter(runs_here, ENCODERS):
        encoded = encode_images(bundle, encoder, images)
        yield from check_features(encoder, encoded, asked.features, names)
        if encoder is EXACT:
            seen = encoded.features
    yield from asked.weights
    log.info("running the bundle's decoder")
    yield from asked.structure.check(asked.answers, asked.dtype)
    compared = [Image(*parts) for parts in zip(names, seen, asked.continuations, strict=True)]
    yield from check_logits(bundle, plan, compared, LIMITS[bits])
    yield from check_captions(bundle, plan, compared, LIMITS[bits])
