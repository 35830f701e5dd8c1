"""The format zoo: what decodes and how it looks, and what becomes a failure and of which kind."""

import hashlib
import struct
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from batchcap.core.errors import ErrorKind, RowError
from batchcap.images.decode import decode
from tests.images.samples import average_colours, encode, load, noise, scene

LOSSY_LEVELS = 12  # JPEG, WEBP and AVIF at default quality, plain areas
EXACT_LEVELS = 1
LIMIT = 256_000_000
SCENE_COLOURS = np.array([[[220, 30, 30], [30, 200, 30]], [[30, 30, 220], [220, 220, 30]]], np.float64)


def fails(data: bytes, **vision: Any) -> RowError:
    with pytest.raises(RowError) as caught:
        load(data, **vision)
    return caught.value


@pytest.mark.parametrize(
    ("kind", "levels", "options"),
    [
        ("JPEG", LOSSY_LEVELS, {"quality": 90}),
        ("JPEG", LOSSY_LEVELS, {"quality": 90, "progressive": True}),
        ("PNG", EXACT_LEVELS, {}),
        ("WEBP", LOSSY_LEVELS, {}),
        ("WEBP", EXACT_LEVELS, {"lossless": True}),
        ("GIF", EXACT_LEVELS, {}),
        ("BMP", EXACT_LEVELS, {}),
        ("TIFF", EXACT_LEVELS, {}),
        ("TIFF", EXACT_LEVELS, {"compression": "tiff_lzw"}),
        ("AVIF", LOSSY_LEVELS, {}),
        ("JPEG2000", LOSSY_LEVELS, {}),
        ("PPM", EXACT_LEVELS, {}),
        ("ICO", EXACT_LEVELS, {"sizes": [(96, 64)]}),
    ],
)
def test_formats_show_the_scene(kind: str, levels: int, options: dict[str, Any]) -> None:
    patches = load(encode(scene(), kind, **options))
    assert (patches.width, patches.height) == (96, 64)
    assert np.abs(average_colours(patches) - SCENE_COLOURS).max() <= levels + 3  # the edges between quarters


def test_the_record_is_complete() -> None:
    data = encode(scene())
    patches = load(data)
    assert patches.index == 3
    assert patches.sha256 == hashlib.sha256(data).hexdigest()
    assert patches.read_ms > 0
    assert patches.values.shape == (patches.grid[0] * patches.grid[1], 1536)
    assert patches.values.flags.c_contiguous


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(kind: str, orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = scene().transpose(undo[orientation]) if orientation > 1 else scene()
    exif = Image.Exif()
    exif[0x0112] = orientation
    patches = load(encode(stored, kind, exif=exif))
    assert (patches.width, patches.height) == (96, 64)
    assert np.abs(average_colours(patches) - SCENE_COLOURS).max() <= LOSSY_LEVELS + 3


@pytest.mark.parametrize("block", [b"Exif\0\0garbage!", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0", b"\xff" * 40])
def test_broken_exif_is_ignored(block: bytes) -> None:
    patches = load(encode(scene(), "JPEG", quality=90, exif=block))
    assert np.abs(average_colours(patches) - SCENE_COLOURS).max() <= LOSSY_LEVELS + 3


def one_colour(mode: str, colour: Any, **options: Any) -> np.ndarray:
    image = Image.new(mode, (64, 64), colour)
    return average_colours(load(encode(image, **options)))[0, 0]


def test_transparency_lies_over_white() -> None:
    assert np.allclose(one_colour("RGBA", (255, 0, 0, 0)), 255, atol=1)
    assert np.allclose(one_colour("RGBA", (255, 0, 0, 128)), (255, 127, 127), atol=1.5)
    assert np.allclose(one_colour("LA", (0, 0)), 255, atol=1)
    assert np.allclose(one_colour("L", 7, transparency=7), 255, atol=1)
    assert np.allclose(one_colour("RGB", (7, 8, 9), transparency=(7, 8, 9)), 255, atol=1)
    palette = Image.new("P", (64, 64), 1)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    assert np.allclose(average_colours(load(encode(palette)))[0, 0], (200, 100, 50), atol=1)
    for transparency in (1, bytes([255, 0])):
        assert np.allclose(average_colours(load(encode(palette, transparency=transparency)))[0, 0], 255, atol=1)


def deep(values: np.ndarray, kind: str = "TIFF") -> np.ndarray:
    return average_colours(load(encode(Image.fromarray(values), kind)))[0, 0]


def test_deep_greys_become_8_bit() -> None:
    ones = np.ones((64, 64))
    for kind in ("TIFF", "PNG"):
        assert np.allclose(deep((ones * 65535).astype(np.uint16), kind), 255, atol=1)
        assert np.allclose(deep((ones * 32896).astype(np.uint16), kind), 128, atol=1)
    assert np.allclose(deep((ones * 32896).astype(np.int32)), 128, atol=1)
    assert np.allclose(deep((ones * 0.5).astype(np.float32)), 128, atol=1)
    assert np.allclose(deep((ones * 100).astype(np.float32)), 100, atol=1)
    stretched = np.linspace(-5, 3000, 64 * 64, dtype=np.float32).reshape(64, 64)
    assert deep(stretched).min() >= 0
    assert np.allclose(deep(np.full((64, 64), np.nan, np.float32)), 0, atol=1)
    infinite = np.full((64, 64), np.inf, np.float32)
    infinite[0] = 0.5
    assert np.allclose(deep(infinite), 255, atol=10)


def test_cmyk_and_lab_become_rgb() -> None:
    assert np.allclose(one_colour("CMYK", (0, 255, 255, 0), kind="TIFF"), (255, 0, 0), atol=1)
    assert np.allclose(one_colour("CMYK", (0, 255, 255, 0), kind="JPEG"), (255, 0, 0), atol=LOSSY_LEVELS)
    grey = one_colour("LAB", (128, 128, 128), kind="TIFF")
    assert np.ptp(grey) <= 3
    assert 100 < grey[0] < 140


def swapped_profile() -> bytes:
    """An sRGB profile whose red and green primaries have changed places, under another name."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for place in range(132, 132 + 12 * struct.unpack_from(">I", profile, 128)[0], 12):
        name = bytes(profile[place : place + 4])
        if name in {b"rXYZ", b"gXYZ"}:
            profile[place : place + 4] = b"gXYZ" if name == b"rXYZ" else b"rXYZ"
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_colour_profile_is_applied(mode: str) -> None:
    image = Image.new("RGB", (64, 64), (200, 10, 10)).convert(mode)
    shown = average_colours(load(encode(image, icc_profile=swapped_profile())))[0, 0]
    assert shown[1] > 150 > shown[0]


@pytest.mark.parametrize("profile", [b"no profile", b"\0" * 200])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
def test_a_broken_profile_is_ignored(mode: str, profile: bytes) -> None:
    image = scene().convert(mode)
    assert np.array_equal(load(encode(image, icc_profile=profile)).values, load(encode(image)).values)


def test_a_grey_image_with_a_profile_for_rgb_is_taken_as_it_is() -> None:
    image = scene().convert("L")
    assert np.array_equal(load(encode(image, icc_profile=swapped_profile())).values, load(encode(image)).values)


def test_an_srgb_profile_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = noise(300, 200)
    assert np.array_equal(load(encode(image, icc_profile=profile)).values, load(encode(image)).values)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (96, 64), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(scene(), kind, save_all=True, append_images=frames, **options)
    assert np.abs(average_colours(load(data)) - SCENE_COLOURS).max() <= LOSSY_LEVELS + 3


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"])
def test_cut_off_images_are_corrupt(kind: str, share: float) -> None:
    data = encode(noise(300, 200), kind)
    error = fails(data[: int(len(data) * share)])
    assert error.kind is ErrorKind.CORRUPT
    assert error.message


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO"])
def test_damaged_images_decode_or_fail_as_one_row(kind: str) -> None:
    data = encode(scene(40, 30), kind)
    generator = np.random.default_rng(5)
    for _ in range(150):
        damaged = bytearray(data)
        for place in generator.integers(0, len(data), generator.integers(1, 8)):
            damaged[place] = generator.integers(256)
        with suppress(RowError):  # any other error fails the test
            load(bytes(damaged), max_image_pixels=1_000_000)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"hello, this is text\n" * 50, b"%PDF-1.7 ...", b"<svg xmlns='x'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n"],
)
def test_other_content_is_not_an_image(data: bytes) -> None:
    assert fails(data).kind is ErrorKind.NOT_AN_IMAGE


def test_a_known_signature_alone_is_corrupt() -> None:
    for start in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"II*\0", b"BM", b"RIFF\x10\0\0\0WEBPVP8 "):
        assert fails(start).kind is ErrorKind.CORRUPT


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""
    chunks = b""
    for name, body in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" * 100)),
        (b"IEND", b""),
    ):
        chunks += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("size", [(20000, 20000), (60000, 60000), (2**31 - 1, 2**31 - 1), (16001, 16000)])
def test_bombs_are_refused_from_their_header(size: tuple[int, int]) -> None:
    error = fails(png_header(*size))
    assert error.kind is ErrorKind.TOO_LARGE
    assert "256,000,000" in error.message


def test_the_pixel_limit_is_the_one_asked_for() -> None:
    data = encode(noise(50, 40))
    assert load(data, max_image_pixels=2000).width == 50
    assert fails(data, max_image_pixels=1999).kind is ErrorKind.TOO_LARGE
    assert load(data).width == 50


def test_too_long_an_image_has_a_bad_shape() -> None:
    assert fails(encode(noise(201, 1))).kind is ErrorKind.BAD_SHAPE
    assert load(encode(noise(200, 1))).grid == (2, 228)


def test_decoding_does_not_depend_on_the_order_of_images() -> None:
    small, large = encode(noise(40, 40)), encode(noise(600, 500))
    alone = np.asarray(decode(small, LIMIT).pixels)
    decode(large, LIMIT)
    assert np.array_equal(np.asarray(decode(small, LIMIT).pixels), alone)


@pytest.mark.parametrize("size", [(40_000, 40_000), (16_001, 16_000)])
def test_an_icons_inner_image_is_limited_too(size: tuple[int, int]) -> None:
    data = bytearray(encode(scene(64, 64), "ICO", sizes=[(64, 64)]))
    start = data.index(b"\x89PNG")
    inner = png_header(*size)
    data[start:] = inner
    struct.pack_into("<I", data, 6 + 8, len(inner))
    assert fails(bytes(data)).kind is ErrorKind.TOO_LARGE


def test_damaged_images_are_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    for kind, options in (("TIFF", {"compression": "tiff_lzw"}), ("JPEG", {}), ("PNG", {})):
        data = encode(noise(100, 80), kind, **options)
        for share in (0.3, 0.9):
            assert fails(data[: int(len(data) * share)]).kind is ErrorKind.CORRUPT
    assert capfd.readouterr().err == ""
