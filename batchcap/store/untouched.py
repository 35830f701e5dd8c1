"""Owns how an SQLite file is opened to look into it, whoever writes it, with no file beside it made or changed.

SQLite itself makes its write-ahead log and the log's index where they are missing, and writes into the index where
another process has left one. So the way of opening depends on what is there:

* no log: nobody has written since the file was closed in good order. It is opened as one that can't change.
* log and index: a run is at work, or was killed. The index is opened for reading only; SQLite then makes one of its own
  in memory where no run is at work. Only beside a run that leaves no place for one more reader is it opened as SQLite
  would: readers and writers share the index then, as is meant.
* a log alone, as a copied folder may have it: copies of both files are opened.
"""

import shutil
import sqlite3
import tempfile
from contextlib import ExitStack
from pathlib import Path

_FIRST_LOOK = "SELECT count(*) FROM sqlite_master"


def open_untouched(path: Path) -> tuple[sqlite3.Connection, bool]:
    """A connection that reads an SQLite file and leaves no trace.

    Returns:
        The connection, and whether SQLite's locks keep writers from what it reads. Where they don't, what was read
        counts only if the stamp (`stamp`) is the same before the opening and after the reading.

    Raises:
        sqlite3.DatabaseError: the file is missing or damaged.
        OSError: it can't be copied.
    """
    log, index = (path.with_name(f"{path.name}-{kind}") for kind in ("wal", "shm"))
    if not log.exists():
        return _open(path, "immutable=1"), False
    if index.exists():
        try:
            return _open(path, "readonly_shm=1"), True
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
                raise
            return _open(path), True
    with tempfile.TemporaryDirectory() as folder:  # the files stay open after it is gone
        shutil.copy(log, folder)
        return _open(Path(shutil.copy(path, folder))), False


def _open(path: Path, *options: str) -> sqlite3.Connection:
    query = "&".join(("mode=ro", *options))
    with ExitStack() as on_error:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?{query}", uri=True, isolation_level=None)
        on_error.callback(connection.close)
        connection.execute(_FIRST_LOOK).fetchone()
        on_error.pop_all()
        return connection


def stamp(path: Path) -> list[tuple[int, int, int] | None]:
    """What changes where an SQLite file or its log does."""
    return [_stamp(one) for one in (path, path.with_name(f"{path.name}-wal"))]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
