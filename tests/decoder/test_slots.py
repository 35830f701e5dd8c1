"""Slots hold their rows apart: prefill in place, ragged lengths, moves and idle neighbours change no bit of a row."""

import mmap
from pathlib import Path

import numpy as np
import pytest

from batchcap.core.errors import BundleError
from batchcap.core.records import Float32Array
from batchcap.decoder.invariance import MAX_BATCH, TILES, find_batch_multiple
from batchcap.decoder.kv_memory import SlotMemory
from batchcap.decoder.session import DecoderSession
from batchcap.decoder.slots import Slots, kv_bytes_per_slot
from batchcap.model.bundle import Bundle

POSITIONS = 160
STEPS = 3
BUNDLES = ["tiny_bundle_fp32", "tiny_bundle_int8", "tiny_bundle_int4"]


class Rows:
    """Rows of different lengths, each with its own random prompt and new tokens."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self.geometry = bundle.geometry
        self.session = DecoderSession(bundle.decoder_path, bundle.geometry, threads)

    def slots(self, count: int) -> Slots:
        return Slots(self.session, self.geometry, count, POSITIONS, with_logits=True)

    def length(self, row: int) -> int:
        return 20 + 37 * row % 101

    def embeds(self, row: int, step: int) -> Float32Array:
        shape = (self.length(row) if step == 0 else 1, self.geometry.text.hidden_size)
        return np.random.default_rng([row, step]).standard_normal(shape, np.float32)

    def prefill(self, slots: Slots, slot: int, row: int) -> Float32Array:
        embeds = self.embeds(row, 0)
        positions = np.broadcast_to(np.arange(len(embeds)), (3, len(embeds))).astype(np.int64)
        deepstack = np.zeros((len(self.geometry.vision.deepstack_levels), *embeds.shape), np.float32)
        deepstack[:, 2:9] = 0.5
        return slots.prefill(slot, embeds, positions, deepstack).logits.copy()[0, 0]

    def step(self, slots: Slots, places: dict[int, int], size: int, step: int) -> dict[int, Float32Array]:
        """Decode the rows at their places (slot → row); gives each row's logits [V]."""
        lengths = np.zeros(size, np.int64)
        embeds = np.zeros((size, self.geometry.text.hidden_size), np.float32)
        for slot, row in places.items():
            lengths[slot] = self.length(row) + step - 1
            embeds[slot] = self.embeds(row, step)[0]
        logits = slots.step(size, lengths, lengths, embeds).logits
        return {row: logits[slot, 0].copy() for slot, row in places.items()}


def alone(rows: Rows, row: int, tile: int) -> list[Float32Array]:
    slots = rows.slots(tile)
    first = rows.prefill(slots, 0, row)
    return [first, *[rows.step(slots, {0: row}, tile, step)[row] for step in range(1, STEPS + 1)]]


def equal(found: list[Float32Array], expected: list[Float32Array]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", BUNDLES)
def test_a_row_is_the_same_in_every_batch(name: str, threads: int, request: pytest.FixtureRequest) -> None:
    bundle = request.getfixturevalue(name)
    rows = Rows(bundle, threads)
    tile = find_batch_multiple(rows.session, bundle.geometry)
    single = Rows(bundle, threads=1)
    for size in sorted({-(-count // tile) * tile for count in (1, 3, 6, 11, 16, 24)}):
        slots = rows.slots(size)
        places = {slot: slot for slot in range(size) if slot % 5 != 3}
        found = {row: [rows.prefill(slots, slot, row)] for slot, row in places.items()}
        for step in range(1, STEPS + 1):
            for row, logits in rows.step(slots, places, size, step).items():
                found[row].append(logits)
        for row in (0, 1, size // 2, max(places)):
            if row in found:
                assert equal(found[row], alone(single, row, tile)), f"row {row} of {size}, tile {tile}"


@pytest.mark.parametrize("name", BUNDLES)
def test_a_moved_row_goes_on_as_if_it_had_stayed(name: str, request: pytest.FixtureRequest) -> None:
    rows = Rows(request.getfixturevalue(name))
    size = MAX_BATCH
    slots = rows.slots(size)
    found = [rows.prefill(slots, size - 1, 4)]
    rows.prefill(slots, 2, 7)
    found.append(rows.step(slots, {size - 1: 4, 2: 7}, size, 1)[4])
    slots.release(2)
    slots.move(size - 1, 2)
    found += [rows.step(slots, {2: 4}, size, step)[4] for step in (2, 3)]
    assert equal(found, alone(rows, 4, size))


def test_a_slot_remembers_nothing(tiny_bundle_fp32: Bundle) -> None:
    rows = Rows(tiny_bundle_fp32)
    slots = rows.slots(2)
    rows.prefill(slots, 1, 5)
    rows.step(slots, {1: 5}, 2, 1)
    slots.release(1)
    rows.step(slots, {}, 2, 1)
    found = [rows.prefill(slots, 1, 0), *[rows.step(slots, {1: 0}, 2, step)[0] for step in range(1, STEPS + 1)]]
    assert equal(found, alone(rows, 0, 2))


def test_next_token_is_the_likeliest(tiny_bundle_int4: Bundle) -> None:
    rows = Rows(tiny_bundle_int4)
    slots = rows.slots(MAX_BATCH)
    lengths = np.zeros(MAX_BATCH, np.int64)
    embeds = np.stack([rows.embeds(row, 1)[0] for row in range(MAX_BATCH)])
    outputs = slots.step(MAX_BATCH, lengths, lengths, embeds)
    assert outputs.next_token[:, 0].tolist() == outputs.logits[:, 0].argmax(-1).tolist()
    assert len(set(outputs.next_token[:, 0].tolist())) > 1


def test_a_prompt_longer_than_a_slot_is_refused(tiny_bundle_fp32: Bundle) -> None:
    rows = Rows(tiny_bundle_fp32)
    slots = Slots(rows.session, rows.geometry, 1, rows.length(0) - 1, with_logits=True)
    with pytest.raises(ValueError, match="does not fit"):
        rows.prefill(slots, 0, 0)


def test_memory_of_an_idle_slot_goes_back_and_its_neighbours_keep_theirs(tiny_bundle_fp32: Bundle) -> None:
    rows = Rows(tiny_bundle_fp32)
    slots = rows.slots(4)
    found = {row: [rows.prefill(slots, row, row)] for row in (0, 1, 2)}
    slots.release(1)
    slots.give_back(1)
    assert slots._cache[0][0].any()
    assert not slots._cache[0][1].any()
    for step in range(1, STEPS + 1):
        for row, logits in rows.step(slots, {0: 0, 2: 2}, 4, step).items():
            found[row].append(logits)
    found[1] = [rows.prefill(slots, 1, 1), *[rows.step(slots, {1: 1}, 4, step)[1] for step in range(1, STEPS + 1)]]
    for row, logits in found.items():
        assert equal(logits, alone(rows, row, 2)), row


def test_given_back_pages_are_those_that_lie_in_the_slot() -> None:
    memory = SlotMemory((3, 2, mmap.PAGESIZE // 8 - 1, 1), 2)  # a slot is a little shorter than a page
    larger = SlotMemory((3, 2, mmap.PAGESIZE // 4, 3), 1)  # and here six pages
    for array in (*memory.arrays, *larger.arrays):
        array[:] = 1.0
    for slot in range(3):
        memory.give_back(slot)
    assert all((array == 1.0).all() for array in memory.arrays)
    larger.give_back(1)
    assert [float(larger.arrays[0][slot].mean()) for slot in range(3)] == [1.0, 0.0, 1.0]


def test_kv_bytes(tiny_bundle_fp32: Bundle) -> None:
    slots = Rows(tiny_bundle_fp32).slots(3)
    held = sum(array.nbytes for array in slots._cache)
    assert held == 3 * kv_bytes_per_slot(tiny_bundle_fp32.geometry.text, POSITIONS)


def test_the_tile_is_the_same_with_any_threads(tiny_bundle_int4: Bundle) -> None:
    found = {
        find_batch_multiple(Rows(tiny_bundle_int4, threads).session, tiny_bundle_int4.geometry) for threads in (1, 2)
    }
    assert len(found) == 1
    assert found <= set(TILES)


def test_a_broken_graph_says_what_to_do(tiny_bundle_fp32: Bundle, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match="export the bundle again"):
        DecoderSession(tmp_path / "model.onnx", tiny_bundle_fp32.geometry, 1)
