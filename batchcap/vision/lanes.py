"""Owns how the pictures of a batch are shared out among lanes: passes of the encoder that run side by side.

Threads that share one pass wait for one another at the end of every product and copy; pictures have nothing to wait
for. Measured at 2B on two cores, four pictures, two lanes of one thread each instead of two threads a pass: bf16
(PyTorch) 1.27 times as fast with 900 patches each and 1.31 with 256, int8 (ONNX Runtime) 1.12 and 1.09.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from batchcap.records import Features, Float32Array, Patches
from batchcap.vision.backend import features_of

# A lane needs a picture of its own; with more cores each gets more threads instead.
MOST_LANES = 4

Pass = Callable[[Sequence[Patches]], list[Float32Array]]


def lane_count(threads: int) -> int:
    """How many lanes an encoder with so many threads has."""
    return min(threads, MOST_LANES)


class Lanes:
    """Runs a batch as one pass a lane.

    Args:
        threads: of the encoder.
        one_pass: encodes pictures, each into [1 + L, T, H] float32; called in several threads at once.
        merge: side of a merge block in patches.
        prepare_lane: called once in the thread of each lane, with the threads that its passes may use.
    """

    def __init__(
        self, threads: int, one_pass: Pass, merge: int, prepare_lane: Callable[[int], None] = lambda _threads: None
    ) -> None:
        self.count = lane_count(threads)
        self._one_pass = one_pass
        self._merge = merge
        self._pool = ThreadPoolExecutor(self.count, "lane", prepare_lane, (threads // self.count,))

    def encode(self, batch: Sequence[Patches]) -> list[Features]:
        """Encode pictures.

        Args:
            batch: one or more pictures of any sizes.

        Returns:
            Their features, in the same order. `vision_ms` is the batch's time shared out by patches.

        Raises:
            FloatingPointError: a feature is not finite.
        """
        started_s = time.perf_counter()
        shares = shared_out([len(picture.values) for picture in batch], self.count)
        if len(shares) == 1:  # nothing runs beside it: here it has all threads
            arrays = dict(enumerate(self._one_pass(batch)))
        else:
            work = [self._pool.submit(self._one_pass, [batch[place] for place in share]) for share in shares]
            wait(work)  # also where one fails: the next batch must not meet a lane that is still at work
            arrays = {
                place: array
                for share, done in zip(shares, work, strict=True)
                for place, array in zip(share, done.result(), strict=True)
            }
        ms_per_patch = (time.perf_counter() - started_s) * 1000 / sum(len(picture.values) for picture in batch)
        return [
            features_of(picture, arrays[place], self._merge, ms_per_patch * len(picture.values))
            for place, picture in enumerate(batch)
        ]


def shared_out(lengths: Sequence[int], lanes: int) -> list[list[int]]:
    """The places of pictures for each lane, none empty: the largest first, each to the lane with the least to do.

    Args:
        lengths: patches of each picture.
        lanes: how many there are.
    """
    shares: list[list[int]] = [[] for _lane in range(min(lanes, len(lengths)))]
    patches = [0] * len(shares)
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        lane = patches.index(min(patches))
        shares[lane].append(place)
        patches[lane] += lengths[place]
    return shares
