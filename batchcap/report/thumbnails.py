"""Owns the small images of the page: made from untrusted files in a process that can be lost."""

import base64
import io
import multiprocessing
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

from batchcap.core.errors import RowError
from batchcap.core.records import ImageRow
from batchcap.images.colour import apply_profile
from batchcap.images.decode import decode
from batchcap.inputs.encoded import read_image

SIDE_PX = 256
QUALITY = 80
TIMEOUT_S = 60.0


class ThumbnailMaker:
    """Makes small JPEGs, one after the other.

    Args:
        max_image_pixels: larger images are not decoded.
        timeout_s: an image that takes longer has none.
    """

    def __init__(self, max_image_pixels: int, timeout_s: float = TIMEOUT_S) -> None:
        self._max_image_pixels = max_image_pixels
        self._timeout_s = timeout_s
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._max_image_pixels), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()

    def make(self, row: ImageRow) -> str | None:
        """A row's image as a `data:` address; None where it can't be decoded, or not in time."""
        try:
            self._connection.send(row)
            if self._connection.poll(self._timeout_s):
                encoded: bytes | None = self._connection.recv()
                return None if encoded is None else f"data:image/jpeg;base64,{base64.b64encode(encoded).decode()}"
        except (EOFError, OSError):  # the process has ended over this image
            pass
        self._end()
        self._start()
        return None


def _serve(connection: Connection, max_image_pixels: int) -> None:
    try:
        while True:
            connection.send(_thumbnail(connection.recv(), max_image_pixels))
    except (EOFError, OSError, KeyboardInterrupt):
        return


def _thumbnail(row: ImageRow, max_image_pixels: int) -> bytes | None:
    try:
        image = decode(read_image(row).encoded, max_image_pixels)
    except RowError:
        return None
    image.pixels.thumbnail((SIDE_PX, SIDE_PX))
    file = io.BytesIO()
    apply_profile(image.pixels, image.profile).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
