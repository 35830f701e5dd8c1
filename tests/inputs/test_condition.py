"""Conditions: what matches, what is refused and how, and that a condition reads nothing but the rows."""

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap.core.errors import UsageError
from batchcap.inputs.condition import Condition

HERE = Path("/in/a.parquet")


def matching(text: str, **columns: Any) -> list[int]:
    batch = pa.RecordBatch.from_pydict(columns)
    condition = Condition(text)
    names = condition.require(batch.schema, HERE)
    found = condition.matching(batch.select(names), HERE) if names else condition.matching_numbers(len(batch), HERE)
    return [row for first, count in found for row in range(first, first + count)]


def test_a_null_is_no_match() -> None:
    assert matching("a > 1", a=[1, 2, None, 3]) == [1, 3]
    assert matching("NOT a > 1", a=[1, 2, None]) == [0]
    assert matching("a IS NULL", a=[1, None]) == [1]


def test_names_are_those_of_sql() -> None:
    assert matching('A = 2 AND "the ""word""" LIKE \'x%\'', **{"a": [2, 2], 'the "word"': ["xy", "y"]}) == [0]


def test_a_condition_without_a_column_reads_none() -> None:
    assert matching("1 = 1", a=[1, 2]) == [0, 1]
    assert matching("1 = 2", a=[1, 2]) == []


def test_a_column_that_is_not_named_may_be_of_any_type() -> None:
    odd = pa.array([None, None], pa.decimal256(60))
    assert matching("a = 1", a=[1, 2], odd=odd) == [0]
    with pytest.raises(UsageError, match="can't be used"):
        matching("odd = 1", a=[1, 2], odd=odd)


def test_numbers_of_16_bits_are_compared() -> None:
    assert matching("a > 1.5", a=pa.array([1.0, 2.0], pa.float16())) == [1]


def test_text_that_is_not_utf8_is_null_and_ends_nothing() -> None:
    """DuckDB gives up a whole connection over it."""
    data = pa.array([b"\xff\xfe", b"ab", None])
    text = pa.Array.from_buffers(pa.string(), 3, data.buffers())
    assert matching("lower(a) = 'ab'", a=text) == [1]
    assert matching("a IS NULL", a=text) == [0, 2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nope = 1", 'Referenced column "nope" not found.*a.parquet has a, b'),
        ("a >", "Parser Error: syntax error"),
        ("a > 1) OR (1 = 1", "Parser Error: syntax error"),
        ("a > 1; DROP TABLE x", "Parser Error"),
        ("a > 1 ORDER BY a", "Parser Error"),
        ("a > 1 LIMIT 1", "Parser Error"),
        ("count(*) > 1", "WHERE clause cannot contain aggregates"),
        ("row_number() OVER () < 2", "WHERE clause cannot contain window functions"),
        ("CAST(b AS INT) > 1", "Could not convert string 'x'"),
        ("a = ?", "prepared parameter"),
        (" ", "Parser Error"),
    ],
)
def test_what_makes_no_sense_is_told_in_duckdbs_words(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"^--where .* can't be used: .*{said}") as caught:
        matching(text, a=[1, 2], b=["x", "y"])
    assert "\n" not in str(caught.value)


def test_a_condition_that_names_nothing_is_refused_before_a_row_is_read() -> None:
    with pytest.raises(UsageError, match="nope"):
        Condition("nope = 1").require(pa.schema([("a", pa.int64())]), HERE)


def test_a_condition_reads_no_file_and_sets_nothing(tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("word\nx\n")
    pq.write_table(pa.table({"word": ["x"]}), tmp_path / "secret.parquet")
    evil = tmp_path / "evil"
    variable = pa.table({"word": ["x"]})  # noqa: F841 - DuckDB would find it by its name
    for text in (
        f"b IN (SELECT word FROM read_csv('{secret}'))",
        f"b IN (FROM read_text('{secret}'))",
        f"EXISTS (FROM '{tmp_path}/secret.parquet')",
        f"EXISTS (FROM glob('{tmp_path}/*'))",
        "EXISTS (FROM 'https://example.org/a.parquet')",
        "EXISTS (FROM variable)",
        "EXISTS (FROM sniff_csv('/etc/passwd'))",
        "b = getenv('HOME')",
        f"b = 'x'; COPY (SELECT 1) TO '{evil}'",
        "b = 'x'; SET enable_external_access = true",
        "b = 'x'; INSTALL httpfs",
        f"b = 'x'; ATTACH '{evil}'",
    ):
        with pytest.raises(UsageError, match="can't be used"):
            matching(text, b=["x"])
    assert not evil.exists()


def test_without_duckdb_the_message_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(UsageError, match=r"--where needs DuckDB: pip install 'batchcap\[where\]'"):
        Condition("a > 1")
