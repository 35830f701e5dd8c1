"""Owns the checks of the decoder's structure: does the graph compute what transformers computes with the same weights?

The reference is given the bundle's own weights, rounded as they are, and the graph multiplies in float32 instead of
with 8-bit activations. What rounding does then stands on both sides, so int4 bundles are compared as closely as fp32
ones: DeepStack that is lost or swapped, positions that are permuted, a cache that is read wrongly stand out by orders
of magnitude. Each probe leaves out what the others look at, so that the row that fails names the fault.

Letters used for shapes: S tokens of a probe, H hidden size, D DeepStack levels, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from batchcap.core.records import Float32Array, Int64Array
from batchcap.decoder.positions import prompt_positions
from batchcap.export.graph.check import DecoderRun
from batchcap.export.quality.metrics import relative_error
from batchcap.export.quality.reference import Reference, ReferenceDtype
from batchcap.model.bundle import Bundle
from batchcap.model.prompt import PromptTemplate
from batchcap.verify.table import Row

# Largest difference of a logit, as a part of what the probed thing changes. Measured over tiny random checkpoints and
# the demo model, fp32, int8 and int4: below 3e-5.
TOLERANCE = {ReferenceDtype.FP32: 1e-3, ReferenceDtype.BF16: 0.2}
SEED = 3
TEXT_TOKENS = 24
PREFIX, SUFFIX = 4, 6
# Visual tokens down and across: rows and columns must not be mistaken for each other, nor for the time.
GRIDS = ((2, 11), (11, 2), (5, 5))
STEP_GRID = (2, 9)
STEPS = 6


@dataclass(frozen=True, slots=True)
class Probe:
    """What the language model reads: embeddings [S, H], DeepStack features [D, S, H], positions [3, S]."""

    embeds: Float32Array
    deepstack: Float32Array
    positions: Int64Array


@dataclass(frozen=True, slots=True)
class Answers:
    """What the reference says to the probes; it can be dropped before the graph is loaded.

    Attributes:
        text: [V] text alone.
        images: [V] with the positions of an image, for each of `GRIDS`.
        flat: [V] the same with the positions of text.
        deepstack: [V] text alone with features in one DeepStack level, for each level.
        steps: [STEPS, V] after each of the tokens that follow an image.
    """

    text: Float32Array
    images: tuple[Float32Array, ...]
    flat: tuple[Float32Array, ...]
    deepstack: tuple[Float32Array, ...]
    steps: Float32Array


class Structure:
    """The probes of a bundle, the same ones each time.

    Args:
        bundle: what is checked.
        feature_scale: root mean square of the features of real images, of each DeepStack level.
    """

    def __init__(self, bundle: Bundle, feature_scale: list[float]) -> None:
        self._bundle = bundle
        random = np.random.default_rng(SEED)
        text, table = bundle.geometry.text, bundle.embeddings()
        longest = PREFIX + max(down * across for down, across in (*GRIDS, STEP_GRID)) + SUFFIX + STEPS
        self._embeds = table.lookup(random.integers(0, text.vocab_size, longest))
        shape = (len(feature_scale), TEXT_TOKENS, text.hidden_size)
        scale = np.array(feature_scale, np.float32)[:, None, None]
        self._features = random.standard_normal(shape, np.float32) * scale
        # Only how many tokens stand before and after an image matters: the embeddings are those above.
        words = tuple(token for token in range(PREFIX + SUFFIX + 1) if token != bundle.geometry.tokens.image_pad)
        start = (*words[: PREFIX - 1], bundle.geometry.tokens.vision_start)
        self._prompt = PromptTemplate(start, words[PREFIX - 1 : PREFIX - 1 + SUFFIX])

    def ask(self, reference: Reference) -> Answers:
        """The reference's answers, with the weights it has now."""

        def last(probe: Probe) -> Float32Array:
            logits: Float32Array = reference.language_model(probe.embeds, probe.deepstack, probe.positions)[0]
            return logits

        images = [self._image(reference.positions(self._prompt, grid)) for grid in GRIDS]
        before = reference.positions(self._prompt, STEP_GRID)
        after = before.max() + 1 + np.arange(STEPS)
        steps = self._image(np.concatenate([before, np.broadcast_to(after, (3, STEPS))], axis=1))
        return Answers(
            text=last(self._text(None)),
            images=tuple(map(last, images)),
            flat=tuple(last(Probe(probe.embeds, probe.deepstack, _in_a_row(len(probe.embeds)))) for probe in images),
            deepstack=tuple(last(self._text(level)) for level in range(len(self._features))),
            steps=reference.language_model(steps.embeds, steps.deepstack, steps.positions, STEPS),
        )

    def check(self, answers: Answers, dtype: ReferenceDtype) -> Iterator[Row]:
        """Put the same to the bundle's graph; gives the rows of the table.

        Raises:
            BundleError: the graph can't be loaded.
        """
        run = DecoderRun(self._bundle.decoder_path, self._bundle.geometry, exact=True)
        limit = TOLERANCE[dtype]

        def last(probe: Probe) -> Float32Array:
            logits, _token, _cache = run(probe.embeds, list(probe.deepstack), probe.positions)
            return logits

        text = last(self._text(None))
        yield Row("structure, text alone", relative_error(answers.text, text), limit, unit="of the logits")
        errors = [
            _change_error((expected, flat), last(self._image(prompt_positions(PREFIX, grid, SUFFIX)[0])))
            for grid, expected, flat in zip(GRIDS, answers.images, answers.flat, strict=True)
        ]
        down, across = GRIDS[int(np.argmax(errors))]
        place = f"{down} down, {across} across"
        yield Row("structure, mRoPE positions", max(errors), limit, unit="of their effect", worst=place)
        for level, expected in enumerate(answers.deepstack):
            error = _change_error((expected, answers.text), last(self._text(level)))
            yield Row(f"structure, DeepStack level {level}", error, limit, unit="of its effect")
        error = relative_error(answers.steps, self._steps(run))
        yield Row("structure, steps after an image", error, limit, unit="of the logits")

    def _steps(self, run: DecoderRun) -> Float32Array:
        """Logits [STEPS, V] of tokens one by one after an image, as a decoder runs them."""
        positions, following = prompt_positions(PREFIX, STEP_GRID, SUFFIX)
        prompt = self._image(positions)
        _logits, _token, cache = run(prompt.embeds, list(prompt.deepstack), prompt.positions)
        found = []
        for step in range(STEPS):
            place = len(prompt.embeds) + step
            no_levels = list(np.zeros((len(prompt.deepstack), 1, prompt.embeds.shape[1]), np.float32))
            where = np.full((3, 1), following + step)
            logits, _token, cache = run(self._embeds[place : place + 1], no_levels, where, cache)
            found.append(logits)
        return np.stack(found)

    def _text(self, level: int | None) -> Probe:
        """Text alone, with features in one DeepStack level or in none."""
        deepstack = np.zeros_like(self._features)
        if level is not None:
            deepstack[level] = self._features[level]
        return Probe(self._embeds[:TEXT_TOKENS], deepstack, _in_a_row(TEXT_TOKENS))

    def _image(self, positions: Int64Array) -> Probe:
        """The positions of a prompt with an image, without DeepStack."""
        embeds = self._embeds[: positions.shape[1]]
        deepstack = np.zeros((len(self._features), *embeds.shape), np.float32)
        return Probe(embeds, deepstack, positions)


def _in_a_row(count: int) -> Int64Array:
    """Positions of text: all three rows count on."""
    return np.broadcast_to(np.arange(count), (3, count)).astype(np.int64)


def _change_error(expected: tuple[Float32Array, Float32Array], found: Float32Array) -> float:
    """Difference to the first of the two logits expected, as a part of the difference between these two."""
    change = np.abs(expected[0] - expected[1]).max()
    return float(np.abs(found - expected[0]).max() / change) if change else float("inf")
