"""The row tile is the smallest that keeps rows equal, for kernels of any tile; where none does, a warning says so."""

import logging
from typing import Any

import numpy as np
import pytest

from batchcap.core.records import Float32Array
from batchcap.decoder import invariance
from batchcap.decoder.invariance import MAX_BATCH, find_batch_multiple, rows_stay_equal


class KernelProbe:
    """A probe over a kernel of `tile` rows at a time, whose rows left over go through another kernel."""

    tile = 1

    def __init__(self, *_arguments: Any) -> None:
        pass

    def logits(self, size: int, place: int) -> Float32Array:
        whole = size - size % self.tile
        return np.array([0.0 if place < whole else 1e-7], np.float32)


class RestlessProbe(KernelProbe):
    """A probe whose every run differs."""

    runs = 0

    def logits(self, size: int, place: int) -> Float32Array:
        self.runs += 1
        return np.array([self.runs], np.float32)


@pytest.mark.parametrize(("kernel", "expected"), [(1, 1), (2, 2), (4, 4), (8, 8), (16, 16), (5, MAX_BATCH)])
def test_finds_the_kernels_tile(kernel: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelProbe, "tile", kernel)
    monkeypatch.setattr(invariance, "_Probe", KernelProbe)
    assert find_batch_multiple(None, None) == expected  # type: ignore[arg-type]


def test_one_row_left_over_beside_many_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that has one way for a row alone and up to three rows, and another for the fifth row of five."""

    class Odd(KernelProbe):
        def logits(self, size: int, place: int) -> Float32Array:
            return np.array([1e-7 if size > 4 and size % 4 == 1 and place == size - 1 else 0.0], np.float32)

    monkeypatch.setattr(invariance, "_Probe", Odd)
    assert find_batch_multiple(None, None) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(("kernel", "padded", "expected"), [(4, 4, True), (4, 2, False), (1, 1, True), (8, 4, False)])
def test_padded_batches_of_all_sizes_are_compared(
    kernel: int, padded: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KernelProbe, "tile", kernel)
    monkeypatch.setattr(invariance, "_Probe", KernelProbe)
    assert rows_stay_equal(None, None, padded, 32) is expected  # type: ignore[arg-type]


def test_no_tile_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(invariance, "_Probe", RestlessProbe)
    with caplog.at_level(logging.WARNING):
        assert find_batch_multiple(None, None) == MAX_BATCH  # type: ignore[arg-type]
    assert "may depend on the captions decoded beside it" in caplog.text
