"""Statistics over time: runs stay apart, and damage never ends a job."""

import errno
import os
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from batchcap.store import stats
from batchcap.store.stats import SCHEMA, StatsSample, StatsWriter, recent_rate_per_s


def run(path: Path, *samples: StatsSample) -> None:
    writer = StatsWriter(path)
    for sample in samples:
        writer.add(sample)
        writer.write()


def test_runs_are_numbered_and_samples_kept_in_order(tmp_path: Path) -> None:
    path = tmp_path / "stats.parquet"
    run(path, StatsSample(1.0, 0, 0), StatsSample(2.0, 4, 60, {"vision": 1.5, "decode": 0.5}, queue_mib=2.5))
    run(path, StatsSample(1.5, 2, 30, memory_mib=100.0))
    table = pq.read_table(path)
    assert table.schema.equals(SCHEMA)
    assert table["run"].to_pylist() == [1, 1, 2]
    assert table["rows"].to_pylist() == [0, 4, 2]
    assert table["vision_busy_s"].to_pylist() == [0, 1.5, 0]
    assert table["queue_mib"].to_pylist() == [0, 2.5, 0]


def test_the_rate_is_that_of_the_last_run(tmp_path: Path) -> None:
    path = tmp_path / "stats.parquet"
    assert recent_rate_per_s(path) is None
    run(path, StatsSample(0.0, 0, 0), StatsSample(10.0, 1000, 0))
    run(path, StatsSample(0.0, 0, 0), StatsSample(880.0, 100, 0), StatsSample(1000.0, 160, 0))
    assert recent_rate_per_s(path) == pytest.approx(0.5)


def test_old_samples_are_thinned_and_totals_stay(tmp_path: Path) -> None:
    path = tmp_path / "stats.parquet"
    for seconds in (7200, 10_800):  # two runs, a sample every five seconds
        writer = StatsWriter(path)
        for elapsed in range(0, seconds + 1, 5):
            writer.add(StatsSample(float(elapsed), elapsed, 0))
            if elapsed % 600 == 0:
                writer.write()
        writer.write()
    table = pq.read_table(path)
    first, second = (table.filter(pc.equal(table["run"], number))["rows"].to_pylist() for number in (1, 2))
    assert first == list(range(0, 7201, 60))
    assert second == [*range(0, 7200, 60), *range(7200, 10_801, 5)]
    assert recent_rate_per_s(path) == pytest.approx(1.0)
    assert writer._earlier.column("rows").num_chunks == 1


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "stats.parquet"
    path.write_bytes(b"PAR1 torn")
    run(path, StatsSample(1.0, 1, 1))
    assert pq.read_table(path)["run"].to_pylist() == [1]


def test_a_file_that_can_not_be_read_now_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stats.parquet"
    run(path, StatsSample(1.0, 1, 1))
    before = path.read_bytes()

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(stats.pq, "read_table", refuse)
        run(path, StatsSample(1.0, 2, 2))
        assert recent_rate_per_s(path) is None
    assert path.read_bytes() == before


def test_images_of_an_earlier_batchcap_are_not_known(tmp_path: Path) -> None:
    path = tmp_path / "stats.parquet"
    run(path, StatsSample(0.0, 0, 0, images=0), StatsSample(10.0, 20, 0, images=15))
    assert recent_rate_per_s(path, "images") == pytest.approx(1.5)
    assert recent_rate_per_s(path) == pytest.approx(2.0)
    pq.write_table(pq.read_table(path).drop_columns("images"), path)
    assert recent_rate_per_s(path, "images") is None
    assert recent_rate_per_s(path) == pytest.approx(2.0)
    run(path, StatsSample(0.0, 0, 0, images=0), StatsSample(10.0, 20, 0, images=10))
    assert recent_rate_per_s(path, "images") == pytest.approx(1.0)
    assert pq.read_table(path)["images"].to_pylist() == [None, None, 0, 10]
