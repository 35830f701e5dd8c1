"""Camera raw files made by hand: a TIFF with a colour filter array and previews, as cameras and phones write them.

No camera's file is copied. What is made here LibRaw opens as DNG, and finds the previews in it.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from tests.images.samples import encode, noise

BYTE, ASCII, SHORT, LONG, RATIONAL, SRATIONAL = 1, 2, 3, 4, 5, 10
_CODES = {BYTE: "B", SHORT: "H", LONG: "I", RATIONAL: "II", SRATIONAL: "ii"}
MAKE, MODEL, ORIENTATION, SUB_DIRECTORIES, DNG_VERSION = 271, 272, 274, 330, 50706
_STRIPS, _STRIP_BYTES = 273, 279
_COLOUR_MATRIX = (1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1)
GREY = 20_000

Value = tuple[int, Sequence[int] | bytes]


@dataclass
class Directory:
    """A directory of a TIFF.

    Attributes:
        tags: type and values of each entry.
        strip: the pixels.
        below: directories that its entry `SubIFDs` leads to.
    """

    tags: dict[int, Value]
    strip: bytes = b""
    below: list["Directory"] = field(default_factory=list)


def tiff(first: Directory, order: str = "<", magic: int = 42, header: bytes = b"") -> bytes:
    """A file of a directory and those below it, first directory first, as most cameras write it."""
    content = bytearray(b"II" if order == "<" else b"MM")
    content += struct.pack(f"{order}HI", magic, 8 + len(header)) + header
    _append(content, first, order)
    return bytes(content)


def _append(content: bytearray, one: Directory, order: str) -> int:
    """Write a directory; gives where it begins."""
    tags = dict(one.tags)
    if one.strip:
        tags |= {_STRIPS: (LONG, (0,)), _STRIP_BYTES: (LONG, (len(one.strip),))}
    if one.below:
        tags[SUB_DIRECTORIES] = (LONG, (0,) * len(one.below))
    start = len(content)
    content += bytes(2 + 12 * len(tags) + 4)
    if one.strip:
        tags[_STRIPS] = (LONG, (len(content),))
        content += one.strip + bytes(len(one.strip) % 2)
    if one.below:
        tags[SUB_DIRECTORIES] = (LONG, [_append(content, below, order) for below in one.below])
    entries = struct.pack(f"{order}H", len(tags))
    for tag, (kind, values) in sorted(tags.items()):
        packed = bytes(values) if kind in (BYTE, ASCII) else _packed(kind, values, order)
        count = len(values) // len(_CODES.get(kind, "B"))
        if len(packed) > 4:
            place = struct.pack(f"{order}I", len(content))
            content += packed + bytes(len(packed) % 2)
        else:
            place = packed.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", tag, kind, count) + place
    content[start : start + len(entries)] = entries
    return start


def _packed(kind: int, values: Sequence[int], order: str) -> bytes:
    return struct.pack(f"{order}{_CODES[kind] * (len(values) // len(_CODES[kind]))}", *values)


def sensor(width: int, height: int, samples: np.ndarray | None = None, order: str = "<") -> Directory:
    """The raw image itself: a colour filter array (RGGB) of 16 bits, not packed."""
    samples = np.full((height, width), GREY, np.uint16) if samples is None else samples
    return Directory(
        {
            254: (LONG, (0,)),
            256: (LONG, (width,)),
            257: (LONG, (height,)),
            258: (SHORT, (16,)),
            259: (SHORT, (1,)),
            262: (SHORT, (32803,)),
            277: (SHORT, (1,)),
            278: (LONG, (height,)),
            284: (SHORT, (1,)),
            33421: (SHORT, (2, 2)),
            33422: (BYTE, (0, 1, 1, 2)),
            50714: (SHORT, (0,)),
            50717: (LONG, (65535,)),
        },
        samples.astype(f"{order}u2").tobytes(),
    )


def linear(width: int, height: int) -> Directory:
    """A raw image of three colours a pixel, as stitched ones are."""
    found = sensor(width, height)
    del found.tags[33421], found.tags[33422]
    found.tags |= {
        258: (SHORT, (16,) * 3),
        262: (SHORT, (34892,)),
        277: (SHORT, (3,)),
        50714: (SHORT, (0,) * 3),
        50717: (LONG, (65535,) * 3),
    }
    found.strip = np.full((height, width, 3), GREY, "<u2").tobytes()
    return found


def mosaic(image: Image.Image) -> np.ndarray:
    """What a sensor behind such filters has of an image."""
    colours = np.asarray(image.convert("RGB"), np.uint16) * 128
    samples = colours[:, :, 1].copy()
    samples[::2, ::2], samples[1::2, 1::2] = colours[::2, ::2, 0], colours[1::2, 1::2, 2]
    return samples


def jpeg_preview(image: Image.Image, data: bytes | None = None) -> Directory:
    """A preview that is a JPEG."""
    return Directory(
        {
            254: (LONG, (1,)),
            256: (LONG, (image.width,)),
            257: (LONG, (image.height,)),
            258: (SHORT, (8, 8, 8)),
            259: (SHORT, (7,)),
            262: (SHORT, (6,)),
            277: (SHORT, (3,)),
            278: (LONG, (image.height,)),
        },
        encode(image, "JPEG", quality=95) if data is None else data,
    )


def dng(
    below: Sequence[Directory],
    thumbnail: Image.Image | None = None,
    orientation: int = 1,
    order: str = "<",
) -> bytes:
    """A DNG: a thumbnail that is not packed, and below it the raw image and previews."""
    small = noise(64, 48) if thumbnail is None else thumbnail
    first = Directory(
        {
            254: (LONG, (1,)),
            256: (LONG, (small.width,)),
            257: (LONG, (small.height,)),
            258: (SHORT, (8, 8, 8)),
            259: (SHORT, (1,)),
            262: (SHORT, (2,)),
            MAKE: (ASCII, b"Batchcap\0"),
            MODEL: (ASCII, b"Batchcap 1\0"),
            ORIENTATION: (SHORT, (orientation,)),
            277: (SHORT, (3,)),
            278: (LONG, (small.height,)),
            284: (SHORT, (1,)),
            DNG_VERSION: (BYTE, (1, 4, 0, 0)),
            50708: (ASCII, b"Batchcap 1\0"),
            50721: (SRATIONAL, _COLOUR_MATRIX),
            50728: (RATIONAL, (1, 1, 1, 1, 1, 1)),
            50778: (SHORT, (21,)),
        },
        small.convert("RGB").tobytes(),
        list(below),
    )
    return tiff(first, order)
