"""Which JPEG 2000 files are cut into too many parts: by tiles, precincts, code blocks or packets."""

import struct

import pytest

from batchcap.images.jpeg2000 import MAX_TILES, has_too_many_parts
from tests.hostile.bombs import codestream
from tests.images.samples import encode, noise

SIDE_PX = 1000


def test_sound_images_have_few() -> None:
    image = noise(400, 300)
    tiled, small_blocks = {"tile_size": (64, 64)}, {"codeblock_size": (8, 8), "precinct_size": (64, 64)}
    layered = {"quality_mode": "rates", "quality_layers": list(range(60, 0, -2))}
    for options in ({}, tiled, small_blocks, layered, {"no_jp2": True}, {"num_resolutions": 1}):
        assert not has_too_many_parts(encode(image, "JPEG2000", **options))
    assert not has_too_many_parts(codestream(16_000, 16_000, tile=256, components=4))
    assert not has_too_many_parts(codestream(16_000, 16_000, components=4, precinct=0x88, layers=50))


@pytest.mark.parametrize("precinct", [0x00, 0x11, 0x22])
def test_precincts_count(precinct: int) -> None:
    assert has_too_many_parts(codestream(SIDE_PX, SIDE_PX, components=4, precinct=precinct))
    assert not has_too_many_parts(codestream(16, 16, components=4, precinct=precinct))


def test_tiles_count() -> None:
    side = int(MAX_TILES**0.5)
    assert not has_too_many_parts(codestream(side, side, tile=1))
    assert has_too_many_parts(codestream(side + 1, side, tile=1))


def test_packets_count() -> None:
    assert has_too_many_parts(codestream(SIDE_PX, SIDE_PX, precinct=0x55, layers=60_000))
    assert not has_too_many_parts(codestream(SIDE_PX, SIDE_PX, precinct=0x55, layers=60))


def test_code_blocks_count() -> None:
    # Blocks of 4 x 4 in a style for one component, which comes after the image's own.
    blocks = b"\xff\x53" + struct.pack(">HBBBBBBB", 9, 0, 0, 0, 0, 0, 0, 1)
    sound = codestream(2 * SIDE_PX, SIDE_PX)
    assert not has_too_many_parts(sound)
    assert has_too_many_parts(sound.replace(b"\xff\x5c", blocks + b"\xff\x5c"))


def test_headers_that_are_none_do_not_count() -> None:
    for data in (
        b"",
        b"\xff\x51",
        b"\xff\x51\0\0",
        b"\xff\x52\xff\xff",
        b"\xff\x51\0\x29" + bytes(39),
        b"\xff\x53" * 100,
    ):
        assert not has_too_many_parts(codestream(SIDE_PX, SIDE_PX) + data)


def test_very_many_headers_are_not_compared_one_by_one() -> None:
    sizes = b"".join(codestream(side, 1)[2:45] for side in range(1, 200))
    styles = b"".join(codestream(1, 1, layers=layers)[45:62] for layers in range(1, 200))
    assert has_too_many_parts(sizes + styles)
