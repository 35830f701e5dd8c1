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
        self._nowhere: int | None = None  # a file that is opened once, when it is needed
        self._before: int | None = None

    def enter(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1 and platform.libc_ver()[0] == "glibc":
                library = ctypes.CDLL(None)
                if self._nowhere is None:
                    library.fopen.restype = ctypes.c_void_p
                    self._nowhere = library.fopen(b"/dev/null", b"w")
                if self._nowhere is not None:
                    variable = ctypes.c_void_p.in_dll(library, "stderr")
                    self._before, variable.value = variable.value, self._nowhere

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._before is not None:
                ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stderr").value = self._before
                self._before = None


_C_ERRORS = _CErrors()


@contextmanager
def silent_library() -> Iterator[None]:
    """Calls of a C library that prints faults of a file; what other threads' libraries print meanwhile is lost."""
    _C_ERRORS.enter()
    try:
        yield
    finally:
        _C_ERRORS.leave()
