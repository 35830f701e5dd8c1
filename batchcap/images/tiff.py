"""Owns the look into a TIFF before Pillow opens it: how large its tiles are, and how many parts it has."""

from collections.abc import Iterator
from typing import Literal

# Pillow keeps 250 bytes for each strip or tile that is listed, needed or not: these are 64 MiB.
MAX_PARTS = 262_144
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_OFFSETS = frozenset({273, 324})  # of strips, of tiles
_BIG = 43  # the version number of BigTIFF
_TYPE_BYTES = {1: 1, 3: 2, 6: 1, 8: 2, 16: 8, 17: 8, 18: 8}  # the other types of whole numbers have 4
_MAX_ENTRIES = 65_536


def tile_px(encoded: bytes) -> int:
    """The pixels of one tile of a TIFF's first image, by the largest sides that its directory names; 0 without tiles.

    A tile is decoded as a whole, however small the image is. Pillow compares neither, and does not read every tag
    that libtiff reads.
    """
    sides = {_TILE_WIDTH: 0, _TILE_LENGTH: 0}
    for tag, _count, value in _entries(encoded):
        if tag in sides:
            sides[tag] = max(sides[tag], value)
    return sides[_TILE_WIDTH] * sides[_TILE_LENGTH]


def has_too_many_parts(encoded: bytes) -> bool:
    """Whether the first image lists more strips or tiles than a sound one has."""
    return any(tag in _OFFSETS and count > MAX_PARTS for tag, count, _value in _entries(encoded))


def _entries(encoded: bytes) -> Iterator[tuple[int, int, int]]:
    """Tag, count and first value of each entry of the first directory; what lies behind the file's end is 0."""
    order: Literal["little", "big"] = "little" if encoded[:1] == b"I" else "big"

    def number(offset: int, size: int) -> int:
        return int.from_bytes(encoded[offset : offset + size], order)

    wide = 8 if number(2, 2) == _BIG else 4
    start, count_bytes, entry_bytes = number(wide, wide), 8 if wide == 8 else 2, 4 + 2 * wide
    for index in range(min(number(start, count_bytes), _MAX_ENTRIES)):
        entry = start + count_bytes + index * entry_bytes
        size, count, offset = _TYPE_BYTES.get(number(entry + 2, 2), 4), number(entry + 4, wide), entry + 4 + wide
        yield number(entry, 2), count, number(offset if size * count <= wide else number(offset, wide), size)
