"""The search finds the fastest of what it tries, gives slow candidates up, keeps to its time, and luck does not win."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcap.config import VisionBackend, VisionDtype
from batchcap.engines.profiles import INT8_ENCODER, W8A8_SLOTS, Settings
from batchcap.engines.tuning.search import MIN_GAIN, Machine, Search, Trial, encoders_for, moves_for

TORCH_FP32 = (VisionBackend.TORCH, VisionDtype.FP32)
TORCH_BF16 = (VisionBackend.TORCH, VisionDtype.BF16)
ONNX_FP32 = (VisionBackend.ONNX, VisionDtype.FP32)
START = Settings().with_encoder(TORCH_FP32)
TWO_CORES = Machine(cpus=2, cores=2, torch=True)
MOVES = moves_for(TWO_CORES, 64, w8a8=False, encoders=[INT8_ENCODER, ONNX_FP32])

Cost = Callable[[Settings], float]


class Clock:
    """Measures by a formula; one measurement takes one unit of time."""

    def __init__(self, cost: Cost, units: float = math.inf) -> None:
        self.cost, self.left = cost, units
        self.measured: list[Settings] = []

    def measure(self, settings: Settings, give_up_row_s: float) -> Trial:
        self.left -= 1
        self.measured.append(settings)
        row_s = self.cost(settings)
        return Trial(settings, [row_s]) if row_s <= give_up_row_s else Trial(settings, below=60 / give_up_row_s)

    def search(self) -> Search:
        first = Trial(START, [self.cost(START)])
        return Search(MOVES, self.measure, lambda _row_s: self.left >= 2, [first])


def by_parts(settings: Settings) -> float:
    """int8 vision, two decoders and 32 slots each help on their own."""
    cost = 1.0
    cost *= {INT8_ENCODER: 0.6, ONNX_FP32: 0.8}.get(settings.encoder, 1.0)
    cost *= 0.7 if settings.decoders == 2 else 1.0
    return cost * {8: 1.2, 32: 0.9}.get(settings.slots, 1.0)


def test_each_group_begins_from_the_best_so_far() -> None:
    clock = Clock(by_parts)
    best = clock.search().run()
    assert (best.settings.encoder, best.settings.decoders, best.settings.slots) == (INT8_ENCODER, 2, 32)
    assert len(best.row_s) == 3, "the winner was measured again"
    repeated = [one for one in clock.measured if one not in (best.settings, START)]
    assert len(repeated) == len(set(repeated)), "nothing else was measured twice"


@given(st.dictionaries(st.integers(0, 40), st.floats(0.1, 10), min_size=20))
def test_the_best_is_the_fastest_measured_and_never_slower_than_the_default(costs: dict[int, float]) -> None:
    def cost(settings: Settings) -> float:
        return costs.get(hash(settings) % 41, 1.0)

    search = Clock(cost).search()
    best = search.run()
    fastest = max(trial.images_per_min for trial in search.trials)
    assert best.images_per_min * MIN_GAIN ** len(search.trials) >= fastest
    assert best is search.trials[0] or best.beats(search.trials[0])


def test_defaults_stay_where_nothing_is_faster_by_more_than_chance() -> None:
    search = Clock(lambda settings: 1.0 if settings == START else 0.98).search()
    assert search.run() is search.trials[0]


def test_no_more_than_the_time_there_is() -> None:
    clock = Clock(by_parts, units=3)
    search = clock.search()
    best = search.run()
    assert [one.encoder for one in clock.measured] == [INT8_ENCODER, ONNX_FP32, TORCH_FP32, INT8_ENCODER]
    assert best.settings.encoder == INT8_ENCODER
    assert search.untried
    assert not any(one in clock.measured for one in search.untried)


@pytest.mark.parametrize("units", [2, math.inf])
def test_a_winner_by_luck_is_found_out(units: float) -> None:
    times = iter([0.5])  # the first candidate is measured while the machine is quiet, as it never is again

    def cost(settings: Settings) -> float:
        return next(times, 1.1) if settings.encoder == INT8_ENCODER else 1.0

    search = Clock(cost, units).search()
    assert search.run() is search.trials[0]


@pytest.mark.parametrize("is_default", [True, False])
def test_what_can_not_be_compared_again_does_not_win(is_default: bool) -> None:
    clock = Clock(by_parts)
    search = clock.search()
    search.measure = lambda settings, limit: (
        Trial(settings, note="failed")
        if (settings == START if is_default else settings in clock.measured)
        else clock.measure(settings, limit)
    )
    assert search.run() is search.trials[0]


@pytest.mark.parametrize(
    ("default", "torch", "rounded", "expected"),
    [
        (TORCH_FP32, True, False, [ONNX_FP32]),
        (TORCH_FP32, True, True, [INT8_ENCODER, ONNX_FP32]),
        (TORCH_BF16, True, False, []),
        (TORCH_BF16, True, True, [INT8_ENCODER]),
        (ONNX_FP32, False, False, []),
        (ONNX_FP32, False, True, [INT8_ENCODER]),
    ],
)
def test_encoders_that_round_more_must_be_asked_for(
    default: tuple[VisionBackend, VisionDtype],
    torch: bool,
    rounded: bool,
    expected: list[tuple[VisionBackend, VisionDtype]],
) -> None:
    assert encoders_for(default, Machine(2, 2, torch), rounded=rounded) == expected


def _all(machine: Machine, rows: int = 256, *, w8a8: bool = False) -> list[Settings]:
    return [one for move in moves_for(machine, rows, w8a8=w8a8, encoders=[]) for one in move(START)]


def test_candidates_suit_the_machine() -> None:
    assert {one.decoders for one in _all(Machine(1, 1, True))} == {1}
    assert {one.decoders for one in _all(TWO_CORES)} == {1, 2}
    assert {one.decoders for one in _all(Machine(32, 32, True))} == {1, 2, 4}
    threads = {(one.decoder_threads, one.vision_threads) for one in _all(Machine(16, 8, True))}
    assert (8, 8) in threads, "one thread a core where the CPU has two"
    assert all(one.decoders * one.decoder_threads <= 16 for one in _all(Machine(16, 8, True)))


def test_slots_that_the_images_cannot_fill_are_not_tried() -> None:
    assert {one.slots for one in _all(TWO_CORES, rows=16)} == {START.slots, 16}
    assert {one.slots for one in _all(TWO_CORES, rows=32)} == {START.slots, 16, 32}
    w8a8 = _all(TWO_CORES, rows=48, w8a8=True)
    assert w8a8[0].slots == W8A8_SLOTS, "the most promising comes first"


def test_decoders_that_would_have_too_few_images_are_not_tried() -> None:
    many = Machine(32, 32, True)
    assert [{one.decoders for one in _all(many, rows)} for rows in (4, 15, 16, 31, 32)] == [
        {1}, {1}, {1, 2}, {1, 2}, {1, 2, 4}
    ]  # fmt: skip
