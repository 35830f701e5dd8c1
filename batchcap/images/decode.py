"""Owns the decoding of untrusted bytes: format by content, limits before decoding, every fault a `RowError`."""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

from PIL import ExifTags, Image, UnidentifiedImageError

from batchcap.errors import ErrorKind, RowError
from batchcap.images.colour import to_rgb

# What people keep pictures in. Pillow knows more, among them formats without a signature, which would take any text
# file for a picture, and ones that start other programs (EPS); none of them gets at untrusted bytes.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "QOI")
_SIGNATURE_BYTES = 16

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

# Odd metadata is not worth a line on stderr for every picture; faults that matter become a RowError.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture as a person sees it.

    Attributes:
        pixels: mode RGB, orientation applied, transparency laid over white.
        profile: ICC profile the RGB values still are in, or None for sRGB.
    """

    pixels: Image.Image
    profile: bytes | None


def decode(encoded: bytes, max_pixels: int) -> Picture:
    """Decode a picture; of an animation or a file of several pages the first one.

    Args:
        encoded: the file's bytes.
        max_pixels: pictures with more pixels are refused from their header, before any memory is taken.

    Raises:
        RowError: NOT_AN_IMAGE, CORRUPT or TOO_LARGE.
    """
    # Pillow's own check covers pictures inside of pictures (ICO, TIFF tiles) too; the same limit for both.
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with _open(encoded) as image:
            _require_size(image, max_pixels)
            image.load()
            _require_size(image, max_pixels)  # an icon's header may not tell the truth
            pixels, profile = to_rgb(_upright(image))
            return Picture(pixels, profile)
    except Image.DecompressionBombError as error:
        raise RowError(ErrorKind.TOO_LARGE, f"the picture has more than {max_pixels:,} pixels") from error
    except _PARSER_ERRORS as error:
        raise RowError(ErrorKind.CORRUPT, f"the picture does not decode: {error or type(error).__name__}") from error


def _open(encoded: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(encoded), formats=FORMATS)
    except UnidentifiedImageError as error:
        if _has_known_signature(encoded):
            raise RowError(ErrorKind.CORRUPT, "the picture's header is damaged or cut off") from error
        known = ", ".join(FORMATS)
        raise RowError(ErrorKind.NOT_AN_IMAGE, f"the content is no picture in a known format ({known})") from error


def _has_known_signature(encoded: bytes) -> bool:
    prefix = encoded[:_SIGNATURE_BYTES]
    checks = (Image.OPEN[name][1] for name in FORMATS if name in Image.OPEN)
    return any(accepts(prefix) for accepts in checks if accepts is not None)


def _require_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        message = f"the picture has {width} x {height} pixels, the limit is {max_pixels:,} (--max-image-pixels)"
        raise RowError(ErrorKind.TOO_LARGE, message)
    if width < 1 or height < 1:
        raise RowError(ErrorKind.BAD_SHAPE, f"the picture has {width} x {height} pixels")


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says; broken EXIF says nothing.

    `ImageOps.exif_transpose` would also write the EXIF block anew, which fails on odd ones, and copy every picture.
    """
    try:
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _PARSER_ERRORS:
        return image
    return image if turn is None else image.transpose(turn)
