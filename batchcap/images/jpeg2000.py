"""Owns the one look into a JPEG 2000 file that Pillow does not take: into how many parts OpenJPEG would cut it.

Each tile, precinct and code block has tables of its own, whether there is anything in it or not: cut into parts of one
pixel, an image takes some hundred times its size, from a file of 150 bytes.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

# OpenJPEG keeps 6.6 KB for a tile, up to 600 bytes for a block and 2 for a packet, so these are 103, 57 and 32 MiB.
# Sound images have tiles of 65,536 pixels and more, blocks of 4096, and a handful of packets for each tile.
MAX_TILES = 16_384
MAX_BLOCKS = 100_000
MIN_BLOCK_PX = 1024  # of images that need more blocks than that
MAX_PACKETS = 16 * 1024 * 1024

_SIZE, _STYLE, _COMPONENT_STYLE = b"\xff\x51", b"\xff\x52", b"\xff\x53"
# There is one size in a sound file, and hardly more than one style.
_MAX_PAIRS = 1000


@dataclass(frozen=True, slots=True)
class _Size:
    across: int
    down: int
    tiles: int
    components: int

    def cells(self, across: int, down: int) -> int:
        """How many rectangles cover it; their sides are given as powers of two."""
        return -(-self.across >> across) * -(-self.down >> down)


@dataclass(frozen=True, slots=True)
class _Style:
    """How tiles are coded: sides as powers of two, those of the precincts for each resolution, the finest first."""

    layers: int
    block: tuple[int, int]
    precincts: tuple[tuple[int, int], ...]


def has_too_many_parts(encoded: bytes) -> bool:
    """Whether headers in the file, were they the image's, ask for more parts than a sound one has.

    They are looked for everywhere: a tile's may change what the image's own say.
    """
    sizes, styles = set(_sizes(encoded)), set(_styles(encoded))
    return (
        len(sizes) * len(styles) > _MAX_PAIRS
        or any(size.tiles > MAX_TILES for size in sizes)
        or any(_is_too_fine(size, style) for size, style in product(sizes, styles))
    )


def _is_too_fine(size: _Size, style: _Style) -> bool:
    resolutions = len(style.precincts)
    blocks = precincts = 0
    for level, (across, down) in enumerate(style.precincts):
        # But for the coarsest resolution there are three bands of half its sides, and blocks lie within one of them.
        bands, halved = (3, 1) if level < resolutions - 1 else (1, 0)
        block_across, block_down = min(across, style.block[0] + halved), min(down, style.block[1] + halved)
        blocks += bands * size.cells(level + block_across, level + block_down)
        precincts = max(precincts, size.cells(level + across, level + down))
    packets = style.layers * size.components * resolutions * precincts
    most_blocks = MAX_BLOCKS + size.across * size.down * size.components // MIN_BLOCK_PX
    return size.components * blocks > most_blocks or packets > MAX_PACKETS


def _sizes(encoded: bytes) -> Iterator[_Size]:
    for body in _segments(encoded, _SIZE):
        if len(body) < 36:
            continue
        right, bottom, left, top, width, height, tiles_left, tiles_top, components = struct.unpack_from(">8IH", body, 2)
        if len(body) == 36 + 3 * components and components and width and height:
            tiles = -(-(right - tiles_left) // width) * -(-(bottom - tiles_top) // height)
            yield _Size(right - left, bottom - top, tiles, components)


def _styles(encoded: bytes) -> Iterator[_Style]:
    for body in _segments(encoded, _STYLE):
        if len(body) >= 10:
            yield from _style(int.from_bytes(body[2:4], "big"), body[0], body[5:])
    for body in _segments(encoded, _COMPONENT_STYLE):
        if len(body) >= 7:
            yield from _style(1, body[1], body[2:])


def _style(layers: int, flags: int, body: bytes) -> Iterator[_Style]:
    """The style, if it is one."""
    levels, block = body[0], (body[1] + 2, body[2] + 2)
    sides = body[5:] if flags & 1 else b"\xff" * (levels + 1)
    if len(sides) == levels + 1 and levels <= 32 and sum(block) <= 12:
        yield _Style(layers, block, tuple((side & 15, side >> 4) for side in reversed(sides)))


def _segments(encoded: bytes, marker: bytes) -> Iterator[bytes]:
    """What follows each of the markers, by the length that it begins with."""
    offset = encoded.find(marker)
    while offset >= 0:
        length = int.from_bytes(encoded[offset + 2 : offset + 4], "big")
        yield encoded[offset + 4 : offset + 2 + length]
        offset = encoded.find(marker, offset + 1)
