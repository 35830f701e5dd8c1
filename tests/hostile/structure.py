"""Where the parts of an image file begin and end, by its format: places to cut it at."""

import struct
from collections.abc import Callable, Iterator

_PARENT_BOXES = {b"jp2h": 0, b"meta": 4, b"iprp": 0, b"ipco": 0, b"moov": 0}
_IMAGE_DESCRIPTOR, _EXTENSION = 0x2C, 0x21
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 11: 4, 12: 8}
_STRIP_OFFSETS, _STRIP_BYTES = 273, 279


def boundaries(kind: str, data: bytes) -> list[int]:
    """The places inside of an image file where a part of its format begins or ends, in order."""
    return sorted({place for place in _WALKS[kind](data) if 0 < place < len(data)})


def _png(data: bytes, start: int = 0) -> Iterator[int]:
    place = start + 8
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        yield from (place, place + 4, place + 8, place + 8 + length)
        place += 12 + length


def _jpeg(data: bytes) -> Iterator[int]:
    place = 2
    while place < len(data):
        yield from (place, place + 2)
        if data[place + 1] == 0xD9:
            return
        (length,) = struct.unpack_from(">H", data, place + 2)
        yield place + 4
        is_scan, place = data[place + 1] == 0xDA, place + 2 + length
        yield place
        if is_scan:  # what is compressed goes on to the next marker
            while data[place] != 0xFF or data[place + 1] == 0:
                place += 1


def _webp(data: bytes) -> Iterator[int]:
    yield from (4, 8)
    place = 12
    while place < len(data):
        name, (length,) = data[place : place + 4], struct.unpack_from("<I", data, place + 4)
        yield from (place, place + 4, place + 8, place + 8 + length)
        place += 8 + (16 if name == b"ANMF" else length + length % 2)  # chunks of its own are in a frame


def _gif(data: bytes) -> Iterator[int]:
    place = 13
    yield from (6, place)
    place += _colour_table_bytes(data[10])
    while place < len(data) - 1:
        yield place
        if data[place] == _EXTENSION:
            place += 2
        else:
            assert data[place] == _IMAGE_DESCRIPTOR
            yield place + 10
            place += 10 + _colour_table_bytes(data[place + 9]) + 1
        while data[place]:
            yield place
            place += 1 + data[place]
        place += 1
    yield place


def _colour_table_bytes(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _bmp(data: bytes) -> Iterator[int]:
    pixels, header = struct.unpack_from("<II", data, 10)
    yield from (2, 6, 10, 14, 18, 14 + header, pixels)
    row = (len(data) - pixels) // abs(struct.unpack_from("<i", data, 22)[0])
    yield from range(pixels, len(data), row)


def _tiff(data: bytes) -> Iterator[int]:
    order = "<" if data[:2] == b"II" else ">"
    yield from (2, 4, 8)
    (place,) = struct.unpack_from(order + "I", data, 4)
    while place:
        (count,) = struct.unpack_from(order + "H", data, place)
        yield place
        yield from range(place + 2, place + 2 + 12 * (count + 1), 12)
        strips: dict[int, list[int]] = {}
        for entry in range(place + 2, place + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(order + "HHI", data, entry)
            size = _TIFF_SIZES.get(kind, 1) * values
            (at,) = struct.unpack_from(order + "I", data, entry + 8) if size > 4 else (entry + 8,)
            yield from (at, at + size)
            if tag in {_STRIP_OFFSETS, _STRIP_BYTES}:
                strips[tag] = list(struct.unpack_from(f"{order}{values}{'H' if kind == 3 else 'I'}", data, at))
        for at, size in zip(strips[_STRIP_OFFSETS], strips[_STRIP_BYTES], strict=True):
            yield from (at, at + size)
        (place,) = struct.unpack_from(order + "I", data, place + 2 + 12 * count)


def _boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[int]:
    place, end = start, len(data) if end is None else end
    while place + 8 <= end:
        length, name = struct.unpack_from(">I4s", data, place)
        inside, place = place + 8, place + (length or end - place)
        yield from (inside - 8, inside - 4, inside, place)
        if name in _PARENT_BOXES:
            yield from _boxes(data, inside + _PARENT_BOXES[name], place)
        elif name == b"jp2c":
            yield from _codestream(data, inside)


def _codestream(data: bytes, place: int) -> Iterator[int]:
    """The markers of a JPEG 2000 codestream up to its first tile's data."""
    place += 2
    while data[place : place + 2] != b"\xff\x93":
        (length,) = struct.unpack_from(">H", data, place + 2)
        yield from (place, place + 2, place + 4)
        place += 2 + length
    yield from (place, place + 2, len(data) - 2)


def _ppm(data: bytes) -> Iterator[int]:
    place = -1
    for _line in range(3):
        place = data.index(b"\n", place + 1)
        yield from (place, place + 1)


def _ico(data: bytes) -> Iterator[int]:
    (count,) = struct.unpack_from("<H", data, 4)
    yield from (2, 4)
    yield from range(6, 6 + 16 * count + 1, 16)
    for entry in range(6, 6 + 16 * count, 16):
        (start,) = struct.unpack_from("<I", data, entry + 12)
        yield start
        if data[start : start + 4] == b"\x89PNG":
            yield from _png(data, start)


def _qoi(data: bytes) -> Iterator[int]:
    yield from (4, 8, 12, 13, 14, len(data) - 8)


_WALKS: dict[str, Callable[[bytes], Iterator[int]]] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "WEBP": _webp,
    "GIF": _gif,
    "BMP": _bmp,
    "TIFF": _tiff,
    "JPEG2000": _boxes,
    "AVIF": _boxes,
    "PPM": _ppm,
    "ICO": _ico,
    "QOI": _qoi,
}
