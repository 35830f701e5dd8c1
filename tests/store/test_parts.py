"""Part files: whole or not there, and readable by the tools people use."""

import dataclasses
import errno
import logging
import os
import typing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap.core.errors import ErrorKind, StorageError
from batchcap.core.records import CaptionRow, FinishReason, PromptColumns, Shard, Status, Verdict
from batchcap.store import parts
from batchcap.store.parts import (
    SCHEMA,
    output_schema,
    part_is_complete,
    part_metadata,
    prompt_names,
    read_row,
    write_part,
)
from tests.store.records import caption_row

SHARD = Shard(2, 20, 4)
FAILED = CaptionRow("x", "/x.png", 0, status=Status.FAILED, error_kind=ErrorKind.CORRUPT, error_message="torn")
ROWS = [caption_row(20), caption_row(21, "naïve 猫 🐈\n\x00"), FAILED, caption_row(23, "")]
COLUMNS = pa.table({"label": [1, None, 3, 4], "tags": [["a"], [], None, ["b", "c"]]})


@pytest.fixture
def part(tmp_path: Path) -> Path:
    path = tmp_path / "captions" / "part-00002.parquet"
    path.parent.mkdir()
    write_part(path, SHARD, ROWS, COLUMNS, {"batchcap.bundle": "ünï"})
    return path


def test_the_columns_are_those_of_a_caption_row() -> None:
    assert [field.name for field in dataclasses.fields(CaptionRow)] == [*SCHEMA.names, "extra_prompts"]
    assert {field.name for field in dataclasses.fields(PromptColumns)} < set(SCHEMA.names)
    hints = typing.get_type_hints(CaptionRow)
    optional = {name for name, hint in hints.items() if type(None) in typing.get_args(hint)}
    assert {field.name for field in SCHEMA if field.nullable} == optional


def test_rows_and_carried_columns_come_back(part: Path) -> None:
    table = pq.read_table(part)
    expected = [{name: getattr(row, name) for name in SCHEMA.names} for row in ROWS]
    assert table.select(SCHEMA.names).to_pylist() == expected
    assert table.select(COLUMNS.column_names).equals(COLUMNS)
    assert table.column_names == [*SCHEMA.names, "label", "tags"]


SHORT = PromptColumns("a cat", None, Verdict.TRUNCATED, FinishReason.LENGTH, 31, 2, 7.5, 8.5)
LONG = PromptColumns("a cat, a dog", "hm", Verdict.OK, FinishReason.STOP, 40, 9, 1.5, None)
ANSWERED = [
    dataclasses.replace(row, extra_prompts=() if row.status is Status.FAILED else (SHORT, LONG)) for row in ROWS
]
NAMES = ("plain", "short", "long")


def test_each_prompt_has_its_columns(tmp_path: Path) -> None:
    write_part(tmp_path / "p", SHARD, ANSWERED, COLUMNS, {}, NAMES)
    table = pq.read_table(tmp_path / "p")
    own = [field.name for field in dataclasses.fields(PromptColumns)]
    expected = [f"{name}_{prompt}" for name in SCHEMA.names for prompt in NAMES if name in own]
    assert [name for name in table.column_names if name.rpartition("_")[2] in NAMES] == expected
    assert set(SCHEMA.names) - set(own) < set(table.column_names)
    assert not set(own) & set(table.column_names)
    assert table["caption_plain"].to_pylist() == [row.caption for row in ROWS]
    assert table["caption_short"].to_pylist() == ["a cat", "a cat", None, "a cat"]
    assert table["verdict_long"].to_pylist() == ["ok", "ok", None, "ok"]
    assert table["thinking_long"].to_pylist() == ["hm", "hm", None, "hm"]
    assert table["prefill_ms_short"].to_pylist() == [7.5, 7.5, None, 7.5]
    assert table.column_names[-2:] == COLUMNS.column_names
    assert output_schema(NAMES).names == table.column_names[:-2]


def test_one_prompt_may_have_a_name(tmp_path: Path) -> None:
    write_part(tmp_path / "p", SHARD, ROWS, None, {}, ["short"])
    table = pq.read_table(tmp_path / "p")
    assert table.column_names[3:6] == ["caption_short", "thinking_short", "status"]
    assert len(table.column_names) == len(SCHEMA.names)
    assert prompt_names(tmp_path / "p") == ("short",)


@pytest.mark.parametrize(("rows", "prompts"), [(ROWS, [""]), (ROWS, ["x"]), (ANSWERED, NAMES)])
def test_a_row_is_read_back(tmp_path: Path, rows: list[CaptionRow], prompts: list[str]) -> None:
    write_part(tmp_path / "p", SHARD, rows, COLUMNS, {}, prompts)
    for place, row in enumerate(rows):
        found = read_row(tmp_path / "p", place)
        assert found == row
        assert type(found.status) is Status
        assert {type(one.verdict) for one in found.answers} <= {Verdict, type(None)}


def test_metadata_comes_back(part: Path) -> None:
    assert part_metadata(part) == {
        "batchcap.bundle": "ünï",
        "batchcap.format_version": "2",
        "batchcap.prompts": '[""]',
        "batchcap.rows": "20+4",
    }


def test_only_the_whole_part_of_this_shard_is_complete(part: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert part_is_complete(part, SHARD)
    assert not part_is_complete(part, Shard(2, 20, 5))
    assert not part_is_complete(part, Shard(2, 24, 4))
    assert not part_is_complete(part.with_name("part-00003.parquet"), SHARD)
    content = part.read_bytes()
    for cut in (0, 3, len(content) // 2, len(content) - 1):
        part.write_bytes(content[:cut])
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            assert not part_is_complete(part, SHARD)
            assert "captions its rows again" in caplog.text


def test_a_part_wants_all_its_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wants 4 rows, not 3"):
        write_part(tmp_path / "p", SHARD, ROWS[:3], None, {})
    with pytest.raises(ValueError, match="wants 4 rows of carried columns, not 2"):
        write_part(tmp_path / "p", SHARD, ROWS, COLUMNS.slice(0, 2), {})


def test_a_full_disk_leaves_no_part(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = part.read_bytes()

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parts.pq, "write_table", full)
    with pytest.raises(StorageError, match="disk is full"):
        write_part(part, SHARD, ROWS, None, {})
    assert part.read_bytes() == before
    assert [path.name for path in part.parent.iterdir()] == [part.name]


@pytest.fixture
def captions(part: Path) -> Path:
    """A folder of two parts, the second of failures only."""
    other = Shard(3, 24, 2)
    columns = pa.table({"label": pa.nulls(2, pa.int64()), "tags": pa.nulls(2, COLUMNS["tags"].type)})
    write_part(part.with_name("part-00003.parquet"), other, [FAILED, FAILED], columns, {})
    return part.parent


TEXTS = [*(row.caption for row in ROWS), None, None]


def test_pandas_reads_the_parts(captions: Path) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.read_parquet(captions)
    assert [None if pd.isna(text) else text for text in frame["caption"]] == TEXTS


def test_duckdb_reads_the_parts(captions: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    query = f"SELECT caption, status FROM read_parquet('{captions}/*.parquet') ORDER BY filename, file_row_number"
    assert [text for text, _status in duckdb.sql(query).fetchall()] == TEXTS


def test_polars_reads_the_parts(captions: Path) -> None:
    pl = pytest.importorskip("polars")
    assert pl.read_parquet(captions / "*.parquet")["caption"].to_list() == TEXTS


def test_datasets_reads_the_parts(captions: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = sorted(str(path) for path in captions.iterdir())
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert list(loaded["caption"]) == TEXTS


READERS = {
    "part_is_complete": lambda path: part_is_complete(path, SHARD),
    "read_part": parts.read_part,
    "read_row": lambda path: read_row(path, 0),
    "read_carried": parts.read_passthrough,
    "captioned_images": parts.captioned_images,
    "well_rows": parts.well_rows,
    "first_failure": lambda path: parts.first_failure(path, "corrupt"),
    "part_metadata": part_metadata,
}


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE, errno.ENXIO])
@pytest.mark.parametrize("name", READERS)
def test_a_disk_that_does_not_answer_is_no_damage(
    part: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, code: int
) -> None:
    """What may be over soon must never look like rows to be captioned again."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    messages = []
    for reader in ("read_metadata", "read_table", "read_schema"):
        with monkeypatch.context() as patch:
            patch.setattr(parts.pq, reader, refuse)
            try:
                READERS[name](part)
            except StorageError as error:
                messages.append(str(error))
    assert messages
    for message in messages:
        assert os.strerror(code) in message
        assert "nothing was changed: check the disk" in message
        assert "run the same command again" in message
    assert caplog.text == ""
    READERS[name](part)


def test_a_part_that_may_not_even_be_looked_at_is_no_missing_one(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", refuse)
        with pytest.raises(StorageError, match="Permission denied"):
            part_is_complete(part, SHARD)


def test_a_part_that_makes_no_sense_is_damaged(part: Path) -> None:
    content = part.read_bytes()
    part.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        StorageError, match=r"is damaged .*delete it and run the job again, which captions its rows again"
    ):
        parts.read_part(part)
