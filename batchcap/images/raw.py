"""Owns how a camera raw file becomes an image: its largest preview, or the raw image itself where that is too small."""

import io
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import rawpy
from PIL import ExifTags, Image, UnidentifiedImageError

from batchcap.core.errors import ErrorKind, RowError
from batchcap.images import tiff
from batchcap.images.silence import silent_library
from batchcap.inputs.raw_files import other_directories
from batchcap.inputs.tiff_tags import TIFF, TiffFile

# Fewer pixels on the longer side tell too little of a photograph. What cameras show on their display has more.
MIN_PREVIEW_PX = 512
# The EXIF orientation of each way that LibRaw knows.
_ORIENTATIONS = (1, 2, 4, 3, 5, 8, 6, 7)
_MAX_ASPECT = 2.0
_BROKEN = (ArithmeticError, LookupError, OSError, RuntimeError, SyntaxError, TypeError, ValueError, struct.error)
# How a segment begins that LibRaw puts before a JPEG without EXIF at its beginning, and who it says has written it.
_EXIF, _ADDED = b"\xff\xe1", b"dcraw v"


def open_raw(encoded: bytes, max_pixels: int) -> Image.Image:
    """The image in a camera raw file; a JPEG is not loaded yet.

    Raises:
        Image.DecompressionBombError: there is no preview, and the raw image or a tile of it has more than `max_pixels`.
        RowError: CORRUPT: there is no preview, and the raw image does not decode.
        UnidentifiedImageError: LibRaw does not know the file.
    """
    with silent_library(), rawpy.RawPy() as raw:
        try:
            raw.open_buffer(io.BytesIO(encoded))
        except rawpy.LibRawError as error:
            raise UnidentifiedImageError(_text(error)) from error
        preview = _preview(raw)
        sides = raw.sizes.raw_width, raw.sizes.raw_height
        if preview is not None and max(preview.size) >= min(MIN_PREVIEW_PX, max(sides)):
            return preview
        try:
            _require_size(raw, encoded, max_pixels)
            return _developed(raw)
        except rawpy.LibRawError as error:
            small = "" if preview is None else f" of more than {preview.width} x {preview.height} pixels"
            message = f"the camera raw file has no JPEG preview{small}, and its raw image does not decode"
            raise RowError(ErrorKind.CORRUPT, f"{message} ({_text(error)}): convert it to JPEG or PNG") from error


def _preview(raw: rawpy.RawPy) -> Image.Image | None:
    """The largest preview; None where there is none that can be read.

    One that is no JPEG is not looked at: rawpy gives it the size that the file says, and no check that it has as many
    bytes. Such previews are small.
    """
    try:
        found = raw.extract_thumb().data
        image = Image.open(io.BytesIO(_without_added(found)), formats=("JPEG",)) if isinstance(found, bytes) else None
    except (*_BROKEN, rawpy.LibRawError, rawpy.NotSupportedError):
        return None
    if image is not None:
        with suppress(*_BROKEN):  # EXIF that says nothing
            if ExifTags.Base.Orientation not in (exif := image.getexif()):
                exif[ExifTags.Base.Orientation] = _ORIENTATIONS[raw.sizes.flip & 7]
    return image


def _without_added(jpeg: bytes) -> bytes:
    """A JPEG as it lies in the file: what LibRaw adds hides an orientation that it has itself."""
    end = 4 + int.from_bytes(jpeg[4:6])
    return jpeg[:2] + jpeg[end:] if jpeg[2:4] == _EXIF and _ADDED in jpeg[6:end] else jpeg


def _require_size(raw: rawpy.RawPy, encoded: bytes, max_pixels: int) -> None:
    """Refuse a raw image that would take too much memory, before there is any taken for it."""
    sizes = raw.sizes
    # A hostile shape of a pixel is stretched to any size; those of cameras are square, or one to two.
    is_odd = not 1 / _MAX_ASPECT <= sizes.pixel_aspect <= _MAX_ASPECT
    if is_odd or sizes.raw_width * sizes.raw_height > max_pixels:
        raise Image.DecompressionBombError
    tiles = (tiff.tile_px(encoded, place) for place in other_directories(TiffFile(encoded)))
    if encoded.startswith(TIFF) and any(pixels > max_pixels for pixels in tiles):
        raise Image.DecompressionBombError


def _developed(raw: rawpy.RawPy) -> Image.Image:
    """The raw image as the camera would have shown it, upright; of half the size where that is enough."""
    sizes = raw.sizes
    is_large = max(sizes.width, sizes.height) >= 2 * MIN_PREVIEW_PX
    return _image(raw.postprocess(half_size=is_large, use_camera_wb=True, output_bps=8))


def _image(values: np.ndarray[Any, np.dtype[Any]]) -> Image.Image:
    return Image.fromarray(values[:, :, 0] if values.ndim == 3 and values.shape[2] == 1 else values)


def _text(error: Exception) -> str:
    reason = error.args[0] if error.args else ""
    return (reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)) or type(error).__name__
