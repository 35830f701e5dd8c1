"""Little files made by hand that promise, or unpack to, far more than a machine has; and ones that lead in circles."""

import io
import struct
import zlib
from collections.abc import Iterable
from functools import cache

from PIL import Image

from tests.hostile.originals import encode

MIB = 1 << 20
# What the packed ones unpack to: little enough to be made in no time, far more than an image of 16 x 16 pixels takes.
UNPACKED_BYTES = 64 * MIB
SIDE_PX = 60_000
_PNG = b"\x89PNG\r\n\x1a\n"
_LITTLE = ((256, 4, 1, 16), (257, 4, 1, 16))
_TILE_SIDE_PX = 30_000
_BY_POSITION = 3  # the order of packets that leaps furthest from layer to layer
Entries = Iterable[tuple[int, int, int, int]]  # tag, type, count, value or place


def too_large() -> dict[str, bytes]:
    """Files whose header says that the image has more pixels than the default limit of 256 million."""
    side = SIDE_PX
    return {
        "header.png": png(side, side),
        "twice-the-limit.png": png(16_001, 16_000),
        "largest.png": png(2**31 - 1, 2**31 - 1),
        "row.png": png(2**31 - 1, 1),
        "black-and-white.png": png(side, side, depth=1, colour=0),
        "canvas.webp": webp_canvas(16_384, 16_384),
        "largest-canvas.webp": webp_canvas(2**16, 2**16 - 1),
        "lossless.webp": webp_lossless(16_384, 16_384),
        "strip.tif": tiff([(256, 4, 1, side), (257, 4, 1, side)]),
        "largest.tif": tiff([(256, 4, 1, 2**31 - 1), (257, 4, 1, 2**31 - 1)]),
        "tiles.tif": tiff([(256, 4, 1, side), (257, 4, 1, side), (322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 8)]),
        "screen.gif": gif((65_535, 65_535), (1, 1)),
        "frame.gif": gif((1, 1), (65_535, 65_535)),
        "header.jpg": jpeg(65_500, 65_500),
        "header.bmp": bmp(side, side),
        "largest.bmp": bmp(2**31 - 1, 2**31 - 1),
        "upside-down.bmp": bmp(side, -side),
        "header.qoi": b"qoif" + struct.pack(">IIBB", side, side, 4, 0) + bytes(64),
        "header.ppm": b"P6 60000 60000 255\n" + bytes(64),
        "plain.ppm": b"P3 60000 60000 255\n1 2 3",
        "float.pfm": b"Pf\n60000 60000\n-1.0\n" + bytes(64),
        "header.jp2": _patched(_original("JPEG2000"), b"ihdr", 0, struct.pack(">II", side, side)),
        "codestream.j2k": codestream(side, side),
        "canvas.avif": _patched(_original("AVIF"), b"ispe", 4, struct.pack(">II", 16_001, 16_000)),
        "png.ico": icon(png(side, side)),
        "png-just-above.ico": icon(png(16_001, 16_000)),
        "bmp.ico": icon(bmp(side, 2 * side)[14:]),
    }


def harmless() -> dict[str, bytes]:
    """Sound images of few pixels beside something that an eager reader would be lost in."""
    return {
        "pixels.png": png(16, 16, before=[(b"IDAT", zlib.compress(bytes(49 * 16)) + _packed_zeros())]),
        "unknown-chunk.png": png(16, 16, before=[(b"zxIf", _packed_zeros())]),
        "frames.png": png(16, 16, before=[(b"acTL", struct.pack(">II", 2**32 - 1, 0))]),
        "second-frame.gif": gif((1, 1), (1, 1), (65_535, 65_535)),
        "rows.tif": tiff([*_LITTLE, (278, 4, 1, 2**32 - 1)]),
        "circle.tif": tiff(_LITTLE, following=8),
        "exif-circle.tif": tiff([*_LITTLE, (34_665, 4, 1, 8)]),
        "parts-circle.tif": tiff([*_LITTLE, (330, 4, 1, 8)]),
        "pages.tif": _tiff_of_pages(20_000),
    }


def hidden() -> dict[str, bytes]:
    """Files whose header looks harmless, or does not tell; what is in them is too much, or can't be."""
    zeros, mib_of_zeros = _packed_zeros(), zlib.compress(bytes(MIB - 1))
    wide_text = zlib.compress(("a" * (8 * MIB - 9) + "\U0001f600").encode())  # four bytes a character
    return {
        "profile.png": png(16, 16, before=[(b"iCCP", b"profile\0\0" + zeros)]),
        "text.png": png(16, 16, before=[(b"zTXt", b"text\0\0" + zeros)]),
        "unicode-text.png": png(16, 16, before=[(b"iTXt", b"text\0\1\0\0\0" + zeros)]),
        "texts.png": png(16, 16, before=[(b"zTXt", b"text\0\0" + mib_of_zeros)] * 100),
        "wide-texts.png": png(16, 16, before=[(b"iTXt", b"text\0\1\0\0\0" + wide_text)] * 4),
        "chunk.png": _PNG + struct.pack(">I", 2**32 - 1) + b"IHDR" + bytes(64),
        "frame.png": png(16, 16, before=[(b"acTL", bytes((0, 0, 0, 1) * 2)), (b"fcTL", _frame_control(SIDE_PX))]),
        "frame.webp": webp_canvas(16, 16, frame=webp_lossless(16_384, 16_384)[12:]),
        "lossless.webp": webp_lossless(1_000, 1_000),
        "strip.tif": tiff([*_LITTLE, (278, 4, 1, 16), (279, 4, 1, 2**32 - 1)]),
        "deflate.tif": tiff([*_LITTLE, (259, 3, 1, 8), (279, 4, 1, len(zeros))], data=zeros),
        "deflate-strip.tif": tiff([*_LITTLE, (259, 3, 1, 8), (279, 4, 1, 2**32 - 1)], data=zeros),
        "samples.tif": tiff([*_LITTLE, (277, 3, 1, 65_535)]),
        "values.tif": tiff([*_LITTLE, (258, 3, 2**31, 8), (33_432, 2, 2**32 - 1, 8)]),
        "codestream.jp2": _patched(_original("JPEG2000"), b"\xff\x51", 4, struct.pack(">II", SIDE_PX, SIDE_PX)),
        "tile.j2k": codestream(16, 16, tile=SIDE_PX),
        "components.j2k": codestream(1_000, 1_000, components=16_384),
        "canvas.avif": _patched(_original("AVIF"), b"ispe", 4, struct.pack(">II", 1_000, 1_000)),
        "largest-canvas.avif": _patched(_original("AVIF"), b"ispe", 4, struct.pack(">II", SIDE_PX, SIDE_PX)),
        "entries.ico": b"\0\0\1\0\xff\xff" + bytes((0, 0, 0, 0, 1, 0, 32, 0, 22, 0, 0, 0, 6, 0, 0, 0)) * 65_535,
        "palette.bmp": bmp(16, 16, colours=2**31 - 1),
        "rle.bmp": bmp(1_000, 1_000, packing=1),
        "pixels.jpg": jpeg(1_000, 1_000),
        "segments.jpg": _original("JPEG")[:2] + b"\xff\xe5\0\2" * 100_000 + _original("JPEG")[2:],
        "chunks.png": png(16, 16, before=[(b"teSt", b"")] * 30_000),
        "comment.ppm": b"P6\n#" + b"x" * (MIB // 4) + b"\n16 16 255\n",
        "digits.ppm": b"P6 " + b"9" * 5000 + b" 16 255\n",
        "plain-digits.ppm": b"P3 16 16 255\n" + b"1" * MIB,
        "scale.pfm": b"Pf\n16 16\nnan\n" + bytes(16 * 16 * 4),
    }


def many_parts() -> dict[str, bytes]:
    """Images of few pixels that are made of very many parts, or of one part with very many pixels."""
    zeros = _packed_zeros()
    packed = [*_LITTLE, (259, 3, 1, 8), (325, 4, 1, len(zeros))]
    behind = len(tiff([*packed, *_tile(4)], data=zeros))
    return {
        "tile.tif": tiff([*_LITTLE, *_tile(4)]),
        "deflate-tile.tif": tiff([*packed, *_tile(4)], data=zeros),
        "short-sides.tif": tiff([*packed, *_tile(3)], data=zeros),
        # Pillow does not read values of this type, libtiff does.
        "long-sides.tif": tiff([*packed, *_tile(17, behind)], data=zeros + struct.pack("<Q", _TILE_SIDE_PX)),
        "strips.tif": tiff([*_LITTLE, (273, 4, 300_000, 8), (278, 4, 1, 1)], data=bytes(1_200_000)),
        "tiles.j2k": codestream(1_000, 1_000, tile=4),
        "precincts.j2k": codestream(1_000, 1_000, components=4, precinct=0),
        "packets.j2k": codestream(1_000, 1_000, precinct=0x55, layers=60_000),
    }


def long_ones() -> dict[str, bytes]:
    """Sound images of one pixel by very many."""
    found = {}
    for kind, suffix in (
        ("PNG", "png"),
        ("GIF", "gif"),
        ("TIFF", "tif"),
        ("BMP", "bmp"),
        ("PPM", "ppm"),
        ("QOI", "qoi"),
    ):
        found[f"tall.{suffix}"] = encode(Image.new("RGB", (1, SIDE_PX), (9, 99, 199)), kind)
        found[f"wide.{suffix}"] = encode(Image.new("RGB", (SIDE_PX, 1), (9, 99, 199)), kind)
    for kind, suffix in (("JPEG", "jpg"), ("JPEG2000", "jp2")):
        found[f"tall.{suffix}"] = encode(Image.new("RGB", (1, SIDE_PX), (9, 99, 199)), kind)
    found["wide.webp"] = encode(Image.new("RGB", (16_383, 1), (9, 99, 199)), "WEBP")
    return found


def png(width: int, height: int, depth: int = 8, colour: int = 2, before: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """A PNG with a few bytes of pixels, and chunks of one's own before them."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(bytes(49 * 16))), (b"IEND", b"")]
    return _PNG + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def webp_canvas(width: int, height: int, frame: bytes | None = None) -> bytes:
    """A WebP whose extended header gives the canvas, with an image of 16 x 16 pixels or a frame of one's own."""
    inside = webp_lossless(16, 16)[12:] if frame is None else frame
    header = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return _riff(b"VP8X" + struct.pack("<I", 10) + header + inside)


def webp_lossless(width: int, height: int) -> bytes:
    """A lossless WebP whose pixels all are one colour: a code of one symbol takes no bits, whatever the size is."""
    size = (width - 1) | (height - 1) << 14
    # No transform, no colour cache, one group; five simple codes of one symbol of one bit: 1, 0, 0 and the symbol.
    bits = 1 | 0 << 1 | 0 << 2 | 0 << 3
    for number in range(5):
        bits |= 1 << (4 + 4 * number)
    body = b"\x2f" + size.to_bytes(4, "little") + (bits >> 1).to_bytes(4, "little") + bytes(7)
    return _riff(b"VP8L" + struct.pack("<I", len(body)) + body)


def gif(screen: tuple[int, int], *frames: tuple[int, int]) -> bytes:
    """A GIF of frames with next to nothing in them."""
    pixels = b"\x02\x02\x4c\x01\x00"
    palette = bytes((0, 0, 0, 255, 255, 255))
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + palette
    return head + b"".join(b"," + struct.pack("<HHHHB", 0, 0, *size, 0) + pixels for size in frames) + b";"


def jpeg(width: int, height: int) -> bytes:
    """A JPEG of 16 x 16 pixels whose header claims a size."""
    return _patched(_original("JPEG"), b"\xff\xc0", 3, struct.pack(">HH", height, width))


def bmp(width: int, height: int, packing: int = 0, colours: int = 0) -> bytes:
    """A BMP with hardly any pixels."""
    bits = 8 if packing else 24
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, packing, 0, 0, 0, colours, 0)
    return b"BM" + struct.pack("<IHHI", 1000, 0, 0, 54) + header + bytes(946)


def icon(inner: bytes) -> bytes:
    """An icon of 16 x 16 pixels by its own word."""
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def tiff(entries: Entries, data: bytes = bytes(1024), following: int = 0) -> bytes:
    """A grey TIFF with one directory; the entries come in the place of the ones a small uncompressed image has."""
    given = {tag: (tag, kind, count, value) for tag, kind, count, value in entries}
    usual = [(258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    if 322 not in given:
        usual += [(273, 4, 1, 8), (278, 4, 1, 16), (279, 4, 1, 256)]
    every = {tag: (tag, kind, count, value) for tag, kind, count, value in usual} | given
    place = 8 + 2 + 12 * len(every) + 4
    for tag in {273, 324} & every.keys():  # where the pixels are
        every[tag] = (tag, 4, every[tag][2], place)
    body = b"".join(struct.pack("<HHII", *every[tag]) for tag in sorted(every))
    return b"II*\0" + struct.pack("<IH", 8, len(every)) + body + struct.pack("<I", following) + data


def codestream(
    width: int, height: int, *, tile: int = 0, components: int = 1, precinct: int = 0xFF, layers: int = 1
) -> bytes:
    """A JPEG 2000 codestream of headers alone, or nearly; sides of the precincts as powers of two, four bits each."""
    sizes = struct.pack(">HIIIIIIIIH", 0, width, height, 0, 0, tile or width, tile or height, 0, 0, components)
    style = struct.pack(">BBHBBBBBBB", 1, _BY_POSITION, layers, 0, 0, 4, 4, 0, 1, precinct)
    size, tile_part = sizes + b"\x07\x01\x01" * components, bytes((0, 0, 0, 0, 0, 0, 0, 1))
    marks = [(b"\xff\x51", size), (b"\xff\x52", style), (b"\xff\x5c", b"\x40\x40"), (b"\xff\x90", tile_part)]
    head = b"".join(mark + struct.pack(">H", len(body) + 2) + body for mark, body in marks)
    return b"\xff\x4f" + head + b"\xff\x93" + bytes(64) + b"\xff\xd9"


def _tile(kind: int, value: int = _TILE_SIDE_PX) -> list[tuple[int, int, int, int]]:
    """The entries for one huge tile, its sides being numbers of a type, here or at a place in the file."""
    return [(322, kind, 1, value), (323, kind, 1, value), (324, 4, 1, 8)]


def _tiff_of_pages(count: int) -> bytes:
    start = len(tiff(_LITTLE))
    places = [start + 6 * page for page in range(1, count)] + [8]
    first = tiff(_LITTLE, following=start)
    return first + b"".join(struct.pack("<HI", 0, place) for place in places)


def _frame_control(side_px: int) -> bytes:
    return struct.pack(">IIIIIHHBB", 0, side_px, side_px, 0, 0, 1, 1, 0, 0)


def _riff(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def _patched(data: bytes, mark: bytes, skip: int, value: bytes) -> bytes:
    """The bytes with others `skip` bytes after each of the marks."""
    patched, place = bytearray(data), data.find(mark)
    assert place >= 0
    while place >= 0:
        start = place + len(mark) + skip
        patched[start : start + len(value)] = value
        place = data.find(mark, place + 1)
    return bytes(patched)


@cache
def _original(kind: str) -> bytes:
    return encode(Image.new("RGB", (16, 16), (200, 100, 50)), kind)


@cache
def _packed_zeros() -> bytes:
    packer, packed = zlib.compressobj(9), io.BytesIO()
    for _mib in range(UNPACKED_BYTES // MIB):
        packed.write(packer.compress(bytes(MIB)))
    return packed.getvalue() + packer.flush()
