"""Owns the tables of the journal's file, and how a file of an earlier batchcap gets those of today.

The file's version is SQLite's own `PRAGMA user_version`: the number of migrations that it has been through. Files made
before there were versions say 0 and may have some of the first tables already.
"""

import sqlite3
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from batchcap.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Migration:
    """One step from a version to the next. A step that has been released never changes.

    Attributes:
        name: what it brings.
        statements: SQL.
    """

    name: str
    statements: tuple[str, ...]


MIGRATIONS = (
    Migration(
        "plan and finished rows",
        (
            """CREATE TABLE IF NOT EXISTS rows (row_index INTEGER PRIMARY KEY, content BLOB NOT NULL)""",
            """CREATE TABLE IF NOT EXISTS sources (
                seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, path BLOB NOT NULL UNIQUE, kind TEXT NOT NULL,
                rows INTEGER NOT NULL, size_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL)""",
            """CREATE TABLE IF NOT EXISTS spans (
                first_row INTEGER PRIMARY KEY, source INTEGER NOT NULL, start INTEGER NOT NULL,
                rows INTEGER NOT NULL)""",
            """CREATE TABLE IF NOT EXISTS shards (
                seq INTEGER PRIMARY KEY, first_row INTEGER NOT NULL, rows INTEGER NOT NULL)""",
        ),
    ),
    Migration(
        "rows that are captioned again",
        (
            """CREATE TABLE IF NOT EXISTS reopened (
                row_index INTEGER PRIMARY KEY, before BLOB NOT NULL, is_changed INTEGER NOT NULL,
                settings TEXT NOT NULL)""",
        ),
    ),
    Migration(
        "rows that were chosen",
        (
            """CREATE TABLE IF NOT EXISTS chosen (
                first_row INTEGER PRIMARY KEY, source INTEGER NOT NULL, start INTEGER NOT NULL,
                rows INTEGER NOT NULL)""",
        ),
    ),
)


def version_of(connection: sqlite3.Connection, path: Path) -> int:
    """How many of the migrations a journal has been through.

    Raises:
        UsageError: a later batchcap made it.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise UsageError(
            f"the journal {path} has version {version}, this batchcap knows versions up to {len(MIGRATIONS)}: use the "
            "batchcap that made it, or another --output"
        )
    return int(version)


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring a journal to the version of today; each step is kept as a whole or not at all.

    Args:
        connection: in autocommit mode.
        path: of the journal, for messages.

    Raises:
        UsageError: a later batchcap made it.
    """
    for version in range(version_of(connection, path), len(MIGRATIONS)):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in MIGRATIONS[version].statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # SQLite itself has rolled back where the disk is full
                connection.execute("ROLLBACK")
            raise


def as_of_today(connection: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    """A journal with the tables of today: the one given, or a migrated copy in memory, and the one given is closed.

    So whoever only reads changes no file.

    Raises:
        UsageError: a later batchcap made it.
    """
    if version_of(connection, path) == len(MIGRATIONS):
        return connection
    with closing(connection), ExitStack() as on_error:
        copy = sqlite3.connect(":memory:", isolation_level=None)
        on_error.callback(copy.close)
        connection.backup(copy)
        migrate(copy, path)
        on_error.pop_all()
        return copy
