"""The size of a TIFF's tiles, in every way that a directory may be written."""

import struct

import pytest

from batchcap.images.tiff import tile_px
from tests.images.samples import encode, scene

SHORT, LONG, LONG8, SLONG8, IFD8 = 3, 4, 16, 17, 18
BYTES = {SHORT: 2, LONG: 4, LONG8: 8, SLONG8: 8, IFD8: 8}


def directory(order: str, is_big: bool, entries: list[tuple[int, int, int]]) -> bytes:
    """A TIFF of tags, types and values alone; values that are too long for their entry come after the directory."""
    wide = 8 if is_big else 4
    codes = {2: "H", 4: "I", 8: "Q"}
    head = (b"II" if order == "<" else b"MM") + struct.pack(
        order + ("HHHQ" if is_big else "HI"), *((43, 8, 0, 16) if is_big else (42, 8))
    )
    start = len(head) + (8 if is_big else 2)
    behind = start + len(entries) * (4 + 2 * wide)
    table = outside = b""
    for tag, kind, value in entries:
        packed = struct.pack(order + codes[BYTES[kind]], value)
        if BYTES[kind] > wide:
            packed, outside = struct.pack(order + codes[wide], behind + len(outside)), outside + packed
        table += struct.pack(order + "HH" + codes[wide], tag, kind, 1) + packed.ljust(wide, b"\xee")
    return head + struct.pack(order + ("Q" if is_big else "H"), len(entries)) + table + outside


@pytest.mark.parametrize("kind", BYTES)
@pytest.mark.parametrize("is_big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_sides_of_every_type_are_read(order: str, is_big: bool, kind: int) -> None:
    assert tile_px(directory(order, is_big, [(256, LONG, 16), (322, kind, 30_000), (323, kind, 20_000)])) == 600_000_000


def test_of_tags_that_come_twice_the_larger_counts() -> None:
    twice = [(322, LONG, 16), (322, LONG, 30_000), (323, LONG, 30_000), (323, LONG, 16)]
    assert tile_px(directory("<", False, twice)) == 900_000_000


def test_without_tiles_there_is_nothing_to_count() -> None:
    assert tile_px(encode(scene(), "TIFF")) == 0
    for data in (
        b"",
        b"II*\0",
        b"MM\0*\xff\xff\xff\xff",
        b"II+\0\x08\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff" + b"\xff" * 40,
    ):
        assert tile_px(data) == 0
