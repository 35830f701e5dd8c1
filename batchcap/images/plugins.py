"""Owns how images of other formats are opened: with the packages of `inputs.plugins`, loaded when one is needed."""

import io
from collections.abc import Callable
from functools import cache

from PIL import Image, UnidentifiedImageError

from batchcap.images import jxl
from batchcap.inputs.content import PREFIX_BYTES, plugin_for
from batchcap.inputs.plugins import HEIF, JXL, Plugin


def open_with_plugin(encoded: bytes, max_pixels: int) -> Image.Image | None:
    """The image, not loaded yet, if a package that is there reads such; else None.

    Raises:
        Image.DecompressionBombError: its header says that it takes more memory than an image of `max_pixels`.
        UnidentifiedImageError: the package does not know it.
    """
    plugin = plugin_for(encoded[:PREFIX_BYTES])
    if plugin is None or not plugin.is_installed or not _is_registered(plugin):
        return None
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


_REGISTER: dict[Plugin, Callable[[], None]] = {HEIF: _register_heif, JXL: _register_jxl}


@cache
def _is_registered(plugin: Plugin) -> bool:
    try:
        _REGISTER[plugin]()
    except ImportError:  # it is there, and a library that it needs is not
        return False
    return True
