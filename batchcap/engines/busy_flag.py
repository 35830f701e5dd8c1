"""Owns the sign that the vision worker is at work, which decoders with free slots wait for.

A decode step of few rows costs nearly as much as one of many. While the encoder is at work more rows are about to come,
and what decoders leave of the cores it can use.
"""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def make_sign_file() -> int:
    """The file of a `BusyFlag`, to be inherited by vision worker and decoders; the caller closes it."""
    return os.memfd_create("batchcap-sign")


class BusyFlag:
    """Up while any thread of a process is inside of `hold`; comes down when that process ends, however it does.

    Args:
        file: from `make_sign_file`; None: a sign that nobody sees and that is never up.
    """

    def __init__(self, file: int | None) -> None:
        self._file = file
        self._inside = 0
        self._counting = threading.Lock()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Put the sign up for as long as the context lasts; for several threads."""
        self._enter(1)
        try:
            yield
        finally:
            self._enter(-1)

    def _enter(self, threads: int) -> None:
        """So many threads more or fewer are inside; the file's lock is the process's, so they hold it together."""
        with self._counting:
            self._inside += threads
            if self._file is not None:
                fcntl.lockf(self._file, fcntl.LOCK_EX if self._inside else fcntl.LOCK_UN)

    def is_set(self) -> bool:
        """Whether another process has put it up."""
        if self._file is None:
            return False
        try:
            fcntl.lockf(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.lockf(self._file, fcntl.LOCK_UN)
        return False
