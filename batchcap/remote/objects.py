"""Owns what is done with files at addresses: look, read a range of one version, read a whole one, write one."""

import errno
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from batchcap.core.address import is_web, without_query
from batchcap.core.errors import UsageError
from batchcap.remote.attempts import NOTHING_THERE, ChangedError, attempt, is_past_the_end
from batchcap.remote.protocols import filesystem, protocol_of

# What the file systems call the version of a file, the surest first.
_VERSIONS = ("ETag", "generation", "etag", "blob_id", "Content-MD5", "Digest", "Last-Modified", "LastModified")
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a file without reading it.

    Attributes:
        size_bytes: its size; None where a server does not tell.
        version: another text after it has changed; empty where a server has none.
    """

    size_bytes: int | None
    version: str

    @property
    def number(self) -> int:
        """The version as a number with the range of a time in ns, for where files of this machine have that."""
        if not self.version:
            return 0
        return int.from_bytes(hashlib.blake2b(self.version.encode(), digest_size=8).digest()) >> 1


def look(address: str) -> Look:
    """What is at an address; raises as `attempts.attempt`, FileNotFoundError for a folder."""
    info = attempt(address, lambda: filesystem(address).info(address))
    if info.get("type") == "directory":
        raise FileNotFoundError(errno.ENOENT, NOTHING_THERE, address)
    return look_of(info)


def look_of(info: dict[str, Any]) -> Look:
    """What fsspec's file systems say of a file."""
    version = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
    return Look(info.get("size"), version)


def read_range(address: str, start: int, size: int, version: str) -> bytes:
    """Some bytes of a file; fewer where it ends before them.

    Args:
        address: of the file.
        start: the first byte.
        size: how many.
        version: of the file, as `Look` has it; empty: any.

    Raises:
        UsageError: the server has no ranges: asking again would not help.
        ChangedError: it has another version now. Servers that can't be asked for one version give what they have.
        OSError, NetworkError: as `attempts.attempt`.
    """
    if not size:
        return b""

    def request() -> bytes:
        try:
            data = _READ_RANGE.get(protocol_of(address), _read_any)(address, start, start + size, version)
        except Exception as error:
            if is_past_the_end(error):
                return b""
            raise
        if len(data) > size:
            raise UsageError(
                f"the server of {without_query(address)} does not give parts of files, in which tables and archives "
                "are read: download it, and give the file"
            )
        return data

    return attempt(address, request)


@lru_cache(1024)
def require_ranges(address: str) -> None:
    """Find out whether a web server gives parts of a file that has more than a byte.

    Raises:
        UsageError, OSError, NetworkError: as `read_range`.
    """
    read_range(address, 0, 1, "")


def _read_any(address: str, start: int, end: int, version: str) -> bytes:  # noqa: ARG001
    return bytes(filesystem(address).cat_file(address, start=start, end=end))


def _read_s3(address: str, start: int, end: int, version: str) -> bytes:
    from fsspec.asyn import sync  # noqa: PLC0415 - only for addresses

    files = filesystem(address)
    bucket, key, _version = files.split_path(address)
    condition = {"IfMatch": version} if version else {}
    found = files.call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}", **condition)
    return bytes(sync(files.loop, found["Body"].read))


def _read_web(address: str, start: int, end: int, version: str) -> bytes:
    # A weak mark of a version can't be asked for.
    headers = {"If-Match": version} if version.startswith('"') else {}
    headers["Range"] = f"bytes={start}-{end - 1}"
    return _stream(address, end - start, headers)  # a server without ranges sends all of it


def _read_gs(address: str, start: int, end: int, version: str) -> bytes:
    generation = version if version.isdigit() else None
    try:
        return bytes(filesystem(address).cat_file(address, start=start, end=end, generation=generation))
    except FileNotFoundError as error:
        if generation is None:
            raise
        raise ChangedError(str(error)) from error


_READ_RANGE = {"s3": _read_s3, "https": _read_web, "http": _read_web, "gs": _read_gs}


def read_whole(address: str, most_bytes: int) -> bytes:
    """All bytes of a file, up to one more than `most_bytes`; raises as `attempts.attempt`."""
    if not is_web(address):
        return read_range(address, 0, most_bytes + 1, "")
    return attempt(address, lambda: _stream(address, most_bytes))


def _stream(address: str, most_bytes: int, headers: dict[str, str] | None = None) -> bytes:
    """What a web server sends, whatever it says of its size; up to one byte more than `most_bytes`."""
    pieces = []
    left = most_bytes + 1
    # With a size, or it would ask for that first.
    with filesystem(address).open(address, block_size=0, size=1, headers=headers or {}) as file:
        while left and (piece := file.read(min(left, _PIECE_BYTES))):
            pieces.append(piece)
            left -= len(piece)
    return b"".join(pieces)
