"""Owns the one look into a JPEG XL file that its reader does not allow: how many samples it has, before it is decoded.

The header is that of ISO/IEC 18181-1, annex D: bits from the lowest of each byte on.
"""

_CONTAINER = b"\0\0\0\x0cJXL "
_CODESTREAM = b"\xff\x0a"
_RATIOS = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
# Three of colour and one of transparency; some more for depth, spot colours and the like.
SAMPLES_PER_PIXEL = 8
_MAX_BOXES = 1000


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "little")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        """The next bits as a number.

        Raises:
            EOFError: there are not so many.
        """
        if count > self._left:
            raise EOFError("the header is cut off")
        found = self._value & ((1 << count) - 1)
        self._value >>= count
        self._left -= count
        return found

    def choose(self, *ways: tuple[int, int]) -> int:
        """A number in one of four ways, each an offset and how many bits are added to it."""
        offset, count = ways[self.take(2)]
        return offset + self.take(count)


def samples(encoded: bytes) -> int:
    """Width times height times channels, extra channels included.

    Raises:
        EOFError: the header is cut off.
    """
    bits = _Bits(_codestream(encoded)[2:130])
    width, height = _size(bits)
    return width * height * (3 + _extra_channels(bits))


def _codestream(encoded: bytes) -> bytes:
    """The beginning of the image itself, out of the boxes of a container."""
    if not encoded.startswith(_CONTAINER):
        return encoded
    place = 0
    for _box in range(_MAX_BOXES):
        size, kind = int.from_bytes(encoded[place : place + 4]), encoded[place + 4 : place + 8]
        body = place + 8
        if size == 1:
            size, body = int.from_bytes(encoded[place + 8 : place + 16]), place + 16
        if kind in (b"jxlc", b"jxlp"):
            return encoded[body + (4 if kind == b"jxlp" else 0) :]
        if size < 8:
            break
        place += size
    raise EOFError("the container has no image")


def _size(bits: _Bits) -> tuple[int, int]:
    is_small = bits.take(1)

    def side() -> int:
        return 8 * (1 + bits.take(5)) if is_small else bits.choose((1, 9), (1, 13), (1, 18), (1, 30))

    height = side()
    times, by = _RATIOS[bits.take(3)]
    return (height * times // by if times else side()), height


def _extra_channels(bits: _Bits) -> int:
    """How many channels there are besides those of colour."""
    if bits.take(1):  # all is as by default
        return 0
    if bits.take(1):  # there are extra fields
        bits.take(3)  # orientation
        if bits.take(1):
            _size(bits)  # the size it is meant for
        if bits.take(1):
            _skip_preview(bits)
        if bits.take(1):
            _skip_animation(bits)
    if bits.take(1):  # samples are floating-point numbers
        bits.choose((32, 0), (16, 0), (24, 0), (1, 6))
        bits.take(4)
    else:
        bits.choose((8, 0), (10, 0), (12, 0), (1, 6))
    bits.take(1)  # 16-bit buffers suffice
    return bits.choose((0, 0), (1, 0), (2, 4), (1, 12))


def _skip_preview(bits: _Bits) -> None:
    is_small = bits.take(1)

    def side() -> None:
        if is_small:
            bits.choose((16, 0), (32, 0), (1, 5), (33, 9))
        else:
            bits.choose((1, 6), (65, 8), (321, 10), (1345, 12))

    side()
    if not bits.take(3):
        side()


def _skip_animation(bits: _Bits) -> None:
    bits.choose((100, 0), (1000, 0), (1, 10), (1, 30))
    bits.choose((1, 0), (1001, 0), (1, 8), (1, 10))
    bits.choose((0, 0), (0, 3), (0, 16), (0, 32))
    bits.take(1)
