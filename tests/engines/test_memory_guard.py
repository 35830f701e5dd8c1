"""Memory that gets short lowers the slots in use, and nothing else."""

import logging

import psutil
import pytest

from batchcap.engines.memory_guard import CHECK_INTERVAL_S, ENOUGH, SETTLE_S, MemoryGuard


class Machine:
    """Free memory, as a multiple of what is short, and a clock, both set by hand."""

    def __init__(self, slots: int = 16) -> None:
        self.now_s, self.free, self.looks = 100.0, 10.0, 0
        self.guard = MemoryGuard(slots, self._free_bytes, lambda: self.now_s)

    def _free_bytes(self) -> int:
        self.looks += 1
        return int(self.free * self.guard._short_bytes)

    def after(self, seconds: float, free: float) -> int:
        self.now_s, self.free = self.now_s + seconds, free
        self.guard.check()
        return self.guard.slots


def test_slots_are_halved_and_come_back(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    with caplog.at_level(logging.INFO, logger="batchcap"):
        assert machine.after(SETTLE_S, 0.5) == 8
    assert "8 slots a decoder from now on, of 16" in caplog.text
    assert [machine.after(SETTLE_S, 0.5) for _ in range(4)] == [4, 2, 1, 1]
    assert machine.guard.is_short
    assert machine.after(SETTLE_S, (1 + ENOUGH) / 2) == 1, "between short and enough nothing changes"
    assert not machine.guard.is_short
    assert [machine.after(SETTLE_S, 2 * ENOUGH) for _ in range(5)] == [2, 4, 8, 16, 16]


def test_rows_at_work_get_time_to_end() -> None:
    machine = Machine()
    assert machine.after(SETTLE_S, 0.5) == 8
    assert machine.after(SETTLE_S / 2, 0.5) == 8
    assert machine.guard.is_short
    assert machine.after(SETTLE_S / 2, 0.5) == 4


def test_memory_is_looked_at_once_a_second() -> None:
    machine = Machine()
    for _ in range(100):
        machine.after(CHECK_INTERVAL_S / 50, 10.0)
    assert machine.looks <= 3


def test_odd_numbers_of_slots_come_back_whole() -> None:
    machine = Machine(5)
    assert [machine.after(SETTLE_S, 0.5) for _ in range(2)] == [2, 1]
    assert [machine.after(SETTLE_S, 9.0) for _ in range(3)] == [2, 4, 5]


def test_short_is_a_small_part_of_the_machine() -> None:
    assert 0.02 < MemoryGuard(1)._short_bytes / psutil.virtual_memory().total <= 0.5
