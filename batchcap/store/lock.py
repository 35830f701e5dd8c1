"""Owns the lock of a job folder: one run at a time, freed by the kernel when its process ends, however it ends.

And the mark of who holds it: a mark without a holder is that of a run that was killed.

An flock on a local file system. On network file systems it is as good as their server's locking.
"""

import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from batchcap.core.atomic import storage_error, write_atomic
from batchcap.core.errors import LockedError, StorageError
from batchcap.store.folder import JobFolder

# `status` looks at the lock for an instant: a run that starts in that instant must not be turned away.
ACQUIRE_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock."""

    host: str
    pid: int
    start: str

    def __str__(self) -> str:
        """As in `process 123 on host, since 2026-01-01T00:00:00`."""
        start = re.sub(r"\.\d+", "", self.start)  # milliseconds are for comparisons
        return f"process {self.pid} on {self.host}, since {start}"


@dataclass(frozen=True, slots=True)
class LastRun:
    """What is known of the last run of a job.

    Attributes:
        holder: the run, while it is at work.
        killed: the run, where it ended without a word: by `kill -9`, lack of memory or a power cut.
        summary: what the last run that ended in good order has left, if it can be read.
    """

    holder: Holder | None
    killed: Holder | None
    summary: dict[str, Any] | None


@contextmanager
def job_lock(folder: JobFolder) -> Iterator[None]:
    """Hold the lock of a job folder.

    Raises:
        LockedError: another run holds it.
        StorageError: the folder can't be written.
    """
    lock = FileLock(str(folder.lock_path))
    try:
        lock.acquire(timeout=ACQUIRE_TIMEOUT_S, poll_interval=ACQUIRE_TIMEOUT_S / 20)
    except Timeout:
        who = _recorded_holder(folder)
        raise LockedError(
            f"another run is at work on {folder.path}"
            + (f" ({who})" if who else "")
            + ": wait for it, or stop it first"
        ) from None
    except OSError as error:
        raise storage_error(folder.lock_path, error) from None
    try:
        with _named_holder(folder):
            yield
    finally:
        lock.release()


@contextmanager
def _named_holder(folder: JobFolder) -> Iterator[None]:
    """Say who holds the lock, for as long as it is held: what is left without a holder is the mark of a killed run."""
    path = _holder_path(folder)  # beside the lock file, not in it: the lock library truncates that one
    before = _killed_run(folder)
    holder = Holder(socket.gethostname(), os.getpid(), datetime.now(UTC).isoformat(timespec="milliseconds"))
    _write_holder(path, holder)
    try:
        yield
    finally:
        with suppress(OSError, StorageError):  # what ended this run may stop this too
            if before is not None and not _has_ended(folder, holder):  # refused before it began: the mark stays
                _write_holder(path, before)
            else:
                path.unlink(missing_ok=True)


def _write_holder(path: Path, holder: Holder) -> None:
    write_atomic(path, (json.dumps(asdict(holder)) + "\n").encode())


def read_holder(folder: JobFolder) -> Holder | None:
    """Who is at work on a job folder now, or None."""
    return read_last_run(folder).holder


def read_last_run(folder: JobFolder) -> LastRun:
    """Who is at work on a job folder now, or how the last run ended."""
    try:
        with folder.lock_path.open("rb") as file:
            # Shared, so that two who look don't see each other; freed with the file. No run begins meanwhile.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return LastRun(None, _killed_run(folder), read_summary(folder))
    except BlockingIOError:
        return LastRun(_recorded_holder(folder) or Holder("unknown", 0, "unknown"), None, read_summary(folder))
    except OSError:  # no run was here yet, or the file may not be read
        return LastRun(None, None, read_summary(folder))


def _killed_run(folder: JobFolder) -> Holder | None:
    """The run that left its name and no summary; nobody holds the lock, or we do and have not written our name."""
    holder = _recorded_holder(folder)
    return None if holder is None or _has_ended(folder, holder) else holder


def _has_ended(folder: JobFolder, holder: Holder) -> bool:
    """Whether a summary has been written since a run began."""
    try:
        written = datetime.fromtimestamp(folder.summary_path.stat().st_mtime, UTC)
    except OSError:
        return False
    # Earlier summaries have no such field.
    ended = _time_of((read_summary(folder) or {}).get("ended_at")) or written
    began = _time_of(holder.start)
    return began is None or ended >= began


def _time_of(text: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return None if time is None or time.tzinfo is None else time


def read_summary(folder: JobFolder) -> dict[str, Any] | None:
    """What the last run that ended in good order has left; None where there is nothing that can be read."""
    try:
        content = json.loads(folder.summary_path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _holder_path(folder: JobFolder) -> Path:
    return folder.lock_path.with_name("holder.json")


def _recorded_holder(folder: JobFolder) -> Holder | None:
    try:
        content = json.loads(_holder_path(folder).read_text(encoding="utf-8"))
        return Holder(str(content["host"]), int(content["pid"]), str(content["start"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
