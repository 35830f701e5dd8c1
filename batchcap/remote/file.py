"""Owns files at addresses as Python's file objects: reads become requests of a good size, all of one version."""

import io
import os
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO, cast

from batchcap.core.address import is_web, without_query
from batchcap.core.errors import UsageError
from batchcap.remote.objects import Look, look, read_range, require_ranges

# A reader that goes on asks for twice as much each time; one that jumps gets little more than it wants.
_FIRST_BYTES, _MOST_BYTES = 64 << 10, 4 << 20
# Several read one file at once: its rows, its columns for parts that are written, its index.
_WINDOWS, _FILES = 4, 3


@dataclass(slots=True)
class _Window:
    """Bytes that were read, and how many were asked for at least."""

    start: int
    data: bytes
    ahead_bytes: int

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class _Ranges:
    """What is held of one version of a file: the last windows that somebody read through."""

    def __init__(self, address: str, version: str, size_bytes: int) -> None:
        self._address, self._version, self._size_bytes = address, version, size_bytes
        self._windows: list[_Window] = []  # the last one used is the last
        self._lock = threading.Lock()

    def read(self, start: int, wanted: int) -> bytes:
        """Bytes from `start` on, at least one and at most so many; they are there.

        Raises:
            OSError, NetworkError: as `attempts.attempt`.
        """
        with self._lock:
            window = next((one for one in self._windows if one.start <= start < one.end), None)
            if window is None:
                window = self._fetch(start, wanted)
            else:
                self._windows.remove(window)
            if len(window.data) <= _MOST_BYTES:
                self._windows.append(window)
            skip = start - window.start
            return window.data[skip : skip + wanted]

    def _fetch(self, start: int, wanted: int) -> _Window:
        # Who jumps a little, as from header to header of an archive, gets there by reading.
        before = next((one for one in self._windows if 0 <= start - one.end <= one.ahead_bytes), None)
        if len(self._windows) >= _WINDOWS:
            self._windows.pop(0)
        ahead_bytes = _FIRST_BYTES if before is None else min(_MOST_BYTES, 2 * before.ahead_bytes)
        size = min(max(wanted, ahead_bytes), self._size_bytes - start)
        data = read_range(self._address, start, size, self._version)
        if len(data) < size:
            raise OSError(
                f"{without_query(self._address)} has only {start + len(data)} of its {self._size_bytes} bytes"
            )
        return _Window(start, data, ahead_bytes)


_ranges_of = lru_cache(_FILES)(_Ranges)


class RemoteFile(io.RawIOBase):
    """A file at an address, open for reading.

    Raises:
        UsageError: its server does not tell its size.
        OSError, NetworkError: as `attempts.attempt`.
    """

    def __init__(self, address: str, seen: Look) -> None:
        super().__init__()
        if seen.size_bytes is None:
            raise UsageError(
                f"the server of {without_query(address)} does not tell how large it is: download it, and give the file"
            )
        if is_web(address) and seen.size_bytes > 1:
            require_ranges(address)
        # Without a version nobody knows whether what is held is of the same one.
        make = _ranges_of if seen.version else _Ranges
        self._ranges = make(address, seen.version, seen.size_bytes)
        self._size_bytes, self._position = seen.size_bytes, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The byte that is read next."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Read from another byte on; nothing is asked for yet."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}[whence]
        if base + offset < 0:
            raise OSError("there is nothing before a file's beginning")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer, as far as one request goes."""
        wanted = min(len(buffer), self._size_bytes - self._position)
        if wanted <= 0:
            return 0
        found = self._ranges.read(self._position, wanted)
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)


def open_remote(address: str, seen: Look | None = None) -> BinaryIO:
    """A file at an address, for reading.

    Args:
        address: where it is.
        seen: what was seen of it, if it was looked at; no other version is read.

    Raises:
        UsageError, OSError, NetworkError: as `RemoteFile`.
    """
    file = RemoteFile(address, look(address) if seen is None else seen)
    return cast("BinaryIO", io.BufferedReader(cast("io.RawIOBase", file), _FIRST_BYTES))
