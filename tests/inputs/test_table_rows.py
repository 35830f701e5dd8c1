"""Ranges of a Parquet file: right in any order, and one pass over the file where they come in order."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcap.core.errors import UsageError
from batchcap.inputs.parquet import ParquetTable
from batchcap.inputs.table_rows import RowReader
from tests.inputs.parquets import write_table

ROWS = 40
RANGES = st.tuples(st.integers(0, ROWS - 1), st.integers(1, ROWS)).map(lambda pair: (pair[0], min(ROWS, sum(pair))))


def table_of(path: Path, rows: int, group_rows: int) -> ParquetTable:
    return ParquetTable(write_table(path, {"n": list(range(rows))}, row_group_size=group_rows))


def numbers(batches: Iterator[pa.RecordBatch]) -> list[int]:
    return [number for batch in batches for number in batch["n"].to_pylist()]


@settings(max_examples=60, deadline=None)
@given(st.lists(RANGES, max_size=8), st.sampled_from([1, 7, 16, 100]), st.sampled_from([1, 3, 100]))
def test_ranges_in_any_order(ranges: list[tuple[int, int]], group_rows: int, batch_rows: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        reader = RowReader(table_of(Path(name) / "a.parquet", ROWS, group_rows), ["n"], batch_rows)
        for start, stop in ranges:
            assert numbers(reader.read(start, stop - start)) == list(range(start, stop))


def test_two_ranges_read_in_turn_do_not_disturb_each_other(tmp_path: Path) -> None:
    reader = RowReader(table_of(tmp_path / "a.parquet", ROWS, 16), ["n"], 3)
    low, high = reader.read(0, 20), reader.read(12, 20)
    found: tuple[list[int], list[int]] = ([], [])
    for one, other in zip(low, high, strict=False):
        found[0].extend(one["n"].to_pylist())
        found[1].extend(other["n"].to_pylist())
    found[0].extend(numbers(low))
    found[1].extend(numbers(high))
    assert found == (list(range(20)), list(range(12, 32)))


@pytest.mark.parametrize("rows", [2_000, 20_000])
def test_ranges_in_order_decode_a_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    decoded = 0
    iter_batches = pq.ParquetFile.iter_batches

    def counted(*arguments: object, **options: object) -> Iterator[pa.RecordBatch]:
        nonlocal decoded
        for batch in iter_batches(*arguments, **options):
            decoded += len(batch)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    reader = RowReader(table_of(tmp_path / "a.parquet", rows, rows), ["n"], 128)
    for start in range(0, rows, 100):
        assert numbers(reader.read(start, 100)) == list(range(start, start + 100))
    assert decoded == rows


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is missing: put it back"):
        RowReader(ParquetTable(tmp_path / "a.parquet"), ["n"], 3)
