"""Owns the silence of Pillow and of what is below it: the row tells what is wrong with an image, stderr does not."""

import ctypes
import logging
import platform
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from PIL import Image, _imaging


def silence() -> None:
    """Odd metadata and damaged pixels are not worth a line for every image; faults that matter become a RowError."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    # libtiff writes its errors to stderr by itself, up to one for every line of an image, and Pillow lets it.
    with suppress(OSError, AttributeError):  # a Pillow with another libtiff, or none
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


class _CErrors:
    """What C libraries print to their `stderr`, which is not Python's; only where that can be changed (glibc)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before: int | None = None
        self._variable: ctypes.c_void_p | None = None
        if platform.libc_ver()[0] == "glibc":
            library = ctypes.CDLL(None)
            library.fopen.restype = ctypes.c_void_p
            self._variable = ctypes.c_void_p.in_dll(library, "stderr")
            self._nowhere: int | None = library.fopen(b"/dev/null", b"w")

    def enter(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1 and self._variable is not None and self._nowhere is not None:
                self._before, self._variable.value = self._variable.value, self._nowhere

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._before is not None and self._variable is not None:
                self._variable.value, self._before = self._before, None


_C_ERRORS = _CErrors()


@contextmanager
def silent_library() -> Iterator[None]:
    """Calls of a C library that prints faults of a file; what other threads' libraries print meanwhile is lost."""
    _C_ERRORS.enter()
    try:
        yield
    finally:
        _C_ERRORS.leave()
