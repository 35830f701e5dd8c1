"""Owns the lock of a job folder: one run at a time, freed by the kernel when its process ends, however it ends.

An flock on a local file system. On network file systems it is as good as their server's locking.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from batchcap.errors import LockedError
from batchcap.store.atomic import storage_error, write_atomic
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
        return f"process {self.pid} on {self.host}, since {self.start}"


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
        # Beside the lock file, not in it: the lock library truncates that one.
        holder = Holder(socket.gethostname(), os.getpid(), datetime.now(UTC).isoformat(timespec="seconds"))
        write_atomic(_holder_path(folder), (json.dumps(asdict(holder)) + "\n").encode())
        yield
    finally:
        lock.release()


def read_holder(folder: JobFolder) -> Holder | None:
    """Who is at work on a job folder now, or None."""
    try:
        with folder.lock_path.open("rb") as file:
            # Shared, so that two who look don't see each other; freed with the file.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _recorded_holder(folder) or Holder("unknown", 0, "unknown")
    except OSError:  # no run was here yet, or the file may not be read
        return None
    return None


def _holder_path(folder: JobFolder) -> Path:
    return folder.lock_path.with_name("holder.json")


def _recorded_holder(folder: JobFolder) -> Holder | None:
    try:
        return Holder(**json.loads(_holder_path(folder).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
