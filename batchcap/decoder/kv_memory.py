"""Owns the memory of the key-value slots: taken from the kernel page by page as it is written, and given back."""

import math
import mmap

import numpy as np

from batchcap.core.records import Float32Array

_FLOAT_BYTES = 4


class SlotMemory:
    """Arrays of one shape whose first axis is the slot.

    Pages come from the kernel when they are first written, so a slot that is never filled takes none.

    Args:
        shape: of every array, slots first.
        count: arrays.
    """

    def __init__(self, shape: tuple[int, ...], count: int) -> None:
        self._slot_bytes = math.prod(shape[1:]) * _FLOAT_BYTES
        self._maps = [mmap.mmap(-1, self._slot_bytes * shape[0], mmap.MAP_PRIVATE) for _array in range(count)]
        for one in self._maps:
            if hasattr(mmap, "MADV_HUGEPAGE"):  # as NumPy does for large arrays: fewer page faults
                one.madvise(mmap.MADV_HUGEPAGE)
        self.arrays: list[Float32Array] = [np.frombuffer(one, np.float32).reshape(shape) for one in self._maps]

    def give_back(self, slot: int) -> None:
        """Give the pages that lie wholly in a slot back to the kernel; they read as zeros from then on."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = -(-slot * self._slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (slot + 1) * self._slot_bytes // mmap.PAGESIZE * mmap.PAGESIZE
        if first < end:
            for one in self._maps:
                one.madvise(mmap.MADV_DONTNEED, first, end - first)
