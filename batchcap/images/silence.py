"""Owns the silence of Pillow and of what is below it: the row tells what is wrong with an image, stderr does not."""

import ctypes
import logging
import warnings
from contextlib import suppress

from PIL import Image, _imaging


def silence() -> None:
    """Odd metadata and damaged pixels are not worth a line for every image; faults that matter become a RowError."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    # libtiff writes its errors to stderr by itself, up to one for every line of an image, and Pillow lets it.
    with suppress(OSError, AttributeError):  # a Pillow with another libtiff, or none
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)
