"""How pictures are shared out among lanes, and what becomes of one that fails."""

import threading
from collections.abc import Sequence

import numpy as np
import pytest

from batchcap.records import Float32Array, Patches
from batchcap.vision.lanes import Lanes, lane_count, shared_out

PATIENCE_S = 30.0


def picture(index: int, patches: int) -> Patches:
    return Patches(index, np.full((patches, 3), index, np.float32), (2, patches // 2), 1, 1, "", 0.0)


def told(batch: Sequence[Patches]) -> list[Float32Array]:
    """What stands for features: the number of each picture."""
    return [np.full((2, len(one.values) // 4, 8), one.index, np.float32) for one in batch]


@pytest.mark.parametrize(("threads", "lanes"), [(1, 1), (2, 2), (4, 4), (5, 4), (64, 4)])
def test_a_lane_for_each_thread_up_to_four(threads: int, lanes: int) -> None:
    assert lane_count(threads) == lanes


@pytest.mark.parametrize(
    ("lengths", "lanes", "shares"),
    [
        ([900], 2, [[0]]),
        ([900, 900, 900, 900], 2, [[0, 2], [1, 3]]),
        ([100, 900, 300, 200], 2, [[1], [2, 3, 0]]),
        ([4, 4, 4], 4, [[0], [1], [2]]),
        ([8, 4, 4], 1, [[0, 1, 2]]),
    ],
)
def test_the_largest_first_to_who_has_least(lengths: list[int], lanes: int, shares: list[list[int]]) -> None:
    assert shared_out(lengths, lanes) == shares


def test_features_come_in_the_order_of_the_pictures() -> None:
    lanes = Lanes(2, told, 2)
    batch = [picture(index, patches) for index, patches in enumerate((4, 40, 8, 400, 4))]
    found = lanes.encode(batch)
    assert [one.index for one in found] == [0, 1, 2, 3, 4]
    assert [int(one.embeds[0, 0]) for one in found] == [0, 1, 2, 3, 4]
    assert [len(one.embeds) for one in found] == [1, 10, 2, 100, 1]
    assert found[3].vision_ms == pytest.approx(100 * found[0].vision_ms)


def test_lanes_run_side_by_side_with_their_threads() -> None:
    both = threading.Barrier(2, timeout=PATIENCE_S)
    prepared: list[int] = []

    def meet(batch: Sequence[Patches]) -> list[Float32Array]:
        both.wait()
        return told(batch)

    lanes = Lanes(2, meet, 2, prepared.append)
    assert len(lanes.encode([picture(0, 4), picture(1, 4)])) == 2
    assert prepared == [1, 1]


def test_a_lane_that_fails_is_told_when_the_others_are_done() -> None:
    done = []

    def run(batch: Sequence[Patches]) -> list[Float32Array]:
        if batch[0].index == 0:
            raise RuntimeError("odd")
        threading.Event().wait(0.2)
        done.append(batch[0].index)
        return told(batch)

    with pytest.raises(RuntimeError, match="odd"):
        Lanes(2, run, 2).encode([picture(0, 4), picture(1, 4)])
    assert done == [1]
