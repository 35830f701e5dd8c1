"""Owns how images of other formats are opened: with the packages of `inputs.plugins`, loaded when one is needed."""

import io
from collections.abc import Callable
from functools import cache

from PIL import Image, UnidentifiedImageError

from batchcap.images import jxl
from batchcap.inputs.content import plugin_for
from batchcap.inputs.plugins import HEIF, JXL, RAW, Plugin


def open_with_plugin(encoded: bytes, max_pixels: int) -> Image.Image | None:
    """The image, not loaded yet, if it is one that a package reads; None if Pillow reads it without any.

    Raises:
        Image.DecompressionBombError: its header says that it takes more memory than an image of `max_pixels`.
        RowError: CORRUPT.
        UnidentifiedImageError: the package does not know it, or is not there.
    """
    plugin = plugin_for(encoded)
    if plugin is None:
        return None
    if not plugin.is_installed or not _is_registered(plugin):  # Pillow would take the thumbnail of a raw file
        raise UnidentifiedImageError(plugin.noun)
    if plugin is RAW:
        from batchcap.images.raw import open_raw  # noqa: PLC0415 - its package may not be there

        return open_raw(encoded, max_pixels)
    if plugin is JXL and jxl.samples(encoded) > jxl.SAMPLES_PER_PIXEL * max_pixels:  # its opener decodes
        raise Image.DecompressionBombError
    try:
        return Image.open(io.BytesIO(encoded), formats=(plugin.format,))
    except (RuntimeError, ValueError) as error:
        raise UnidentifiedImageError(str(error)) from error


def _register_heif() -> None:
    import pillow_heif  # noqa: PLC0415 - a tenth of a second, and few jobs need it

    # Images are decoded several at a time already.
    pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)


def _register_jxl() -> None:
    from pillow_jxl import JpegXLImagePlugin  # noqa: PLC0415 - as above

    JpegXLImagePlugin.DECODE_THREADS = 0


def _load_rawpy() -> None:
    import rawpy  # noqa: F401, PLC0415 - as above


_REGISTER: dict[Plugin, Callable[[], None]] = {HEIF: _register_heif, JXL: _register_jxl, RAW: _load_rawpy}


@cache
def _is_registered(plugin: Plugin) -> bool:
    try:
        _REGISTER[plugin]()
    except ImportError:  # it is there, and a library that it needs is not
        return False
    return True
