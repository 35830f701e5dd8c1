"""Owns files at addresses as Python's file objects: reads become requests of a good size, all of one version."""

import io
import os
from typing import BinaryIO, cast

from batchcap.core.errors import UsageError
from batchcap.remote.objects import Look, look, read_range

# A reader that goes on asks for twice as much each time; one that jumps gets little more than it wants.
_FIRST_BYTES, _MOST_BYTES = 64 << 10, 8 << 20


class RemoteFile(io.RawIOBase):
    """A file at an address, open for reading. What was read last is held, up to 8 MiB.

    Raises:
        UsageError: its server does not tell its size.
        OSError, NetworkError: as `attempts.attempt`.
    """

    def __init__(self, address: str, seen: Look) -> None:
        super().__init__()
        if seen.size_bytes is None:
            raise UsageError(f"the server of {address} does not tell how large it is: download it, and give the file")
        self._address, self._version, self._size = address, seen.version, seen.size_bytes
        self._position = 0
        self._held, self._held_from = b"", 0
        self._ahead_bytes = _FIRST_BYTES

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
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("there is nothing before a file's beginning")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer, as far as one request goes."""
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        skip = self._position - self._held_from
        if not 0 <= skip < len(self._held):
            self._fetch(wanted)
            skip = 0
        found = self._held[skip : skip + wanted]
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)

    def _fetch(self, wanted: int) -> None:
        # Who jumps a little, as from header to header of an archive, gets there by reading.
        goes_on = 0 <= self._position - self._held_from - len(self._held) <= self._ahead_bytes
        self._ahead_bytes = min(_MOST_BYTES, self._ahead_bytes * 2) if goes_on else _FIRST_BYTES
        size = min(max(wanted, self._ahead_bytes), self._size - self._position)
        self._held = read_range(self._address, self._position, size, self._version)
        self._held_from = self._position
        if len(self._held) < size:
            raise OSError(f"{self._address} has ended after {self._position + len(self._held)} of {self._size} bytes")


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
