"""Owns what batchcap has written outside of the job folder: so it never takes a file of somebody else for its own.

A file is noted before it is written, with what was there before. So whatever a kill leaves behind is known: the file as
it was, or as it was to be.
"""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from batchcap.core.errors import StorageError
from batchcap.store.folder import JobFolder

_TABLES = """
CREATE TABLE IF NOT EXISTS files (
    path BLOB PRIMARY KEY, row_index INTEGER NOT NULL, digest TEXT NOT NULL, before BLOB,
    texts TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS files_of_rows ON files (row_index);
CREATE TABLE IF NOT EXISTS parts (
    target TEXT NOT NULL, seq INTEGER NOT NULL, stamp TEXT NOT NULL, written TEXT NOT NULL,
    PRIMARY KEY (target, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS objects (
    address TEXT PRIMARY KEY, digest TEXT NOT NULL, size_bytes INTEGER NOT NULL, version TEXT NOT NULL,
    coming TEXT NOT NULL) WITHOUT ROWID;
"""
_BUSY_S = 60.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that batchcap has written or was about to write.

    Attributes:
        path: as bytes of the file system.
        row_index: the row of the job whose caption it holds; -1: of many.
        digest: of its content.
        before: what was there before batchcap came; None: nothing.
        texts: digests of the texts that batchcap has ever put into it, with spaces between, where others write it, too.
    """

    path: bytes
    row_index: int
    digest: str
    before: bytes | None
    texts: str = ""


@dataclass(frozen=True, slots=True)
class PutObject:
    """An object that batchcap has put at an address or was about to put.

    Attributes:
        address: where.
        digest: of the content that was put; empty: none yet.
        size_bytes: of that.
        version: which the store gave it.
        coming: digest of the content that was about to be put, whose version is not known; empty: none.
    """

    address: str
    digest: str
    size_bytes: int
    version: str
    coming: str = ""


def digest_of(content: bytes) -> str:
    """What an entry calls this content."""
    return hashlib.sha256(content).hexdigest()


class Ledger:
    """The entries of one job; see the module. Close it at the end."""

    def __init__(self, folder: JobFolder) -> None:
        self._path = folder.state_path / "outputs.sqlite"
        self._opened: sqlite3.Connection | None = None

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._opened is None:
                self._opened = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
                self._opened.execute("PRAGMA journal_mode=WAL")
                self._opened.execute("PRAGMA synchronous=FULL")
                self._opened.executescript(_TABLES)
            yield self._opened
        except sqlite3.Error as error:
            raise StorageError(
                f"can't write {self._path} ({error}), in which batchcap keeps what it has written outside of the job "
                "folder: check the disk and the permissions, and delete the file if it is damaged"
            ) from error

    def close(self) -> None:
        """Nothing more is asked."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _noted(self, statement: str, keys: Iterable[object]) -> Iterator[tuple[Any, ...]]:
        """What a statement finds for each of several keys."""
        with self._connection() as connection:
            for key in keys:
                yield from connection.execute(statement, (key,))

    def entries(self, paths: Iterable[bytes]) -> dict[bytes, Entry]:
        """Those of the paths that are noted.

        Raises:
            StorageError: the file can't be opened, or is damaged.
        """
        return {values[0]: Entry(*values) for values in self._noted("SELECT * FROM files WHERE path = ?", paths)}

    def paths_of(self, low: int, high: int) -> list[bytes]:
        """The files that are noted for the rows from `low` to below `high`, whatever form they are of.

        Raises:
            StorageError: the file can't be opened, or is damaged.
        """
        query = "SELECT path FROM files WHERE row_index >= ? AND row_index < ?"
        with self._connection() as connection:
            return [path for (path,) in connection.execute(query, (low, high))]

    def note(self, entries: Iterable[Entry]) -> None:
        """Keep entries, all or none; durable when it returns.

        Raises:
            StorageError: the file can't be written.
        """
        rows = [(one.path, one.row_index, one.digest, one.before, one.texts) for one in entries]
        self._all_or_none("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)

    def part(self, target: str, seq: int) -> tuple[str, str] | None:
        """Stamp of a part when it was written to a target, and what was written; None where it was not.

        Raises:
            StorageError: the file can't be opened, or is damaged.
        """
        query = "SELECT stamp, written FROM parts WHERE target = ? AND seq = ?"
        with self._connection() as connection:
            found: tuple[str, str] | None = connection.execute(query, (target, seq)).fetchone()
            return found

    def note_part(self, target: str, seq: int, stamp: str, written: str) -> None:
        """A part is written to a target.

        Raises:
            StorageError: the file can't be written.
        """
        with self._connection() as connection:
            connection.execute("INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?)", (target, seq, stamp, written))

    def parts(self, target: str) -> list[int]:
        """The numbers of the parts that are written to a target.

        Raises:
            StorageError: the file can't be opened, or is damaged.
        """
        with self._connection() as connection:
            return [seq for (seq,) in connection.execute("SELECT seq FROM parts WHERE target = ?", (target,))]

    def forget_part(self, target: str, seq: int) -> None:
        """A part is no longer written to a target.

        Raises:
            StorageError: the file can't be written.
        """
        with self._connection() as connection:
            connection.execute("DELETE FROM parts WHERE target = ? AND seq = ?", (target, seq))

    def objects(self, addresses: Iterable[str]) -> dict[str, PutObject]:
        """Those of the objects that are noted.

        Raises:
            StorageError: the file can't be opened, or is damaged.
        """
        noted = self._noted("SELECT * FROM objects WHERE address = ?", addresses)
        return {values[0]: PutObject(*values) for values in noted}

    def note_objects(self, objects: Iterable[PutObject]) -> None:
        """Keep what is known of objects, all or nothing; durable when it returns.

        Raises:
            StorageError: the file can't be written.
        """
        rows = [(one.address, one.digest, one.size_bytes, one.version, one.coming) for one in objects]
        self._all_or_none("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?)", rows)

    def forget_objects(self, addresses: Iterable[str]) -> None:
        """Objects are removed.

        Raises:
            StorageError: the file can't be written.
        """
        self._all_or_none("DELETE FROM objects WHERE address = ?", [(one,) for one in addresses])

    def _all_or_none(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.executemany(statement, rows)
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
