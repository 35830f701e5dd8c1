"""Owns the decoding of untrusted bytes: format by content, limits before decoding, every fault a `RowError`."""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from batchcap.core.errors import ErrorKind, RowError
from batchcap.images import jpeg2000, tiff
from batchcap.images.colour import to_rgb
from batchcap.images.plugins import open_with_plugin
from batchcap.images.silence import silence
from batchcap.inputs.content import FORMATS, not_an_image
from batchcap.inputs.tiff_tags import TIFF

_JPEG2000 = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")

# What Pillow's parsers raise on damaged bytes, apart from its own errors.
_PARSER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# PNGs below 8 or with 16 bits a sample have their samples made 8 bits by Pillow, but not their transparent colour.
_TO_8_BIT: dict[object, Callable[[int], int]] = {
    "L;2": lambda sample: sample * 85,
    "L;4": lambda sample: sample * 17,
    "RGB;16B": lambda sample: sample >> 8,
}

# Pillow refuses a PNG for a profile or a text of more than 1 MiB, which sound ones have, and takes 64 times as much in
# all, four bytes a character: more in one, less in all.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 8 * 1024 * 1024
silence()


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A decoded image as a person sees it.

    Attributes:
        pixels: mode RGB, orientation applied, transparency laid over white.
        profile: ICC profile the RGB values still are in, or None for sRGB.
    """

    pixels: Image.Image
    profile: bytes | None


def decode(encoded: bytes, max_pixels: int) -> DecodedImage:
    """Decode an image; of an animation or a file of several pages the first one.

    Args:
        encoded: the file's bytes.
        max_pixels: images with more pixels are refused from their header, before any memory is taken.

    Raises:
        RowError: NOT_AN_IMAGE, CORRUPT or TOO_LARGE.
    """
    # Pillow's own check, which refuses from twice this on, covers images inside of images (ICO, GIF frames) too.
    Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2
    try:
        pixels, profile, turn = _load(encoded, max_pixels)
        # The image as it was stored is no longer in memory here.
        return DecodedImage(pixels if turn is None else pixels.transpose(turn), profile)
    except Image.DecompressionBombError as error:
        message = f"the image has more than {max_pixels:,} pixels (--max-image-pixels)"
        raise RowError(ErrorKind.TOO_LARGE, message) from error
    except _PARSER_ERRORS as error:
        raise RowError(ErrorKind.CORRUPT, f"the image does not decode: {error or type(error).__name__}") from error


def _load(encoded: bytes, max_pixels: int) -> tuple[Image.Image, bytes | None, Image.Transpose | None]:
    """The pixels in RGB as they are stored, their profile, and how they are to be turned."""
    _require_parts(encoded, max_pixels)
    with _open(encoded, max_pixels) as image:
        _require_size(image, max_pixels)
        _mend_transparent_colour(image)
        image.load()
        _require_size(image, max_pixels)  # an icon's header may not tell the truth
        return *to_rgb(image), _turn(image)


def _open(encoded: bytes, max_pixels: int) -> Image.Image:
    try:
        opened = open_with_plugin(encoded, max_pixels)
        return Image.open(io.BytesIO(encoded), formats=FORMATS) if opened is None else opened
    except UnidentifiedImageError as error:
        what = not_an_image(encoded)
        if what is None:
            raise RowError(ErrorKind.CORRUPT, "the image's header is damaged or cut off") from error
        raise RowError(ErrorKind.NOT_AN_IMAGE, f"the content is {what}") from error


def _require_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        message = f"the image has {width} x {height} pixels, the limit is {max_pixels:,} (--max-image-pixels)"
        raise RowError(ErrorKind.TOO_LARGE, message)
    if width < 1 or height < 1:
        raise RowError(ErrorKind.BAD_SHAPE, f"the image has {width} x {height} pixels")


def _require_parts(encoded: bytes, max_pixels: int) -> None:
    """Refuse what makes the libraries take memory for other things than the pixels."""
    if encoded.startswith(TIFF):
        if tiff.tile_px(encoded) > max_pixels:
            message = f"a tile of the image has more than {max_pixels:,} pixels (--max-image-pixels)"
            raise RowError(ErrorKind.TOO_LARGE, message)
        has_too_many_parts = tiff.has_too_many_parts(encoded)
    else:
        has_too_many_parts = encoded.startswith(_JPEG2000) and jpeg2000.has_too_many_parts(encoded)
    if has_too_many_parts:
        raise RowError(ErrorKind.TOO_LARGE, "the image has more tiles or strips than any valid file")


def _mend_transparent_colour(image: Image.Image) -> None:
    """Give the transparent colour of an image that is not loaded yet the range its pixels will have."""
    tiles = getattr(image, "tile", None)
    to_8_bit = _TO_8_BIT.get(tiles[0].args) if image.format == "PNG" and tiles else None
    transparent = image.info.get("transparency")
    if to_8_bit is None or transparent is None:
        return
    is_grey = isinstance(transparent, int)
    image.info["transparency"] = to_8_bit(transparent) if is_grey else tuple(map(to_8_bit, transparent))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What the EXIF orientation asks for; broken EXIF asks for nothing.

    `ImageOps.exif_transpose` would also write the EXIF block again, which fails on odd ones, and copy every image.
    """
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _PARSER_ERRORS:
        return None
