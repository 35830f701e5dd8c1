"""Owns the reading of a TIFF's directories, of bytes that nobody has checked: entries, and where directories lie."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

TIFF = (b"II*\0", b"II\0*", b"II+\0", b"MM\0*", b"MM*\0", b"MM\0+")
_BIG = 43  # the version number of BigTIFF
_TYPE_BYTES = {1: 1, 3: 2, 6: 1, 8: 2, 16: 8, 17: 8, 18: 8}  # the other types of whole numbers have 4
_MAX_ENTRIES = 65_536


@dataclass(frozen=True, slots=True)
class TiffEntry:
    """An entry of a directory.

    Attributes:
        tag: what it says.
        count: how many values it says that it has.
        value: the first of them.
        offset: byte where the values lie.
        size: bytes of one value.
    """

    tag: int
    count: int
    value: int
    offset: int
    size: int


class TiffFile:
    """The bytes of a TIFF or BigTIFF; what lies behind their end reads as 0.

    Args:
        encoded: a file's bytes, or the first of them.
    """

    def __init__(self, encoded: bytes) -> None:
        self._encoded = encoded
        self._order: Literal["little", "big"] = "little" if encoded[:1] == b"I" else "big"
        self._wide = 8 if self.number(2, 2) == _BIG else 4
        self._count_bytes, self._entry_bytes = (8, 20) if self._wide == 8 else (2, 12)
        self.first = self.number(self._wide, self._wide)  # where the first directory begins

    def number(self, offset: int, size: int) -> int:
        """A whole number."""
        return int.from_bytes(self._encoded[offset : offset + size], self._order)

    def entries(self, directory: int, most: int = _MAX_ENTRIES) -> Iterator[TiffEntry]:
        """Of the directory that begins at a byte, at most so many."""
        for index in range(min(self.number(directory, self._count_bytes), most)):
            entry = directory + self._count_bytes + index * self._entry_bytes
            size, count = _TYPE_BYTES.get(self.number(entry + 2, 2), 4), self.number(entry + 4, self._wide)
            offset = entry + 4 + self._wide
            if size * count > self._wide:
                offset = self.number(offset, self._wide)
            yield TiffEntry(self.number(entry, 2), count, self.number(offset, size), offset, size)

    def following(self, directory: int) -> int:
        """Where the directory after one begins; 0: there is none."""
        count = self.number(directory, self._count_bytes)
        return self.number(directory + self._count_bytes + count * self._entry_bytes, self._wide)

    def values(self, entry: TiffEntry, most: int) -> list[int]:
        """All values of an entry, at most so many."""
        return [self.number(entry.offset + place * entry.size, entry.size) for place in range(min(entry.count, most))]
