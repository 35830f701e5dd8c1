"""The hostile folder: every bad image there is a way to make, the same ones for the same seed."""

import itertools
import struct
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image

from batchcap.core.errors import ErrorKind
from tests.hostile import bombs
from tests.hostile.originals import Original, encode, originals
from tests.hostile.structure import boundaries

# What the bombs are measured by: images of up to this are decoded, and take little.
MAX_IMAGE_PIXELS = 1_000_000
FLIPS = 14
HEADER_BYTES = 48
ANYTHING = frozenset({None, ErrorKind.CORRUPT, ErrorKind.NOT_AN_IMAGE, ErrorKind.TOO_LARGE, ErrorKind.BAD_SHAPE})
IMAGE: frozenset[ErrorKind | None] = frozenset({None})


@dataclass(frozen=True, slots=True)
class HostileFile:
    """A file and what may become of it.

    Attributes:
        name: its path inside of the hostile folder.
        data: its bytes.
        ends: the kinds of failure it may end with; None is an image.
    """

    name: str
    data: bytes
    ends: frozenset[ErrorKind | None]


def hostile_files(seed: int) -> list[HostileFile]:
    """More than 1,000 files."""
    sound = originals(seed)
    generator = np.random.default_rng(seed)
    return [
        *(HostileFile(f"sound/{one.name}.{one.suffix}", one.data, IMAGE) for one in sound),
        *_cut(sound),
        *_flipped(sound, generator),
        *_with_wrong_extensions(sound),
        *_with_broken_metadata(generator),
        *_bombs(),
        *_no_images(generator),
    ]


def _cut(sound: list[Original]) -> list[HostileFile]:
    """Every kind of image, cut off where each part of its format begins, and in the middle of each part."""
    return [
        HostileFile(f"cut/{one.name}-{place:05d}.{one.suffix}", one.data[:place], ANYTHING)
        for one in sound
        if "-orientation-" not in one.name or one.name.endswith("-6")
        for place in _cuts(one)
    ]


def _cuts(one: Original) -> list[int]:
    ends = [0, *boundaries(one.kind, one.data), len(one.data)]
    middles = [(left + right) // 2 for left, right in itertools.pairwise(ends)]
    return sorted({*ends[1:-1], *middles} - {0})


def _flipped(sound: list[Original], generator: np.random.Generator) -> list[HostileFile]:
    """Every kind of image with bits flipped: a single one in its first bytes, one anywhere, or a handful."""
    found = []
    for one in sound:
        for number in range(FLIPS if "-orientation-" not in one.name else 1):
            reach = min(HEADER_BYTES, len(one.data)) if number % 2 else len(one.data)
            damaged = bytearray(one.data)
            for place in generator.integers(0, reach, 1 if number % 4 < 2 else 6):
                damaged[place] ^= 1 << int(generator.integers(8))
            found.append(HostileFile(f"flipped/{one.name}-{number:02d}.{one.suffix}", bytes(damaged), ANYTHING))
    return found


def _with_wrong_extensions(sound: list[Original]) -> list[HostileFile]:
    plain = [one for one in sound if one.name == one.kind.lower()]
    return [
        HostileFile(f"extension/{one.name}-as.{other.suffix}", one.data, IMAGE)
        for one in plain
        for other in plain
        if other is not one
    ]


def _with_broken_metadata(generator: np.random.Generator) -> list[HostileFile]:
    """Sound pixels below EXIF blocks and colour profiles that are none."""
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = exif.tobytes()
    blocks = {
        "empty": b"Exif\0\0",
        "noise": b"Exif\0\0" + generator.bytes(60),
        "cut": whole[:-4],
        "far": b"Exif\0\0MM\0*\xff\xff\xff\xff",
        "circle": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x87\x69\0\x04\0\0\0\x01\0\0\0\x08\0\0\0\x08",
        "ninth": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\0",
        "text": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04six\0\0\0\0\0",
        "many": b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x03\xff\xff\xff\xff\0\x06\0\0" * 20,
    }
    profiles = {
        "one-byte": b"x",
        "noise": generator.bytes(600),
        "length": struct.pack(">I", 2**32 - 1) + bytes(124),
        "tags": bytes(128) + struct.pack(">I", 2**32 - 1) + bytes(64),
    }
    image = Image.new("RGB", (20, 14), (200, 90, 30))
    suffixes = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
    found = []
    for kind, suffix in suffixes.items():
        for name, block in blocks.items():
            with suppress(ValueError):  # Pillow writes no such block into this format
                found.append(HostileFile(f"metadata/exif-{name}.{suffix}", encode(image, kind, exif=block), IMAGE))
        for name, profile in profiles.items():
            data = encode(image, kind, icc_profile=profile)
            found.append(HostileFile(f"metadata/profile-{name}.{suffix}", data, IMAGE))
    return found


def _bombs() -> list[HostileFile]:
    groups: tuple[tuple[str, dict[str, bytes], frozenset[ErrorKind | None]], ...] = (
        ("bomb", bombs.too_large(), frozenset({ErrorKind.TOO_LARGE})),
        ("parts", bombs.many_parts(), frozenset({ErrorKind.TOO_LARGE})),
        ("harmless", bombs.harmless(), IMAGE),
        ("hidden", bombs.hidden(), ANYTHING),
        ("long", bombs.long_ones(), frozenset({ErrorKind.BAD_SHAPE})),
    )
    return [HostileFile(f"{group}/{name}", data, ends) for group, files, ends in groups for name, data in files.items()]


def _no_images(generator: np.random.Generator) -> list[HostileFile]:
    contents = {
        "nothing.png": b"",
        **{f"zeros-{count}.jpg": bytes(count) for count in (1, 2, 3, 4, 8, 16, 100, 4096, 100_000)},
        **{f"ones-{count}.gif": b"\xff" * count for count in (1, 2, 8, 4096)},
        **{f"noise-{number}.webp": b"\x01" + generator.bytes(200) for number in range(8)},
        "text.png": b"no image\n" * 50,
        "page.jpg": b"<!doctype html><title>404</title>" + b" " * 500,
        "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        "pages.jpg": b"%PDF-1.7\n" + bytes(200),
        "program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "archive.jpg": b"PK\x03\x04" + bytes(200),
        "packed.png": b"\x1f\x8b\x08\0" + bytes(60),
        "executable.bmp": b"\x7fELF\x02\x01\x01" + bytes(200),
        "sound.webp": b"RIFF\x24\0\0\0WAVEfmt " + bytes(40),
        "film.avif": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(100),
        "layers.tif": b"8BPS\0\1" + bytes(100),
        "capitals.tif": b"MM" + generator.bytes(400_000),
    }
    return [HostileFile(f"other/{name}", data, frozenset({ErrorKind.NOT_AN_IMAGE})) for name, data in contents.items()]
