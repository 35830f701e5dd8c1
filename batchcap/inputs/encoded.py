"""Owns how an image's encoded bytes are read: regular files only, never more than a bound, never a hang."""

import errno
import hashlib
import os
import stat
import time
from pathlib import Path
from typing import BinaryIO

from batchcap.core.address import address_of
from batchcap.core.errors import ErrorKind, RowError, UsageError
from batchcap.core.records import EncodedImage, ImageRow
from batchcap.core.sources import Address, Bytes, FileAt, ImageRef
from batchcap.inputs.cells import why_no_file
from batchcap.inputs.source import source_name

# No image within the pixel limit needs more; what is larger is no image, and would not fit in memory.
MAX_ENCODED_MIB = 1024
_MIB = 1024 * 1024
_SHOWN_LETTERS = 200
_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR})


def digest(encoded: bytes) -> str:
    """Hex SHA-256 of an image's encoded bytes."""
    return hashlib.sha256(encoded).hexdigest()


def read_encoded(row: ImageRow) -> bytes:
    """The encoded bytes of a row's image.

    Raises:
        RowError: what the manifest says of the row, MISSING (null cell, no such file), UNREADABLE (folder, device, no
            permission, input/output error), REFUSED (an address), NOT_AN_IMAGE (nothing in it), CORRUPT (the file ends
            before the image does) or TOO_LARGE.
    """
    if row.failure is not None:
        raise RowError(*row.failure)
    if row.image is None:
        raise RowError(ErrorKind.MISSING, "the image's cell is null")
    encoded = _bytes_of(row.image)
    if not encoded:
        raise RowError(ErrorKind.NOT_AN_IMAGE, "the image has no bytes at all")
    require_size("the encoded image", len(encoded))
    return encoded


def read_beginning(path: str, size_bytes: int) -> bytes | None:
    """The first bytes of a regular file; None where it is none or can't be read."""
    try:
        _require_regular(path, Path(path).stat().st_mode)
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(size_bytes)
    except (OSError, RowError):
        return None


def _bytes_of(image: ImageRef) -> bytes:
    match image:
        case Bytes(data):
            return data
        case FileAt():
            return _read_file(image)
        case Address(url):
            raise RowError(ErrorKind.REFUSED, why_no_file(url))


def _read_file(image: FileAt) -> bytes:
    address = address_of(image.path)
    return _read_local(image) if address is None else _read_remote(image, address)


def _read_remote(image: FileAt, address: str) -> bytes:
    from batchcap.remote.attempts import NetworkError  # noqa: PLC0415 - only for addresses
    from batchcap.remote.objects import read_range, read_whole  # noqa: PLC0415

    try:
        if image.size is None:
            return read_whole(address, MAX_ENCODED_MIB * _MIB)
        require_size("the encoded image", image.size)
        found = read_range(address, image.offset, image.size, image.version)
    except (UsageError, NetworkError) as error:
        kind = ErrorKind.NETWORK if isinstance(error, NetworkError) else ErrorKind.REFUSED
        raise RowError(kind, str(error)) from error
    except OSError as error:
        kind = ErrorKind.MISSING if error.errno in _NOT_THERE else ErrorKind.UNREADABLE
        raise RowError(kind, f"{source_name(address)}: {error.strerror or error}") from error
    if len(found) < image.size:
        raise RowError(ErrorKind.CORRUPT, f"{source_name(address)}: it ends before the image does")
    return found


def _read_local(image: FileAt) -> bytes:
    path, if_missing = image.path, image.if_missing
    try:
        _require_regular(path, Path(path).stat().st_mode)
        # Should a pipe take the file's place in between: do not wait for its writer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            _require_regular(path, status.st_mode)
            if image.size is None and not image.offset:
                require_size(path, status.st_size)  # before there is memory taken for it
                return file.read(MAX_ENCODED_MIB * _MIB + 1)
            return _read_range(file, image, status.st_size)
    except OSError as error:
        kind = ErrorKind.MISSING if error.errno in _NOT_THERE else ErrorKind.UNREADABLE
        is_nothing = kind is ErrorKind.MISSING or error.errno == errno.ENAMETOOLONG
        raise RowError(kind, _reason(path, error.strerror or str(error), if_missing if is_nothing else "")) from error
    except ValueError as error:  # a NUL in the path
        raise RowError(ErrorKind.MISSING, _reason(repr(path), str(error), if_missing)) from error


def _read_range(file: BinaryIO, image: FileAt, file_bytes: int) -> bytes:
    """The bytes of an image that does not fill its file; where they lie others have written."""
    size = file_bytes - image.offset if image.size is None else image.size
    if image.offset < 0 or size < 0 or image.offset + size > file_bytes:
        where = f"{image.path}: the image begins at byte {image.offset} and has {size} bytes"
        raise RowError(ErrorKind.CORRUPT, f"{where}, the file has {file_bytes} in all: it is cut off, or another one")
    require_size("the encoded image", size)
    file.seek(image.offset)
    return file.read(size)


def _reason(path: str, reason: str, hint: str) -> str:
    if not hint:
        return f"{path}: {reason}"
    # What is odd may be a whole image written as text.
    return f"{path if len(path) <= _SHOWN_LETTERS else f'{path[:_SHOWN_LETTERS]}…'}: {reason}; {hint}"


def _require_regular(path: str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise RowError(ErrorKind.UNREADABLE, f"{path}: is a folder, not an image file")
    if not stat.S_ISREG(mode):
        raise RowError(ErrorKind.UNREADABLE, f"{path}: is a pipe, socket or device, not an image file")


def require_size(name: str, size_bytes: int) -> None:
    """Refuse what is larger than any image, before there is memory taken for it.

    Raises:
        RowError: it is TOO_LARGE.
    """
    if size_bytes > MAX_ENCODED_MIB * _MIB:
        raise RowError(ErrorKind.TOO_LARGE, f"{name} is larger than {MAX_ENCODED_MIB} MiB")


def read_image(row: ImageRow) -> EncodedImage:
    """Read one image's bytes from where they lie. Safe to call from several threads.

    Raises:
        RowError: there are none, or too many.
    """
    started = time.perf_counter()
    encoded = read_encoded(row)
    sha256 = digest(encoded)
    return EncodedImage(row.index, encoded, sha256, (time.perf_counter() - started) * 1000)
