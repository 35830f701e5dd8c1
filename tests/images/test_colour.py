"""Colours against what they must be by the formats' own rules: transparent colours, profiles, inks, bands."""

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from batchcap.images import colour
from batchcap.images.colour import apply_profile, to_rgb
from batchcap.images.decode import decode
from tests.images.profiles import ADOBE_RGB_TO_XYZ, grey_profile, rgb_profile, shown, srgb_levels
from tests.images.samples import encode, noise, scene

LIMIT = 1_000_000
GREY, RGB = 0, 2
WHITE = [255, 255, 255]


def pixels(data: bytes) -> np.ndarray:
    """What is shown, in sRGB [rows, columns, 3]."""
    image = decode(data, LIMIT)
    return np.asarray(apply_profile(image.pixels, image.profile)).astype(int)


def png(depth: int, colour_type: int, row: bytes, transparent: bytes, width: int = 2) -> bytes:
    """A PNG of one row whose samples have any depth, with a transparent colour."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)),
        (b"tRNS", transparent),
        (b"IDAT", zlib.compress(b"\0" + row)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


@pytest.mark.parametrize(
    ("depth", "row", "sample", "opaque"),
    [
        (1, b"\x40", 1, 0),
        (2, b"\x60", 1, 170),
        (4, b"\x5a", 5, 170),
        (8, b"\x05\x55", 5, 85),
        (16, struct.pack(">2H", 5000, 0x5555), 5000, 85),
    ],
)
def test_a_transparent_grey_of_any_depth_is_white(depth: int, row: bytes, sample: int, opaque: int) -> None:
    first, second = pixels(png(depth, GREY, row, struct.pack(">H", sample)))[0].tolist()
    if depth == 1:  # its pixels come the other way round
        first, second = second, first
    assert (first, second) == (WHITE, [opaque] * 3)


def test_a_transparent_colour_of_16_bits_is_white() -> None:
    row = struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0x1100, 0x2200, 0x3300)
    found = pixels(png(16, RGB, row, struct.pack(">3H", 0x1234, 0x5678, 0x9ABC)))[0].tolist()
    assert found == [WHITE, [0x11, 0x22, 0x33]]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("AVIF", {"quality": 100}),
        ("JPEG2000", {}),
        ("QOI", {}),
    ],
)
def test_half_transparent_colours_are_half_white(kind: str, options: dict[str, Any]) -> None:
    found = pixels(encode(Image.new("RGBA", (16, 16), (20, 40, 200, 102)), kind, **options))[8, 8]
    assert np.abs(found - (np.array((20, 40, 200)) * 0.4 + 255 * 0.6)).max() <= 3


def test_alpha_that_is_multiplied_in_already_is_not_multiplied_again() -> None:
    image = Image.new("RGBA", (16, 16), (8, 16, 80, 102))
    unassociated, associated = (struct.pack("<HHIH", 338, 3, 1, kind) for kind in (2, 1))
    data = encode(image, "TIFF").replace(unassociated, associated)
    assert associated in data
    assert np.abs(pixels(data)[8, 8] - (np.array((8, 16, 80)) + 255 * 0.6)).max() <= 3


COLOURS = [(200, 30, 60), (40, 180, 90), (30, 60, 220), (128, 128, 128), (250, 240, 120), (10, 5, 3)]


@pytest.mark.parametrize("values", COLOURS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF", "JPEG"])
def test_a_wide_profile_gives_the_colours_that_the_formulas_give(kind: str, values: tuple[int, int, int]) -> None:
    profile = rgb_profile(ADOBE_RGB_TO_XYZ, 2.2)
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "AVIF": {"quality": 100}}
    data = encode(Image.new("RGB", (16, 16), values), kind, icc_profile=profile, **options.get(kind, {}))
    expected = shown(np.array(values, np.float64), ADOBE_RGB_TO_XYZ, 2.2)
    assert np.abs(pixels(data)[8, 8] - expected).max() <= (4 if kind in {"JPEG", "AVIF"} else 2)


@pytest.mark.parametrize("level", [10, 60, 128, 200, 255])
@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_grey_profile_gives_the_greys_that_its_curve_gives(mode: str, level: int) -> None:
    image = Image.new("LA", (16, 16), (level, 255)) if mode == "LA" else Image.new("L", (16, 16), level)
    if mode == "I;16":
        image = Image.fromarray(np.full((16, 16), level * 257, np.uint16))
    found = pixels(encode(image, "PNG", icc_profile=grey_profile(1.0)))[8, 8]
    assert np.abs(found - srgb_levels(np.array([level / 255]))).max() <= 2


def test_a_colour_image_with_a_grey_profile_is_taken_as_it_is() -> None:
    assert np.array_equal(pixels(encode(scene(), icc_profile=grey_profile(1.0))), pixels(encode(scene())))


@pytest.mark.parametrize("inks", [(201, 49, 100, 0), (128, 128, 128, 60)])
def test_inks_that_went_through_ycbcr_are_inks_again(inks: tuple[int, int, int, int]) -> None:
    # Adobe stores inks turned over, and its mark says whether the first three were taken for RGB and made YCbCr.
    *colours, black = inks
    ycbcr = Image.new("RGB", (16, 16), tuple(colours)).convert("YCbCr").getpixel((0, 0))
    data = encode(Image.new("CMYK", (16, 16), (*(255 - part for part in ycbcr), black)), "JPEG", quality=100)
    place = data.index(b"Adobe") + 11
    assert data[place] == 0
    as_ycck = data[:place] + b"\x02" + data[place + 1 :]
    expected = (255 - np.array(colours)) * (255 - black) / 255
    assert np.abs(pixels(as_ycck)[8, 8] - expected).max() <= 4


def wide(mode: str) -> Image.Image:
    """Noise in a mode, with a palette's or a colour's transparency where the mode has none of its own."""
    generator = np.random.default_rng(7)
    if mode == "F":
        values = generator.normal(0, 1000, (50, 40)).astype(np.float32)
        values[3, 4], values[49, 39] = np.nan, np.inf
        return Image.fromarray(values)
    if mode == "I;16":
        return Image.fromarray(generator.integers(0, 65536, (50, 40), np.uint16))
    image = noise(40, 50)
    image.putalpha(noise(40, 50, seed=1).convert("L"))
    image = image.quantize(40) if mode == "P" else image.convert(mode)
    if mode in {"P", "L"}:
        image.info["transparency"] = 3
    return image


@pytest.mark.parametrize("mode", ["F", "I;16", "P", "L", "LA", "RGBA", "CMYK", "LAB", "1"])
def test_the_bands_that_images_are_converted_in_do_not_show(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(40, 50).convert("RGB") if mode == "LAB" else wide(mode)
    if mode == "LAB":
        image = Image.merge("LAB", image.split())
    if mode in {"L", "LA"}:
        image.info["icc_profile"] = grey_profile(1.8)
    whole = np.asarray(to_rgb(image)[0])
    monkeypatch.setattr(colour, "_BAND_PX", 40 * 7)
    assert np.array_equal(np.asarray(to_rgb(image)[0]), whole)
    assert len(np.unique(whole)) > 1


def test_a_long_text_or_a_large_profile_costs_no_image() -> None:
    data = encode(scene())
    text = b"Comment\0\0" + zlib.compress(bytes(3 << 20))
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    assert np.array_equal(pixels(data[:33] + chunk + data[33:]), pixels(data))
    large = rgb_profile(ADOBE_RGB_TO_XYZ, 2.2) + bytes(3 << 20)
    large = struct.pack(">I", len(large)) + large[4:]
    assert np.array_equal(
        pixels(encode(scene(), icc_profile=large)), pixels(encode(scene(), icc_profile=large[: -3 << 20]))
    )
