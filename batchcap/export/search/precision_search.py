"""Owns the choice of a decoder by measurement: the first of a ladder, fastest first, that stays near the checkpoint."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from batchcap.core.errors import UsageError
from batchcap.export.checkpoint.checkpoint import Checkpoint
from batchcap.export.checkpoint.options import ExportOptions, Int8Matrices, Precision, RoundingAlgorithm
from batchcap.export.checkpoint.scaling import write_scales
from batchcap.export.graph.decoder import Drawing
from batchcap.export.quality.images import ImageChoice, fitted, load_images
from batchcap.export.quality.quality import STEPS, Quality, ask_reference, table_of
from batchcap.export.search.trials import Candidate, Material, Trials
from batchcap.model.bundle import Bundle

log = logging.getLogger(__name__)

# Below so many images all of them calibrate and all of them measure.
MIN_TO_SHARE_OUT = 8


@dataclass(frozen=True, slots=True)
class Search:
    """What a decoder is chosen by.

    Attributes:
        images: half of them calibrate, the other half measure.
        max_divergence: Kullback-Leibler divergence from the checkpoint that is allowed, in nats, the mean over tokens.
        show: takes the table of what was tried.
    """

    images: ImageChoice
    max_divergence: float
    show: Callable[[str], None]

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_divergence) and self.max_divergence > 0):
            raise UsageError(f"--max-kl must be a number of nats above 0, not {self.max_divergence:g}")


def ladder(context: int) -> list[Candidate]:
    """The decoders that are tried, fastest first; see benchmarks/NOTES.md for the measurements behind the order."""
    options = ExportOptions(context=context)
    fine = replace(options, block_size=32, algorithm=RoundingAlgorithm.DEFAULT)
    eight = replace(options, precision=Precision.INT8)
    return [
        Candidate(options, scaled=False),
        Candidate(options, scaled=True),
        Candidate(replace(options, int8_matrices=Int8Matrices.HEAD), scaled=True),
        Candidate(replace(fine, int8_matrices=Int8Matrices.HEAD), scaled=True),
        Candidate(replace(fine, int8_matrices=Int8Matrices.SENSITIVE), scaled=True),
        Candidate(eight, scaled=False),
        Candidate(replace(eight, block_size=32), scaled=False),
    ]


def choose_decoder(
    unfinished: Bundle, checkpoint: Checkpoint, drawing: Drawing, search: Search, scratch: Path
) -> tuple[ExportOptions, dict[str, Any]]:
    """Make the decoder of a bundle, the first of the ladder that stays within the bound.

    Args:
        unfinished: a bundle that lacks its decoder; gets it.
        checkpoint: the model.
        drawing: its decoder's graph.
        search: images and bound.
        scratch: an empty folder on the same file system as the bundle.

    Returns:
        The options of the decoder, and what `bundle.json` says of its precision.

    Raises:
        UsageError: none stays within the bound, no image can be read, or memory is short.
    """
    material = _material(unfinished, checkpoint, drawing, search)
    trials = Trials(material, scratch)
    rows: list[Quality] = []
    chosen: Candidate | None = None
    for candidate in ladder(unfinished.context):
        log.info("trying %s", candidate.name)
        rows.append(trials.run(candidate))
        if rows[-1].divergence <= search.max_divergence:
            chosen = candidate
            break
    search.show(table_of(rows, material.yardstick).to_text())
    if chosen is None:
        closest = min(rows, key=lambda row: row.divergence)
        raise UsageError(
            f"no decoder of 4 or 8 bits stays within {search.max_divergence:g} nats of the checkpoint (closest: "
            f"{closest.name}, {closest.divergence:.2g}): raise --max-kl, or export with --precision fp32"
        )
    decoder = unfinished.decoder_path.parent
    trials.decoder.rename(decoder)
    facts = chosen.options.precision_facts()
    if trials.calibration is not None:
        write_scales(unfinished.folder, trials.calibration.scales)
        facts["awq"] = trials.calibration.facts
    facts["auto"] = {
        "max_kl": search.max_divergence,
        "pictures": len(material.yardstick.prompts),
        "inputs_sha256": material.yardstick.inputs_sha256,
        "tried": [row.repeatable() for row in rows],
    }
    return chosen.options, facts


def _material(unfinished: Bundle, checkpoint: Checkpoint, drawing: Drawing, search: Search) -> Material:
    """Ask the checkpoint about the images; its answers calibrate and measure."""
    choice = fitted(replace(search.images, count=2 * search.images.count), unfinished, STEPS)
    if not choice.inputs:
        log.warning("no images were named, so images that come with batchcap are used: better name some of your own")
    images = load_images(choice, checkpoint.geometry, unfinished.folder)
    shared = len(images) < MIN_TO_SHARE_OUT
    calibrating, measuring = (images, images) if shared else (images[::2], images[1::2])
    log.info("asking the checkpoint about %d images", len(images))
    learned = ask_reference(unfinished, checkpoint.folder, choice, calibrating)
    yardstick = learned if shared else ask_reference(unfinished, checkpoint.folder, choice, measuring)
    return Material(
        unfinished=unfinished,
        checkpoint=checkpoint,
        drawing=drawing,
        answered=[*zip(learned.prompts, learned.token_ids, strict=True)],
        answered_sha256=learned.inputs_sha256,
        yardstick=yardstick,
    )
