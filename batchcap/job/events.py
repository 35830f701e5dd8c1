"""Owns the file of events: what happened in a run, a line of JSON each, appended and never rewritten."""

import fcntl
import json
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from batchcap.core.atomic import storage_error
from batchcap.core.errors import StorageError
from batchcap.job.summary import now_iso

# How long one who writes into the same file is waited for.
PATIENCE_S, POLL_S = 1.0, 0.01


class EventLog:
    """Appends events; several runs may write into one file.

    The file is opened for each event, so that it may be moved away while a run is at work.

    Args:
        path: of it; its folder is there.
        job: told in every line.
    """

    def __init__(self, path: Path, job: str) -> None:
        self.path = path
        self._job = job

    def add(self, event: str, **fields: Any) -> None:
        """Append an event; the line is whole in the file when this returns.

        Raises:
            StorageError: it can't be written.
        """
        content = {"time": now_iso(), "event": event, "job": self._job, "pid": os.getpid(), **fields}
        # ASCII alone: whatever is in a name is an escape, and half a character at the end of a line can't be.
        line = (json.dumps(content) + "\n").encode("ascii")
        try:
            # A pipe that nobody reads is refused instead of waited for.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
            descriptor = os.open(self.path, flags, 0o666)
        except OSError as error:
            raise storage_error(self.path, error) from error
        try:
            if _is_alone(descriptor):
                line = self._end_of_cut_line() + line
            written = os.write(descriptor, line)
            with suppress(OSError):  # not of a device
                os.fsync(descriptor)
        except OSError as error:
            raise storage_error(self.path, error) from error
        finally:
            os.close(descriptor)
        if written < len(line):
            raise StorageError(f"can't write {self.path}: the disk is full: free some space")

    def _end_of_cut_line(self) -> bytes:
        """The end of a line that a full disk or a kill has cut, so that the next one begins as one."""
        with suppress(OSError):  # it may only be written
            status = self.path.stat()
            if stat.S_ISREG(status.st_mode) and status.st_size:
                with self.path.open("rb") as file:
                    file.seek(-1, os.SEEK_END)
                    return b"" if file.read() == b"\n" else b"\n"
        return b""


def _is_alone(descriptor: int) -> bool:
    """Whether nobody else is writing a line now, and until the file is closed; who hangs is not waited for."""
    for _look in range(round(PATIENCE_S / POLL_S)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(POLL_S)
        except OSError:  # a file system without locks
            return True
        else:
            return True
    return False
