"""Owns how many slots are used while the machine is short of memory."""

import logging
import time
from collections.abc import Callable

from batchcap.core.machine import MIB, available_memory_bytes, total_memory_bytes

log = logging.getLogger(__name__)

# Short is less than this; what the kernel needs to go on without swapping is of this size.
MIN_FREE_SHARE = 0.04
MIN_FREE_BYTES = 256 * MIB
# So much above it the slots come back.
ENOUGH = 2.0
CHECK_INTERVAL_S = 1.0
# Rows at work end within this, and their memory is free then; before that nothing is changed once more.
SETTLE_S = 10.0


class MemoryGuard:
    """Halves the slots in use while memory is short, and doubles them again when it is not.

    Rows at work go on: what is lowered is how many come after them. Captions do not depend on it.

    Args:
        slots: of one decoder.
        free_bytes: how much memory new work may take.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        slots: int,
        free_bytes: Callable[[], int] = available_memory_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slots = slots
        self._most = slots
        self._free_bytes = free_bytes
        self._clock = clock
        self._short_bytes = max(MIN_FREE_BYTES, int(MIN_FREE_SHARE * total_memory_bytes()))
        self._next_check_s = self._next_change_s = clock()
        self.is_short = False

    def check(self) -> None:
        """Look at the memory, at most once a second, and change `slots` and `is_short`."""
        now_s = self._clock()
        if now_s < self._next_check_s:
            return
        self._next_check_s = now_s + CHECK_INTERVAL_S
        free_bytes = self._free_bytes()
        self.is_short = free_bytes < self._short_bytes
        if now_s < self._next_change_s:
            return
        if self.is_short and self.slots > 1:
            self._change(self.slots // 2, free_bytes, now_s)
        elif free_bytes > ENOUGH * self._short_bytes and self.slots < self._most:
            self._change(min(self._most, 2 * self.slots), free_bytes, now_s)

    def _change(self, slots: int, free_bytes: int, now_s: float) -> None:
        level = logging.WARNING if slots < self.slots else logging.INFO
        log.log(
            level,
            "%d MiB of memory are free: %d slots a decoder from now on, of %d",
            free_bytes // MIB,
            slots,
            self._most,
        )
        self.slots = slots
        self._next_change_s = now_s + SETTLE_S
