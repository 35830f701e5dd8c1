"""The growth benchmark with few rows: its jobs without a model still fit the engine's real interfaces."""

from pathlib import Path

import growth
import pytest


@pytest.mark.parametrize("engine", ["echo", "workers"])
def test_every_row_once_after_a_kill_half_way(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "WORK", tmp_path)
    found = growth.measure(engine, "parquet", 300)  # leaves with a message where a row is missing or was done twice
    assert (found.rows, found.rows_per_s > 0) == (300, True)
