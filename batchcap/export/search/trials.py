"""Owns trials: decoders of one checkpoint, made one after the other from one drawing and measured alike."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchcap.core.machine import available_cores
from batchcap.export.calibrate.calibration import Calibration, calibrate_on
from batchcap.export.checkpoint.checkpoint import Checkpoint
from batchcap.export.checkpoint.options import ExportOptions
from batchcap.export.checkpoint.quantize import Rows
from batchcap.export.checkpoint.scaling import scaled_tensors
from batchcap.export.graph.decoder import GRAPH_FILE, Drawing, fill_decoder
from batchcap.export.quality.quality import Quality, Yardstick, measure, with_speed
from batchcap.export.quality.rollout import ImagePrompt, Rollout
from batchcap.model.bundle import Bundle, precision_text


@dataclass(frozen=True, slots=True)
class Candidate:
    """A decoder that may be made: how it is rounded, and whether it is scaled before."""

    options: ExportOptions
    scaled: bool

    @property
    def name(self) -> str:
        """As `precision_text` says it."""
        facts = self.options.precision_facts()
        return precision_text({**facts, "awq": {}} if self.scaled else facts)


@dataclass(frozen=True, slots=True)
class Material:
    """What all trials share.

    Attributes:
        unfinished: a bundle that lacks its decoder.
        checkpoint: the model.
        drawing: its decoder's graph.
        answered: prompts with answers, to calibrate by.
        answered_sha256: digest of their images.
        yardstick: the reference's answers, to measure by.
    """

    unfinished: Bundle
    checkpoint: Checkpoint
    drawing: Drawing
    answered: Sequence[tuple[ImagePrompt, tuple[int, ...]]]
    answered_sha256: str
    yardstick: Yardstick


class Trials:
    """Makes and measures decoders; the first one's speed counts as 1.

    Args:
        material: what all of them share.
        folder: where they are made; the first stays for the comparison of speed, of the others the last one.
        timed: whether their speed is measured.
    """

    def __init__(self, material: Material, folder: Path, *, timed: bool = True) -> None:
        self._timed = timed
        self._material = material
        self._folder = folder
        self._first: Rollout | None = None
        self._made: Path | None = None
        self.calibration: Calibration | None = None

    @property
    def decoder(self) -> Path:
        """Folder of the decoder that was made last."""
        assert self._made is not None, "there was a trial"  # noqa: S101 - for the type checker
        return self._made

    def run(self, candidate: Candidate) -> Quality:
        """Make a decoder and measure it."""
        material, checkpoint = self._material, self._material.checkpoint
        tensors: Mapping[str, Rows] = checkpoint.tensors
        self.calibration = None
        if candidate.scaled:
            self.calibration = calibrate_on(
                material.unfinished, checkpoint, candidate.options, material.answered, material.answered_sha256
            )
            tensors = scaled_tensors(tensors, self.calibration.scales, checkpoint.geometry.text)
        target = self._folder / ("first" if self._first is None else "other")
        if target.exists():
            shutil.rmtree(target)
        fill_decoder(material.drawing, tensors, candidate.options, target)
        self._made = target
        table = material.unfinished.embeddings()
        rollout = Rollout(target / GRAPH_FILE, checkpoint.geometry, table, available_cores())
        self._first = self._first or rollout
        quality = measure(candidate.name, rollout, target, material.yardstick)
        return with_speed(quality, self._first, rollout) if self._timed else quality
