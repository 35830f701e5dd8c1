"""Owns the look into a TIFF before Pillow opens it: how large its tiles are, and how many parts it has."""

from collections.abc import Iterator

from batchcap.inputs.tiff_tags import TiffEntry, TiffFile

# Pillow keeps 250 bytes for each strip or tile that is listed, needed or not: these are 64 MiB.
MAX_PARTS = 262_144
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_OFFSETS = frozenset({273, 324})  # of strips, of tiles


def tile_px(encoded: bytes, directory: int | None = None) -> int:
    """The pixels of one tile of a TIFF's image, by the largest sides that its directory names; 0 without tiles.

    A tile is decoded as a whole, however small the image is. Pillow compares neither, and does not read every tag
    that libtiff reads.

    Args:
        encoded: the file.
        directory: where it begins; None: it is the first one.
    """
    sides = {_TILE_WIDTH: 0, _TILE_LENGTH: 0}
    for entry in _entries(encoded, directory):
        if entry.tag in sides:
            sides[entry.tag] = max(sides[entry.tag], entry.value)
    return sides[_TILE_WIDTH] * sides[_TILE_LENGTH]


def has_too_many_parts(encoded: bytes) -> bool:
    """Whether the first image lists more strips or tiles than a sound one has."""
    return any(entry.tag in _OFFSETS and entry.count > MAX_PARTS for entry in _entries(encoded))


def _entries(encoded: bytes, directory: int | None = None) -> Iterator[TiffEntry]:
    file = TiffFile(encoded)
    return file.entries(file.first if directory is None else directory)
