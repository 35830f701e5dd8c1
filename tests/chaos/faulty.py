"""The command with a fault inside: `python -m tests.chaos.faulty WHAT WHERE COUNT caption …`.

WHAT happens at the COUNT-th time that WHERE is written: ENOSPC, EIO, or KILL, which ends the process right there. WHERE
is part of a file's name (`part-`, `stats`, `summary`), of its path, where there is a slash in it, or `journal`. With
CLOCK the time of day jumps about instead. Only this process has the fault; its workers are as always.
"""

import errno
import os
import random
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

from batchcap.cli import main


class Fault:
    """Strikes once, at the given time."""

    def __init__(self, what: str, count: int) -> None:
        self._what = what
        self._left = count

    def strikes(self) -> bool:
        """Whether it is time; a KILL does not come back from here."""
        self._left -= 1
        if self._left == 0 and self._what == "KILL":
            os.kill(os.getpid(), signal.SIGKILL)
        return self._left == 0

    @property
    def number(self) -> int:
        """As in `errno`."""
        return getattr(errno, self._what)


def at_files(fault: Fault, where: str) -> None:
    """Let `fsync` of files of a name fail."""
    fsync = os.fsync

    def faulty(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        name = str(path) if "/" in where else path.name
        if where in name and fault.strikes():
            raise OSError(fault.number, os.strerror(fault.number), name)
        fsync(descriptor)

    os.fsync = faulty


def at_journal(fault: Fault) -> None:
    """Let SQLite's commits fail, as it says it."""
    connect = sqlite3.connect
    said = {errno.ENOSPC: "database or disk is full", errno.EIO: "disk I/O error"}

    class Faulty(sqlite3.Connection):
        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            if statement == "COMMIT" and fault.strikes():
                raise sqlite3.OperationalError(said[fault.number])
            return super().execute(statement, *values)

    def connect_faulty(*values: Any, **named: Any) -> sqlite3.Connection:
        made: sqlite3.Connection = connect(*values, factory=Faulty, **named)
        return made

    sqlite3.connect = connect_faulty  # type: ignore[assignment]


def at_clock(seed: int) -> None:
    """Let the time of day jump by up to two days, backwards too."""
    chance, now = random.Random(seed), time.time
    time.time = lambda: now() + chance.uniform(-2, 2) * 86_400


if __name__ == "__main__":
    what, where, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    del sys.argv[1:4]
    if what == "CLOCK":
        at_clock(count)
    elif where == "journal":
        at_journal(Fault(what, count))
    else:
        at_files(Fault(what, count), where)
    main()
