"""The journal's version: files of earlier batchcaps are migrated step by step, files of later ones refused."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from batchcap.core.errors import UsageError
from batchcap.core.records import Shard
from batchcap.store import schema
from batchcap.store.journal import Journal
from batchcap.store.schema import MIGRATIONS, Migration
from tests.store.records import caption_row

ADDED = Migration("a column more", ("ALTER TABLE shards ADD COLUMN note TEXT", "UPDATE shards SET note = 'old'"))
BROKEN = Migration("half a step", ("ALTER TABLE shards ADD COLUMN more TEXT", "INSERT INTO nowhere VALUES (1)"))


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of today with a shard and a finished row."""
    path = tmp_path / "journal.sqlite"
    with closing(Journal.open(path)) as journal:
        journal.add([(0, caption_row(0))])
        with journal.transaction() as connection:
            connection.execute("INSERT INTO shards VALUES (0, 0, 5)")
    return path


@pytest.fixture
def later(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, and a batchcap with one more migration."""
    monkeypatch.setattr(schema, "MIGRATIONS", (*MIGRATIONS, ADDED))
    return path


def test_names_of_migrations_are_told_apart() -> None:
    assert len({migration.name for migration in MIGRATIONS}) == len(MIGRATIONS)


def test_a_new_journal_has_the_version_of_today(path: Path) -> None:
    assert version(path) == len(MIGRATIONS)


def test_a_run_migrates_an_old_journal_once(later: Path) -> None:
    for _run in range(2):
        with closing(Journal.open(later)) as journal:
            assert list(journal.query("SELECT note FROM shards")) == [("old",)]
            assert journal.row(0) == caption_row(0)
    assert version(later) == len(MIGRATIONS) + 1


def test_who_reads_sees_the_tables_of_today_and_changes_nothing(later: Path) -> None:
    before = later.read_bytes()
    with closing(Journal.open_to_read(later)) as journal:
        assert list(journal.query("SELECT note FROM shards")) == [("old",)]
        assert journal.shards() == [Shard(0, 0, 5)]
    assert later.read_bytes() == before


def test_a_step_is_kept_as_a_whole_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MIGRATIONS", (*MIGRATIONS, ADDED, BROKEN))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        with pytest.raises(sqlite3.OperationalError, match="nowhere"):
            schema.migrate(connection, path)
        assert [row[1] for row in connection.execute("PRAGMA table_info(shards)")] == [
            "seq",
            "first_row",
            "rows",
            "note",
        ]
    assert version(path) == len(MIGRATIONS) + 1


@pytest.mark.parametrize("open_journal", [Journal.open, Journal.open_to_read])
def test_a_journal_of_a_later_batchcap_is_refused(path: Path, open_journal: object) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(UsageError, match=rf"version {len(MIGRATIONS) + 1}.*use the batchcap that made it"):
        open_journal(path)  # type: ignore[operator]


def test_a_disk_that_is_full_at_the_first_table_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite has rolled back by itself then."""

    class FullDisk(sqlite3.Connection):
        def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
            if sql.startswith("CREATE TABLE IF NOT EXISTS sources"):
                super().execute("ROLLBACK")
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(sql, *values)

    connection = sqlite3.connect(tmp_path / "full.sqlite", isolation_level=None, factory=FullDisk)
    with closing(connection), pytest.raises(sqlite3.OperationalError, match="disk is full"):
        schema.migrate(connection, tmp_path)
