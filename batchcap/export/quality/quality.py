"""Owns the measurement of what rounding costs: answers beside the unrounded checkpoint's, bytes, and speed.

The reference answers each prompt greedily; every decoder is then led along these tokens, and what it would have said
at each place is compared. A caption is the same where that is the reference's token each time, the stop token included.
"""

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from tqdm import tqdm

from batchcap.core.errors import UsageError
from batchcap.core.machine import MIB, available_cores
from batchcap.core.records import Float32Array, Patches
from batchcap.export.advice import load_named_bundle
from batchcap.export.checkpoint.checkpoint import open_checkpoint
from batchcap.export.checkpoint.prequantized import require_unquantized
from batchcap.export.quality.images import ImageChoice, fitted, images_sha256, load_images
from batchcap.export.quality.metrics import divergence
from batchcap.export.quality.reference import Reference
from batchcap.export.quality.rollout import ROWS, ImagePrompt, Rollout
from batchcap.model.bundle import Bundle
from batchcap.model.prompt import PromptTemplate

log = logging.getLogger(__name__)

STEPS = 32
SPEED_ROUNDS, SPEED_STEPS = 7, 12
_HEADERS = ("decoder", "KL, nats", "same token", "same captions", "MiB", "tokens/s", "speed")


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What the reference answers.

    Attributes:
        prompts: what is asked.
        token_ids: of each answer, the stop token at its end included where it came within the steps.
        logits: [n, V] float32 for each prompt, row i before token i.
        dtype: arithmetic of the reference.
        inputs_sha256: digest of images, prompt and budget.
    """

    prompts: tuple[ImagePrompt, ...]
    token_ids: tuple[tuple[int, ...], ...]
    logits: tuple[Float32Array, ...]
    dtype: str
    inputs_sha256: str

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(map(len, self.token_ids))


@dataclass(frozen=True, slots=True)
class Quality:
    """One row of the table.

    Attributes:
        name: the decoder.
        divergence: Kullback-Leibler divergence from the reference in nats, the mean over all tokens.
        same_token: share of tokens at which both find the same one likeliest.
        same_captions: share of images with the reference's caption.
        decoder_bytes: of the decoder's weights.
        tokens_per_s: of decode steps of `ROWS` captions; 0 where it was not measured.
        speed: by that of the first decoder of the table, measured in turns with it.
    """

    name: str
    divergence: float
    same_token: float
    same_captions: float
    decoder_bytes: int
    tokens_per_s: float = 0.0
    speed: float = 0.0

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        shares = (f"{share:.1%}" for share in (self.same_token, self.same_captions))
        mib = f"{self.decoder_bytes / MIB:.1f}"
        return self.name, f"{self.divergence:.2g}", *shares, mib, f"{self.tokens_per_s:.0f}", f"{self.speed:.2f}"

    def repeatable(self) -> dict[str, Any]:
        """What is the same when it is measured again, coarse enough for that; for `bundle.json`."""
        content = {name: float(f"{value:.3g}") for name, value in asdict(self).items() if isinstance(value, float)}
        return {"decoder": self.name, **{name: content[name] for name in ("divergence", "same_token", "same_captions")}}


def ask_reference(
    unfinished: Bundle, checkpoint: Path, choice: ImageChoice, images: Sequence[Patches], steps: int = STEPS
) -> Yardstick:
    """Let the checkpoint in transformers answer; it is gone from memory afterwards.

    Args:
        unfinished: a bundle of the checkpoint, whose decoder is not looked at.
        checkpoint: folder in Hugging Face layout.
        choice: prompt and budget.
        images: what to ask about.
        steps: longest answer.

    Raises:
        UsageError: the weights do not fit into free memory.
    """
    reference = Reference(checkpoint)
    prompt = PromptTemplate.from_bundle(unfinished, choice.prompt)
    table = unfinished.embeddings()
    stop = unfinished.geometry.tokens.stop
    prompts, token_ids, logits = [], [], []
    for image in tqdm(images, desc="reference", unit="image", disable=None, leave=False):
        prompts.append(ImagePrompt.of(reference.features(image), prompt, table))
        answer = reference.greedy(image, prompt, steps)
        count = min(len(answer.caption_ids(stop)) + 1, steps)
        token_ids.append(answer.token_ids[:count])
        logits.append(answer.logits[:count].copy())
    sha256 = images_sha256(choice, list(images))
    return Yardstick(tuple(prompts), tuple(token_ids), tuple(logits), str(reference.dtype), sha256)


def measure(name: str, rollout: Rollout, decoder: Path, yardstick: Yardstick) -> Quality:
    """Compare a decoder's answers with the reference's; its speed is not measured.

    Args:
        name: for the table.
        rollout: the decoder.
        decoder: folder of its graph and weights.
        yardstick: the reference's answers.
    """
    divergences: list[float] = []
    same: list[bool] = []
    captions = 0
    found = rollout.forced(yardstick.prompts, yardstick.token_ids)
    for expected, token_ids, logits in zip(yardstick.logits, yardstick.token_ids, found, strict=True):
        divergences += divergence(expected, logits).tolist()
        agreed = logits.argmax(-1) == np.array(token_ids)
        same += agreed.tolist()
        captions += bool(agreed.all())
    size = sum(path.stat().st_size for path in decoder.glob("model.onnx*"))
    return Quality(name, fmean(divergences), fmean(same), captions / len(yardstick.prompts), size)


def measure_speed(first: Rollout, other: Rollout) -> tuple[float, float]:
    """Tokens a second of decode steps, and how many times the first decoder's: medians of rounds taken in turns."""
    ratios, times = [], []
    for _round in range(SPEED_ROUNDS):
        first_s, other_s = first.step_s(SPEED_STEPS), other.step_s(SPEED_STEPS)
        ratios.append(first_s / other_s)
        times.append(other_s)
    return ROWS / median(times), median(ratios)


@dataclass(frozen=True, slots=True)
class QualityTable:
    """Decoders beside the same reference."""

    rows: tuple[Quality, ...]
    facts: dict[str, Any]

    def to_text(self) -> str:
        """For a person."""
        lines = [_HEADERS, *(row.cells() for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(_aligned(cells, widths)).rstrip() for cells in lines]
        about = "{pictures} images, {tokens} tokens, compared with transformers in {reference}".format(**self.facts)
        return "\n".join([*text, about])

    def to_json(self) -> str:
        """For a program."""
        return json.dumps({**self.facts, "decoders": [asdict(row) for row in self.rows]}, indent=2)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The first cell to the left, numbers to the right."""
    first, *others = zip(cells, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]


def table_of(rows: Sequence[Quality], yardstick: Yardstick) -> QualityTable:
    """A table, with what was measured by."""
    facts = {
        "pictures": len(yardstick.prompts),
        "tokens": yardstick.tokens,
        "reference": yardstick.dtype,
        "inputs_sha256": yardstick.inputs_sha256,
    }
    return QualityTable(tuple(rows), facts)


def compare_bundles(folders: Sequence[Path], checkpoint: str, choice: ImageChoice) -> QualityTable:
    """Measure bundles of one checkpoint beside it; the first one's speed counts as 1.

    Args:
        folders: the bundles.
        checkpoint: folder in Hugging Face layout, or a name on the hub where there is a network.
        choice: images, prompt and budget.

    Raises:
        UsageError: a bundle is of another model's shape, no image can be read, or memory is short.
        BundleError: a bundle is missing or broken.
        CheckpointError: the checkpoint is missing or broken.
    """
    opened = open_checkpoint(checkpoint)
    require_unquantized(opened.tensors, "the comparison")
    bundles = [load_named_bundle(folder) for folder in folders]
    for bundle in bundles:
        if bundle.geometry != opened.geometry:
            raise UsageError(f"{bundle.folder} was made from another checkpoint than {opened.folder}: name that one")
    choice = fitted(choice, min(bundles, key=lambda bundle: bundle.context), STEPS)
    images = load_images(choice, opened.geometry, bundles[0].folder)
    log.info("asking the checkpoint about %d images", len(images))
    yardstick = ask_reference(bundles[0], opened.folder, choice, images)
    rows: list[Quality] = []
    first: Rollout | None = None
    for bundle in bundles:
        log.info("measuring %s", bundle.folder)
        rollout = Rollout(bundle.decoder_path, bundle.geometry, bundle.embeddings(), available_cores())
        first = first or rollout
        quality = measure(f"{bundle.folder.name}: {bundle.precision}", rollout, bundle.decoder_path.parent, yardstick)
        rows.append(with_speed(quality, first, rollout))
    return table_of(rows, yardstick)


def with_speed(quality: Quality, first: Rollout, rollout: Rollout) -> Quality:
    """The row with its speed measured in turns with the table's first decoder."""
    tokens_per_s, speed = measure_speed(first, rollout)
    return dataclasses.replace(quality, tokens_per_s=tokens_per_s, speed=speed)
