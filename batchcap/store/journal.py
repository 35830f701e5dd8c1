"""Owns the journal: an SQLite file with the plan of the job and the rows that are not in a part file yet.

One writer, the run that holds the lock. A transaction is durable when it returns (write-ahead log, fsync).
"""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from batchcap.core.atomic import storage_error, sync
from batchcap.core.errors import StorageError
from batchcap.core.records import CaptionRow, PromptColumns, Shard, Status, with_enums
from batchcap.store.schema import as_of_today, migrate
from batchcap.store.untouched import open_untouched, stamp

# SQLite makes its index of the write-ahead log in pieces of this size.
SPACE_NEEDED_BYTES = 32 * 1024
MAX_LOOKS = 5
T = TypeVar("T")
_FURTHER = "further"  # the key of `extra_prompts` in the journal, as earlier versions wrote it
_COLUMNS = tuple(field.name for field in fields(CaptionRow) if field.name != "extra_prompts")
_to_json = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class ReopenedRow:
    """A row that is captioned again.

    Attributes:
        before: how it has ended.
        is_changed: whether its image is another one now.
        settings: what it is captioned with, where that is not what the job has.
    """

    before: CaptionRow
    is_changed: bool
    settings: str


class Journal:
    """The open journal of a job."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, is_guarded: bool = True) -> None:
        """`is_guarded`: whether SQLite's locks keep writers from what is read."""
        self.path = path
        self._connection = connection
        self.is_guarded = is_guarded

    @classmethod
    def open(cls, path: Path) -> "Journal":
        """Open the journal, or make it; one of an earlier batchcap gets the tables of today.

        Raises:
            UsageError: a later batchcap made it.
            StorageError: it is damaged, or can't be written.
        """
        with _translated(path), ExitStack() as on_error:
            connection = sqlite3.connect(path, isolation_level=None)
            on_error.callback(connection.close)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            migrate(connection, path)
            try:
                sync(path.parent)
            except OSError as error:
                raise storage_error(path, error) from error
            on_error.pop_all()
            return cls(path, connection)

    @classmethod
    def open_to_read(cls, path: Path) -> "Journal":
        """Open an existing journal without touching any file, also while a run is at work.

        Raises:
            UsageError: a later batchcap made it.
            StorageError: it is missing or damaged.
        """
        with _translated(path), ExitStack() as on_error:
            try:
                connection, is_guarded = open_untouched(path)
            except OSError as error:
                raise StorageError(f"can't read the journal {path}: {error.strerror}") from error
            on_error.callback(connection.close)
            current = as_of_today(connection, path)
            current.execute("SELECT count(*) FROM shards")
            on_error.pop_all()
            return cls(path, current, is_guarded=is_guarded)

    @classmethod
    def look_into(cls, path: Path, look: "Callable[[Journal], T]") -> T:
        """What `look` finds in one moment of a journal: that of its first question. No file is touched.

        Raises:
            StorageError: it is missing or damaged, or runs begin all the time while it is looked into.
        """
        for _attempt in range(MAX_LOOKS):
            before = stamp(path)
            is_guarded = False
            try:
                with closing(cls.open_to_read(path)) as journal:
                    is_guarded = journal.is_guarded
                    next(journal.query("BEGIN"), None)
                    found = look(journal)
            except StorageError:
                if is_guarded or stamp(path) == before:
                    raise
            else:
                if is_guarded or stamp(path) == before:
                    return found
        raise StorageError(f"the journal {path} is being written: try again in a moment")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Statements that become durable together, or not at all.

        Raises:
            StorageError: the journal can't be written; nothing of the transaction is kept.
        """
        with _translated(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def query(self, statement: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Rows of a SELECT."""
        with _translated(self.path):
            # Not the cursor itself: a query that an error leaves unfinished would close it after the journal is closed.
            yield from map(tuple, self._connection.execute(statement, values))

    def add(self, records: Sequence[tuple[int, CaptionRow]]) -> int:
        """Keep finished rows; durable when this returns. A row index that is there already keeps its first content.

        Returns:
            How many of them are new.

        Raises:
            StorageError: the journal can't be written.
        """
        if not records:
            return 0
        with self.transaction() as connection:
            cursor = connection.executemany(
                "INSERT OR IGNORE INTO rows VALUES (?, ?)", ((index, _content(row)) for index, row in records)
            )
            return int(cursor.rowcount)

    def shards(self) -> list[Shard]:
        """All shards of the plan, in order."""
        return [Shard(*row) for row in self.query("SELECT seq, first_row, rows FROM shards ORDER BY seq")]

    def rows(self, shard: Shard) -> list[tuple[int, CaptionRow]]:
        """Finished rows of a shard with their row index, in order."""
        found = self.query(
            "SELECT row_index, content FROM rows WHERE row_index >= ? AND row_index < ? ORDER BY 1", *shard.span
        )
        return [(index, _row(content)) for index, content in found]

    def row(self, index: int) -> CaptionRow | None:
        """A finished row, if it is here."""
        found = next(self.query("SELECT content FROM rows WHERE row_index = ?", index), None)
        return None if found is None else _row(found[0])

    def checkpoint(self) -> None:
        """Move what is in the log into the journal's file: a copy may come without the log."""
        next(self.query("PRAGMA wal_checkpoint(PASSIVE)"), None)

    def has_rows(self) -> bool:
        """Whether a finished row is here."""
        return any(True for _row_index in self.query("SELECT row_index FROM rows LIMIT 1"))

    def has_captions(self) -> bool:
        """Whether a finished row that is here has a caption."""
        return any(_row(content).status is Status.OK for (content,) in self.query("SELECT content FROM rows"))

    def shard_of(self, index: int) -> Shard:
        """The shard that a row of the plan is in."""
        found = self.query(
            "SELECT seq, first_row, rows FROM shards WHERE first_row <= ? ORDER BY seq DESC LIMIT 1", index
        )
        return Shard(*next(found))

    def done_indexes(self, shard: Shard) -> set[int]:
        """Indexes of a shard's finished rows."""
        found = self.query("SELECT row_index FROM rows WHERE row_index >= ? AND row_index < ?", *shard.span)
        return {index for (index,) in found}

    def reopen(self, rows: Sequence[tuple[int, CaptionRow]], settings: str, *, is_changed: bool = False) -> None:
        """Rows that have ended are to be captioned again, whether they are here or in a part file, which stays.

        Args:
            rows: row index, and how the row has ended.
            settings: of the run, where they are not the job's.
            is_changed: whether the reason is that their image is another one now.

        Raises:
            StorageError: the journal can't be written.
        """
        with self.transaction() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO reopened VALUES (?, ?, ?, ?)",
                ((index, _content(row), is_changed, settings) for index, row in rows),
            )
            connection.executemany("DELETE FROM rows WHERE row_index = ?", ((index,) for index, _row in rows))

    def reopened_row(self, index: int) -> ReopenedRow | None:
        """Why and as what a row was reopened, if it was."""
        found = next(self.query("SELECT before, is_changed, settings FROM reopened WHERE row_index = ?", index), None)
        return None if found is None else ReopenedRow(_row(found[0]), bool(found[1]), found[2])

    def reopened(self, shard: Shard) -> set[int]:
        """Indexes of a shard's rows that are captioned again, whether they have ended again or not."""
        found = self.query("SELECT row_index FROM reopened WHERE row_index >= ? AND row_index < ?", *shard.span)
        return {index for (index,) in found}

    def reopened_settings(self, shard: Shard) -> list[str]:
        """The settings, other than the job's, of those of a shard's rows that have ended again."""
        found = self.query(
            "SELECT DISTINCT settings FROM reopened JOIN rows USING (row_index) "
            "WHERE row_index >= ? AND row_index < ? AND settings != '' ORDER BY 1",
            *shard.span,
        )
        return [settings for (settings,) in found]

    def has_reopened(self) -> bool:
        """Whether any row is captioned again."""
        return any(True for _row in self.query("SELECT 1 FROM reopened LIMIT 1"))

    def waiting(self, settings: str | None = None) -> int:
        """Rows that are captioned again and have not ended yet; of a run with these settings, or of any."""
        chosen = "" if settings is None else " AND settings = ?"
        statement = f"SELECT count(*) FROM reopened WHERE row_index NOT IN (SELECT row_index FROM rows){chosen}"  # noqa: S608 - ours
        (count,) = next(self.query(statement, *([] if settings is None else [settings])))
        return int(count)

    def drop_pending(self, but: str) -> int:
        """Give up rows that wait to be captioned with settings other than the job's and these.

        A run with settings of its own reopens rows of parts only, which hold them as they were.

        Returns:
            How many they were.

        Raises:
            StorageError: the journal can't be written.
        """
        given_up = "settings NOT IN ('', ?) AND row_index NOT IN (SELECT row_index FROM rows)"
        with self.transaction() as connection:
            (count,) = connection.execute(f"SELECT count(*) FROM reopened WHERE {given_up}", (but,)).fetchone()  # noqa: S608 - ours
            connection.execute(f"DELETE FROM reopened WHERE {given_up}", (but,))  # noqa: S608 - ours
            return int(count)

    def forget(self, shard: Shard) -> None:
        """Drop a shard's rows: its part file holds them now.

        Raises:
            StorageError: the journal can't be written.
        """
        with self.transaction() as connection:
            for table in ("rows", "reopened"):
                connection.execute(
                    f"DELETE FROM {table} WHERE row_index >= ? AND row_index < ?",  # noqa: S608 - our names
                    shard.span,
                )


def _content(row: CaptionRow) -> bytes:
    r"""A row as JSON, nulls left out. What is not valid text (a file name in a message, say) is kept as `\udcNN`."""
    values = {name: value for name in _COLUMNS if (value := getattr(row, name)) is not None}
    if row.extra_prompts:
        values[_FURTHER] = [asdict(columns) for columns in row.extra_prompts]
    try:
        return _to_json(values).encode()
    except UnicodeEncodeError:
        for name, value in values.items():
            if isinstance(value, str):
                values[name] = value.encode(errors="backslashreplace").decode()
        return _to_json(values).encode()


def _row(content: bytes) -> CaptionRow:
    values = with_enums(json.loads(content))
    extra = values.pop(_FURTHER, ())
    return CaptionRow(**values, extra_prompts=tuple(PromptColumns(**with_enums(columns)) for columns in extra))


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """SQLite's errors as errors a person can act on."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        text = str(error)
        if "malformed" in text or "not a database" in text:
            raise StorageError(
                f"the journal {path} is damaged ({text}). The part files are intact; caption the rest with another "
                "--output"
            ) from error
        advice = f"{text}. Check the free space, the quota, `ulimit -f` and whether the folder can be written"
        # SQLite tells a full disk from other errors where it writes its file, but not where it makes its index.
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL or _is_disk_full(path):
            advice = "the disk is full: free some space"
        raise StorageError(
            f"can't use the journal {path}: {advice}. No finished row is lost; run the same command again to go on."
        ) from error


def _is_disk_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < SPACE_NEEDED_BYTES
    except OSError:
        return False
