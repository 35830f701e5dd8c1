"""The journal: what goes in comes out, once, and its troubles are said in words a person can act on."""

import sqlite3
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcap.core.errors import ErrorKind, StorageError
from batchcap.core.records import CaptionRow, FinishReason, PromptColumns, Shard, Status, Verdict
from batchcap.store.journal import Journal, ReopenedRow
from tests.store.records import caption_row

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
FLOAT = st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32)
COUNT = st.none() | st.integers(0, 2**31 - 1)
FURTHER = st.builds(
    PromptColumns,
    caption=TEXT,
    thinking=st.none() | TEXT,
    verdict=st.sampled_from(Verdict),
    finish_reason=st.sampled_from(FinishReason),
    new_tokens=COUNT,
    prefill_ms=FLOAT,
)
ROW = st.builds(
    CaptionRow,
    id=TEXT,
    source=TEXT,
    row=st.integers(0, 2**62),
    caption=st.none() | TEXT,
    thinking=st.none() | TEXT,
    status=st.sampled_from(Status),
    verdict=st.none() | st.sampled_from(Verdict),
    finish_reason=st.none() | st.sampled_from(FinishReason),
    error_kind=st.none() | st.sampled_from(ErrorKind),
    error_message=st.none() | TEXT,
    attempts=st.integers(1, 9),
    prompt_tokens=COUNT,
    new_tokens=COUNT,
    read_ms=FLOAT,
    decode_ms=FLOAT,
    extra_prompts=st.lists(FURTHER, max_size=2).map(tuple),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(ROW, max_size=5))
def test_rows_come_out_as_they_went_in(rows: list[CaptionRow]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "journal.sqlite"
        with closing(Journal.open(path)) as journal:
            assert journal.add(list(enumerate(rows))) == len(rows)
        with closing(Journal.open(path)) as journal:
            found = journal.rows(Shard(0, 0, 10))
    assert found == list(enumerate(rows))
    assert [type(row.status) for _index, row in found] == [Status] * len(rows)


def test_one_row_and_its_shard(tmp_path: Path) -> None:
    shards = [(0, 0, 3), (1, 3, 2), (2, 5, 7)]
    with closing(Journal.open(tmp_path / "j")) as journal:
        with journal.transaction() as connection:
            connection.executemany("INSERT INTO shards VALUES (?, ?, ?)", shards)
        journal.add([(4, caption_row(4))])
        assert journal.row(4) == caption_row(4)
        assert journal.row(3) is None
        found = [journal.shard_of(index).seq for index in range(12)]
    assert found == [0] * 3 + [1] * 2 + [2] * 7


def test_a_row_keeps_its_first_content(tmp_path: Path) -> None:
    with closing(Journal.open(tmp_path / "j")) as journal:
        assert journal.add([(5, caption_row(5, "first"))]) == 1
        assert journal.add([(5, caption_row(5, "second")), (6, caption_row(6))]) == 1
        assert [row.caption for _index, row in journal.rows(Shard(0, 0, 10))] == ["first", "a cat on a mat"]


def test_a_row_of_a_journal_before_there_was_thinking(tmp_path: Path) -> None:
    """`status` reads it; a run is refused by the job folder's format."""
    row = caption_row(0)
    with closing(Journal.open(tmp_path / "j")) as journal:
        journal.add([(0, row)])
        with journal.transaction() as connection:
            connection.execute("UPDATE rows SET content = json_remove(CAST(content AS TEXT), '$.thinking')")
        assert "thinking" not in str(next(journal.query("SELECT CAST(content AS TEXT) FROM rows")))
        assert journal.rows(Shard(0, 0, 1)) == [(0, row)]


def test_shards_are_apart(tmp_path: Path) -> None:
    one, two = Shard(0, 0, 3), Shard(1, 3, 2)
    with closing(Journal.open(tmp_path / "j")) as journal:
        journal.add([(index, caption_row(index)) for index in (4, 0, 2, 3)])
        assert journal.done_indexes(one) == {0, 2}
        journal.forget(one)
        assert journal.rows(one) == []
        assert [index for index, _row in journal.rows(two)] == [3, 4]


def test_a_message_with_a_name_that_is_not_text(tmp_path: Path) -> None:
    with closing(Journal.open(tmp_path / "j")) as journal:
        journal.add([(0, replace(caption_row(0, r"a \ud800 b"), error_message="caf\udce9.png: denied"))])
        ((_index, row),) = journal.rows(Shard(0, 0, 1))
    assert row.error_message == r"caf\udce9.png: denied"
    assert row.caption == r"a \ud800 b"
    assert row.error_message.encode()


def test_a_reader_sees_rows_of_the_run_at_work(tmp_path: Path) -> None:
    with closing(Journal.open(tmp_path / "j")) as writer, closing(Journal.open_to_read(tmp_path / "j")) as reader:
        writer.add([(0, caption_row(0))])
        assert reader.done_indexes(Shard(0, 0, 1)) == {0}
        with pytest.raises(StorageError):
            reader.add([(1, caption_row(1))])


def insert_and_fail(journal: Journal) -> None:
    with journal.transaction() as connection:
        connection.execute("INSERT INTO shards VALUES (0, 0, 1)")
        raise KeyError


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with closing(Journal.open(tmp_path / "j")) as journal:
        with pytest.raises(KeyError):
            insert_and_fail(journal)
        assert journal.shards() == []


@pytest.mark.parametrize("damage", ["no database at all", "torn"])
def test_a_damaged_journal_says_what_to_do(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "journal.sqlite"
    with closing(Journal.open(path)) as journal:
        journal.add([(index, caption_row(index, "x" * 300)) for index in range(200)])
    content = path.read_bytes()
    path.write_bytes(b"something else " * 100 if damage != "torn" else content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(StorageError, match=r"is damaged .*another --output"), closing(Journal.open(path)) as journal:
        journal.rows(Shard(0, 0, 200))


def test_a_full_disk_says_what_to_do_and_loses_nothing(tmp_path: Path) -> None:
    with closing(Journal.open(tmp_path / "j")) as journal:
        journal.add([(0, caption_row(0))])
        (pages,) = next(journal.query("PRAGMA page_count"))
        next(journal.query(f"PRAGMA max_page_count = {pages}"))
        with pytest.raises(StorageError, match=r"disk is full: free some space.*run the same command again"):
            journal.add([(index, caption_row(index, "x" * 5000)) for index in range(1, 9)])
        assert journal.done_indexes(Shard(0, 0, 9)) == {0}


def test_a_missing_journal_is_not_made_by_reading(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Journal.open_to_read(tmp_path / "j")
    assert not (tmp_path / "j").exists()


def test_every_commit_is_flushed_to_the_disk(tmp_path: Path) -> None:
    with closing(Journal.open(tmp_path / "j")) as journal:
        full = 2
        assert next(journal.query("PRAGMA synchronous")) == (full,)
        assert next(journal.query("PRAGMA journal_mode")) == ("wal",)
    assert sqlite3.connect(tmp_path / "j").execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_journal_of_an_earlier_version_can_be_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with closing(Journal.open(path)) as journal:
        journal.add([(0, caption_row(0))])
        with journal.transaction() as connection:
            connection.execute("DROP TABLE reopened")
            connection.execute("PRAGMA user_version = 0")
    with closing(Journal.open_to_read(path)) as journal:
        assert journal.reopened(Shard(0, 0, 5)) == set()
        assert not journal.has_reopened()
    with closing(Journal.open(path)) as journal:
        journal.reopen([(0, caption_row(0))], "{}", is_changed=True)
        assert journal.reopened_row(0) == ReopenedRow(caption_row(0), is_changed=True, settings="{}")
        assert (journal.reopened(Shard(0, 0, 5)), journal.reopened_row(1), journal.row(0)) == ({0}, None, None)
        assert (journal.waiting(), journal.waiting("{}"), journal.waiting("")) == (1, 1, 0)
        journal.add([(0, caption_row(0))])
        assert (journal.waiting(), journal.reopened_settings(Shard(0, 0, 5))) == (0, ["{}"])
        journal.forget(Shard(0, 0, 5))
        assert not journal.has_reopened()


def test_rows_that_wait_for_other_settings_are_given_up(tmp_path: Path) -> None:
    with closing(Journal.open(tmp_path / "journal.sqlite")) as journal:
        for index, settings in enumerate(("", "a", "b", "b")):
            journal.reopen([(index, caption_row(index))], settings)
        journal.add([(2, caption_row(2))])
        assert journal.drop_pending(but="a") == 1
        assert journal.reopened(Shard(0, 0, 5)) == {0, 1, 2}
        assert journal.drop_pending(but="") == 1
        assert journal.reopened(Shard(0, 0, 5)) == {0, 2}
