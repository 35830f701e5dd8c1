"""Owns the promise that a caption does not depend on its neighbours: the row tile that decode batches are padded to.

Kernels for few-bit weights work on tiles of rows, and a row left over goes through another kernel whose sums round
differently. So a row's numbers are the same bit for bit in every batch whose size is a multiple of the tile. The tile
differs between CPUs and precisions: it is measured at start-up, on the decoder that will be used.
"""

import logging

import numpy as np

from batchcap.core.records import Float32Array
from batchcap.decoder.session import DecoderSession
from batchcap.decoder.slots import Slots
from batchcap.model.geometry import Geometry

log = logging.getLogger(__name__)

TILES = (1, 2, 4, 8, 16)
# Always measured over the same sizes, whatever the number of slots, so that it never depends on that either.
MAX_BATCH = 16
BATCHES = (1, 2, 3, 5, 8, 13, 16, 21, 32)  # of `rows_stay_equal`
PROMPT_TOKENS = 3
POSITIONS = 8
SEED = 1
# One token alone goes through other kernels (a vector times a matrix), whose sums round differently.
MIN_PREFILL = 2
SPLIT_TILES, SPLIT_REST = 3, 5


def find_batch_multiple(session: DecoderSession, geometry: Geometry) -> int:
    """The smallest tile for which one row's logits are bitwise equal in every batch tried.

    A row left over is the last of a batch of a few tiles; the largest batch is tried at both its ends. Each try is one
    short decode step, and a tile ends with its first difference, so the whole takes about as long as a dozen steps.
    Where no tile works, the largest is used and a warning logged: then every batch of up to that many slots has the
    same size, which is the most that can be done.
    """
    probe = _Probe(session, geometry)
    for tile in TILES:
        sizes = [size for size in (tile, 2 * tile, 3 * tile, 5 * tile, 7 * tile) if size < MAX_BATCH]
        tries = [*[(size, size - 1) for size in sizes], (MAX_BATCH, 0), (MAX_BATCH, MAX_BATCH - 1)]
        expected = probe.logits(*tries[0])
        if all(np.array_equal(expected, probe.logits(*one)) for one in tries[1:]):
            return tile
    log.warning("on this CPU a caption may depend on the captions decoded beside it: no row tile keeps rows equal")
    return MAX_BATCH


def rows_stay_equal(session: DecoderSession, geometry: Geometry, tile: int, most: int) -> bool:
    """Whether one row's logits are bitwise equal at both ends of padded batches of up to `most` rows."""
    sizes = sorted({-(-size // tile) * tile for size in (*BATCHES, most) if size <= most})
    probe = _Probe(session, geometry, sizes[-1])
    expected = probe.logits(sizes[0], 0)
    return all(np.array_equal(expected, probe.logits(size, index)) for size in sizes for index in (0, size - 1))


def warn_if_a_split_shows(session: DecoderSession, geometry: Geometry, tile: int) -> None:
    """Say so if a prompt prefilled in two parts gives other bits than in one."""
    if a_split_shows(session, geometry, tile):
        log.warning("on this CPU a caption may depend on the prompts beside it: a prefill in two parts rounds apart")


def a_split_shows(session: DecoderSession, geometry: Geometry, tile: int) -> bool:
    """Whether a prompt prefilled in two parts gives other bits than in one; split where the scheduler does."""
    first = SPLIT_TILES * max(tile, MIN_PREFILL)
    length = first + SPLIT_REST
    random = np.random.default_rng(SEED)
    embeds = random.standard_normal((length, geometry.text.hidden_size), np.float32)
    deepstack = random.standard_normal((len(geometry.vision.deepstack_levels), *embeds.shape), np.float32)
    positions = np.broadcast_to(np.arange(length), (3, length)).astype(np.int64)
    slots = Slots(session, geometry, 2, length, with_logits=True)
    whole = slots.prefill(0, embeds, positions, deepstack).logits
    slots.prefill(1, embeds[:first], positions[:, :first], deepstack[:, :first])
    rest = slots.prefill(1, embeds[first:], positions[:, first:], deepstack[:, first:], past=first).logits
    assert whole is not None  # noqa: S101 - asked for above
    assert rest is not None  # noqa: S101 - asked for above
    return not np.array_equal(whole, rest)


class _Probe:
    """One row decoded among others that are different each time: other tokens, mostly in empty slots."""

    def __init__(self, session: DecoderSession, geometry: Geometry, most: int = MAX_BATCH) -> None:
        self._slots = Slots(session, geometry, most, POSITIONS, with_logits=True)
        self._random = np.random.default_rng(SEED)
        hidden = geometry.text.hidden_size
        self._positions = np.broadcast_to(np.arange(PROMPT_TOKENS), (3, PROMPT_TOKENS)).astype(np.int64)
        self._deepstack = np.zeros((len(geometry.vision.deepstack_levels), PROMPT_TOKENS, hidden), np.float32)
        self._prompt = self._random.standard_normal((PROMPT_TOKENS, hidden), np.float32)
        self._token = self._random.standard_normal(hidden, np.float32)
        self._filled: set[int] = set()

    def logits(self, size: int, index: int) -> Float32Array:
        """Logits [V] of the probe row at `index` of a batch of `size`."""
        if index not in self._filled:
            self._slots.prefill(index, self._prompt, self._positions, self._deepstack)
            self._filled.add(index)
        embeds = self._random.standard_normal((size, len(self._token)), np.float32)
        embeds[index] = self._token
        lengths = np.zeros(size, np.int64)
        lengths[[slot for slot in self._filled if slot < size]] = PROMPT_TOKENS
        outputs = self._slots.step(size, lengths, lengths, embeds)
        assert outputs.logits is not None  # noqa: S101 - asked for in __init__
        logits: Float32Array = outputs.logits[index, 0].copy()
        return logits
