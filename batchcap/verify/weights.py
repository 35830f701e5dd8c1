"""Owns the checks of a bundle's weights: every number of it beside the checkpoint's.

Letters as in `decoder_weights`.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from batchcap.core.errors import BundleError, CheckpointError
from batchcap.core.machine import available_cores
from batchcap.core.records import Float32Array
from batchcap.export.checkpoint.checkpoint import Checkpoint
from batchcap.export.checkpoint.inventory import expected_tensors, head_is_tied
from batchcap.export.checkpoint.quantize import Rows
from batchcap.export.checkpoint.scaling import read_scales, scaled_tensors
from batchcap.model.bundle import Bundle
from batchcap.model.tensors import EMBEDDINGS, HEAD, VISION, read_file, same_bytes, vision_tensors
from batchcap.verify.decoder_weights import DecoderWeights, PlainTensor, RoundedMatrix, pieces, read_decoder
from batchcap.verify.rounding import error_tolerance, judge_blocks
from batchcap.verify.table import Row

log = logging.getLogger(__name__)

# Of the rotary tables, in float32 roundings of an angle (2^-24 of it, and of 1 where it is smaller).
ROTARY_TOLERANCE = 4.0
_SHOWN = 3

# Takes the tensor's name, its first row, and rows as the decoder computes with them.
TakeRows = Callable[[str, int, Float32Array], None]


@dataclass(slots=True)
class _Worst:
    """The largest value seen, and where."""

    value: float = 0.0
    where: str = ""

    def see(self, value: float, where: str) -> None:
        """A value that is not a number counts as the worst of all."""
        value = np.inf if np.isnan(value) else value
        if value > self.value:
            self.value, self.where = value, where


@dataclass(slots=True)
class _Findings:
    """What the pass over the decoder's weights has found."""

    error: _Worst = field(default_factory=_Worst)
    scale: _Worst = field(default_factory=_Worst)
    plain: _Worst = field(default_factory=_Worst)


def check_weights(
    bundle: Bundle, checkpoint: Checkpoint, precision: Mapping[str, Any], take: TakeRows
) -> Iterator[Row]:
    """Compare every number of a bundle with the checkpoint; nothing is held but a few rows.

    Args:
        bundle: what is checked.
        checkpoint: what it was made from.
        precision: `precision` of its `bundle.json`.
        take: is handed every row of the decoder, as the decoder computes with it.

    Yields:
        The rows of the table.

    Raises:
        BundleError: the decoder's graph can't be read.
    """
    decoder = read_decoder(bundle.decoder_path, bundle.geometry.text.layers)
    expected = decoder_tensors(bundle, checkpoint)
    yield _counterparts(decoder, expected)
    findings = _Findings()
    algorithm = str(precision.get("algorithm", ""))
    names = [name for name in (*decoder.rounded, *decoder.plain) if name in expected]
    with ThreadPoolExecutor(available_cores()) as threads:
        for name in tqdm(names, desc="weights", unit="tensor", disable=None, leave=False):
            tensor = decoder.rounded.get(name) or decoder.plain[name]
            if tensor.shape == expected[name].shape:
                _compare(name, tensor, expected[name], _Pass(findings, algorithm, take, threads))
    if decoder.rounded:
        limit = error_tolerance(algorithm)
        yield Row("decoder, rounded weights", findings.error.value, limit, unit="steps", worst=findings.error.where)
        yield Row("decoder, scales of blocks", findings.scale.value, 1, unit="of allowed", worst=findings.scale.where)
    yield Row("decoder, float32 weights", findings.plain.value, 0, unit="difference", worst=findings.plain.where)
    yield _rotary(decoder, checkpoint)
    yield _sections(decoder, checkpoint)
    yield _embeddings(bundle, checkpoint)
    yield _vision(bundle, checkpoint)


def decoder_tensors(bundle: Bundle, checkpoint: Checkpoint) -> dict[str, Rows]:
    """What the decoder's tensors must be before they are rounded, by canonical name.

    The checkpoint's, with the scales that the bundle was made with; a tied head is a tensor of its own here.
    """
    tensors = scaled_tensors(checkpoint.tensors, read_scales(bundle.folder), checkpoint.geometry.text)
    wanted = {
        name: tensors[name]
        for name, _shape in expected_tensors(checkpoint.geometry, checkpoint.config)
        if name != EMBEDDINGS and not name.startswith(VISION)
    }
    if head_is_tied(checkpoint.config):
        wanted[HEAD] = tensors[EMBEDDINGS]
    return wanted


@dataclass(frozen=True, slots=True)
class _Pass:
    """What the comparison of one tensor needs beside the tensor."""

    findings: _Findings
    algorithm: str
    take: TakeRows
    threads: ThreadPoolExecutor


def _compare(name: str, tensor: RoundedMatrix | PlainTensor, expected: Rows, run: _Pass) -> None:
    """Compare a tensor and hand its rows on, in pieces."""

    def rounded(span: tuple[int, int]) -> tuple[float, str, float, str]:
        assert isinstance(tensor, RoundedMatrix)  # noqa: S101 - for the type checker
        rows = tensor.rows(*span)
        run.take(name, span[0], rows.weights(tensor.shape[1]))
        judged = judge_blocks(rows, expected.rows(*span), tensor.bits, run.algorithm)
        places = [np.unravel_index(values.argmax(), values.shape) for values in judged]
        told = [f"{name} row {span[0] + row} block {block}" for row, block in places]
        return float(judged.error[places[0]]), told[0], float(judged.scale[places[1]]), told[1]

    def plain(span: tuple[int, int]) -> float:
        assert isinstance(tensor, PlainTensor)  # noqa: S101
        rows = tensor.rows(*span)
        run.take(name, span[0], rows)
        return float(np.abs(rows - expected.rows(*span)).max())

    if isinstance(tensor, PlainTensor):
        for difference in run.threads.map(plain, pieces(tensor.shape)):
            run.findings.plain.see(difference, name)
        return
    for error, error_place, scale, scale_place in run.threads.map(rounded, pieces(tensor.shape)):
        run.findings.error.see(error, error_place)
        run.findings.scale.see(scale, scale_place)


def _counterparts(decoder: DecoderWeights, expected: Mapping[str, Rows]) -> Row:
    """Tensors that only one side has, or that have two shapes."""
    shapes: dict[str, tuple[int, ...]] = {name: tensor.shape for name, tensor in decoder.rounded.items()}
    shapes |= {name: tensor.shape for name, tensor in decoder.plain.items()}
    odd = [*sorted(shapes.keys() ^ expected.keys()), *decoder.unknown]
    odd += [name for name in sorted(shapes.keys() & expected.keys()) if shapes[name] != expected[name].shape]
    return Row("decoder, tensors without match", len(odd), 0, worst=_shortened(odd))


def _sections(decoder: DecoderWeights, checkpoint: Checkpoint) -> Row:
    """Rotations whose mRoPE sections are others than the checkpoint's.

    Read, not measured: in the interleaved layout the sections only bound the slowest frequencies, so that logits would
    hardly show a permutation.
    """
    rope = checkpoint.config["text_config"]["rope_parameters"]
    expected = (tuple(rope["mrope_section"]), True)  # transformers interleaves whatever `mrope_interleaved` says
    odd = [name for name, found in decoder.sections.items() if found != expected]
    return Row("decoder, mRoPE sections that differ", len(odd), 0, worst=_shortened(odd))


def _rotary(decoder: DecoderWeights, checkpoint: Checkpoint) -> Row:
    """The rotary tables beside cosines and sines in float64: angle = position · theta^(-2i / head_dim)."""
    theta = float(checkpoint.config["text_config"]["rope_parameters"]["rope_theta"])
    half = checkpoint.geometry.text.head_dim // 2
    frequencies = theta ** (-np.arange(half) / half)
    worst = _Worst()
    for name, function in (("cos_cache", np.cos), ("sin_cache", np.sin)):
        table = decoder.rotary.get(name)
        if table is None or table.shape[1:] != (half,):
            worst.see(np.inf, f"{name} is missing or of another width")
            continue
        for start, stop in pieces(table.shape):
            angles = np.arange(start, stop)[:, None] * frequencies
            off = np.abs(table[start:stop] - function(angles)) / (2.0**-24 * np.maximum(angles, 1))
            worst.see(float(off.max()), f"{name} position {start + int(off.max(1).argmax())}")
    return Row("decoder, rotary tables", worst.value, ROTARY_TOLERANCE, unit="roundings", worst=worst.where)


def _embeddings(bundle: Bundle, checkpoint: Checkpoint) -> Row:
    table, expected = bundle.embeddings(), checkpoint.tensors[EMBEDDINGS]
    worst = _Worst()
    for start, stop in pieces(expected.shape):
        try:
            found = table.lookup(np.arange(start, stop))
        except IndexError:
            worst.see(np.inf, "the table is shorter")
            break
        difference = np.abs(found - expected.rows(start, stop)).max(1)
        worst.see(float(difference.max()), f"token {start + int(difference.argmax())}")
    return Row("token embeddings", worst.value, 0, unit="difference", worst=worst.where)


def _vision(bundle: Bundle, checkpoint: Checkpoint) -> Row:
    """Vision tensors that are not the checkpoint's, byte for byte."""
    try:
        found = read_file(bundle.vision_weights_path)
    except CheckpointError as error:
        raise BundleError(f"the vision weights are damaged: {error}") from None
    expected = dict(vision_tensors(checkpoint.tensors))
    odd = sorted(found.keys() ^ expected.keys())
    odd += [name for name in sorted(found.keys() & expected.keys()) if not same_bytes(found[name], expected[name])]
    return Row("vision weights that differ", len(odd), 0, worst=_shortened(odd))


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
