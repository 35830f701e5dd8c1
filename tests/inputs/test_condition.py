"""Conditions: what matches, what is refused and how, and that a condition reads nothing but the rows."""

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap.config import InputConfig
from batchcap.core.errors import UsageError
from batchcap.core.sources import Source
from batchcap.inputs.condition import Condition
from batchcap.inputs.discover import discover
from batchcap.inputs.registry import open_readers
from batchcap.job.condition_rows import matching_rows
from batchcap.store.chosen_rows import PlannedSource
from tests.inputs.archives import write_tar

HERE = Path("/in/a.parquet")


def matching(text: str, **columns: Any) -> list[int]:
    batch = pa.RecordBatch.from_pydict(columns)
    condition = Condition(text)
    names = condition.require(batch.schema, HERE)
    found = condition.matching(batch.select(names), HERE) if names else condition.matching_numbers(len(batch), HERE)
    return [row for first, count in found for row in range(first, first + count)]


def found(folder: Path, text: str, *names: str, **given: Any) -> list[tuple[str, int]]:
    """The rows of files that match, as a plan asks for them."""
    config = InputConfig(tuple(str(folder / name) for name in names), **given)
    sources: list[Source] = list(discover(config, folder / "out"))
    planned = [
        PlannedSource(number, one.id, str(one.path).encode(), one.kind, one.rows) for number, one in enumerate(sources)
    ]
    stretches = list(matching_rows(planned, open_readers(config), text))
    for one, other in zip(stretches, stretches[1:], strict=False):
        assert (one.source, one.start + one.rows) < (other.source, other.start), "stretches are as long as can be"
    return [(planned[source].id, row) for source, start, rows in stretches for row in range(start, start + rows)]


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
    half = pa.array([1, 2], pa.month_day_nano_interval()) if False else pa.array([b"aaaa", b"bbbb"], pa.binary(4))
    assert matching("a = 1", a=[1, 2], odd=half, b=pa.array([None, None], pa.null())) == [0]


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


def test_tables_match_by_all_their_columns_and_those_of_their_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder = tmp_path / f"split={split}"
        folder.mkdir()
        table = pa.table({"image": ["x.png"] * 3000, "n": range(3000)} | {"n": pa.array(range(3000))})
        pq.write_table(table, folder / "a.parquet", row_group_size=700)
    both = ("split=test/a.parquet", "split=train/a.parquet")
    assert found(tmp_path, "split = 'train' AND n % 1000 = 999", *both, keep_columns=()) == [
        ("a.parquet", row) if False else (found(tmp_path, "split = 'train'", both[1])[0][0], row)
        for row in (999, 1999, 2999)
    ]
    (tmp_path / "t.jsonl").write_text('{"image": "a.png", "n": 1}\n{"image": "b.png", "n": 2}\n')
    (tmp_path / "t.csv").write_text("image,n\na.png,1\nb.png,2\n")
    assert found(tmp_path, "n > 1", "t.jsonl", "t.csv") == [("t.jsonl", 1), ("t.csv", 1)]
    with pytest.raises(UsageError, match='"image" not found'):
        found(tmp_path, "image = 'a.png'", "t.csv")


def test_image_files_match_by_id_and_the_names_of_their_folders(tmp_path: Path) -> None:
    for name in ("split=a/1.png", "split=a/2.png", "split=b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert found(tmp_path, "split = 'a' AND id LIKE '%2.png'", "") == [("split=a/2.png", 0)]
    assert found(tmp_path, "split <> 'a'", "") == [("split=b/1.png", 0)]
    with pytest.raises(UsageError, match="has id, split"):
        found(tmp_path, "n = 1", "")


def test_samples_of_archives_match_by_their_texts(tmp_path: Path) -> None:
    members = [(f"{key}.{end}", content) for key in "abc" for end, content in (("png", b"x"), ("txt", key.encode()))]
    write_tar(tmp_path / "a.tar", members)
    assert found(tmp_path, "txt <> 'b'", "a.tar") == [("a.tar", 0), ("a.tar", 2)]
    assert found(tmp_path, "__key__ = 'b'", "a.tar") == [("a.tar", 1)]


def test_damaged_rows_never_match(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"image": "a.png", "n": 1}\nbroken\n{"image": "b.png", "n": 2}\n')
    assert found(tmp_path, "n > 0 OR n IS NULL", "t.jsonl") == [("t.jsonl", 0), ("t.jsonl", 2)]
    path = tmp_path / "a.parquet"
    table = pa.table({"image": [f"{row}.png" for row in range(30)], "word": [f"w{row}" * 9 for row in range(30)]})
    pq.write_table(table, path, row_group_size=10, compression="none")
    column = pq.read_metadata(path).row_group(1).column(1)
    data = bytearray(path.read_bytes())
    start = min(column.data_page_offset, column.dictionary_page_offset or column.data_page_offset)
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    assert {row for _name, row in found(tmp_path, "word IS NULL OR word > ''", "a.parquet")} == {
        *range(10),
        *range(20, 30),
    }


def test_each_image_of_a_list_is_a_row(tmp_path: Path) -> None:
    table = pa.table({"images": [["a.png", "b.png"], ["c.png"]], "n": [1, 2]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert found(tmp_path, "n = 1", "a.parquet", images="each") == [("a.parquet", 0), ("a.parquet", 1)]
