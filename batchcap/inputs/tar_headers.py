"""Owns the reading of a tar archive's headers: which members it has, and where it can't be read on.

Only headers are read, and contents are passed over. Nothing is unpacked, and no link is followed.
"""

import logging
import struct
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from batchcap.core.errors import ErrorKind
from batchcap.core.text import one_line
from batchcap.inputs.members import CLASS, MAX_CLASS_BYTES, Damage, Member, RowFault, member_name

log = logging.getLogger(__name__)

_BLOCK = tarfile.BLOCKSIZE
# Extended headers hold names and attributes. One that claims more would fill the memory.
_MAX_HEADER_BYTES = 1 << 20
# How far behind the end mark is looked whether another archive follows; tar pads to 10 KiB.
_LOOK_BEHIND_BYTES = 1 << 20
# What a damaged archive can make tarfile and the decompression raise. Of an `OSError` see `is_of_the_disk`.
DAMAGE_ERRORS = (
    tarfile.TarError,
    ValueError,
    ArithmeticError,
    LookupError,
    RecursionError,
    struct.error,
    zlib.error,
    EOFError,
    OSError,
)
_NOT_FOLLOWED = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


class NoTarError(Exception):
    """A file does not begin as a tar archive; the message is a reason."""


def is_of_the_disk(error: BaseException) -> bool:
    """Whether an error says nothing of the archive: the disk or the network may be well again soon."""
    return isinstance(error, OSError) and error.errno is not None


class _HeaderFile:
    """What tarfile reads headers from: never more than a bound for one member."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._first = b""
        self._left = 0

    def start(self, offset: int) -> bytes:
        """The first block of a member's headers, which is read again: what is packed has no way back."""
        self._file.seek(offset)
        self._first, self._left = self._file.read(_BLOCK), _MAX_HEADER_BYTES
        return self._first

    def read(self, size: int) -> bytes:
        if self._first:
            block, self._first = self._first, b""
            return block
        if not 0 <= size <= self._left:
            raise tarfile.ReadError(f"its header is larger than {_MAX_HEADER_BYTES} bytes")
        self._left -= size
        return self._file.read(size)

    def seek(self, offset: int) -> int:
        return self._file.seek(offset)

    def tell(self) -> int:
        return self._file.tell()


class _Headers(tarfile.TarFile):
    """What `TarInfo.fromtarfile` needs; members are neither read at once nor kept."""

    def next(self) -> None:
        """Nothing: the first header is read as all others."""
        return


def tar_members(file: BinaryIO, size: int | None, name: str) -> Iterator[Member | Damage]:
    """The members of a tar archive that are files, or stand for one.

    Args:
        file: the archive, unpacked.
        size: bytes of it; None where only reading tells.
        name: of the archive, in messages.

    Raises:
        NoTarError: it is none from its beginning.
        OSError: the disk can't be read.
    """
    source = _HeaderFile(file)
    headers = _Headers(fileobj=source, mode="r", encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]
    offset = 0
    while True:
        try:
            block = source.start(offset)
            info = tarfile.TarInfo.fromtarfile(headers) if any(block) else None
            if info is not None and (info.size < 0 or not offset < info.offset_data <= headers.offset):
                raise tarfile.ReadError("its size makes no sense")
        except DAMAGE_ERRORS as error:
            _raise_if_it_says_nothing(error)
            if not offset:
                raise NoTarError(one_line(str(error))) from None
            yield Damage(offset, f"the archive can't be read from byte {offset} on: {one_line(str(error))}")
            return
        if info is None:
            _look_at_end(file, block, offset, name)
            return
        content_bytes = headers.offset - info.offset_data
        if info.sparse is None:
            content_bytes = min(content_bytes, info.size)  # without the padding
        content = _class_content(file, info)
        is_cut = not _reaches(file, size, info.offset_data + content_bytes)
        if not info.isdir():
            yield _member(info, content, is_cut=is_cut)
        if is_cut:
            yield Damage(offset, f"the archive ends inside of {one_line(member_name(info.name))}: it is cut off")
            return
        offset = headers.offset


def _member(info: tarfile.TarInfo, content: bytes | None, *, is_cut: bool) -> Member:
    name = member_name(info.name)
    return Member(name, info.offset_data, info.size, _fault(info, one_line(name), is_cut=is_cut), is_cut, content)


def _fault(info: tarfile.TarInfo, shown: str, *, is_cut: bool) -> RowFault | None:
    """Why a member's content can't be had."""
    if is_cut:
        return ErrorKind.CORRUPT, f"the archive ends inside of {shown}: it is cut off"
    if info.type in _NOT_FOLLOWED:
        what = _NOT_FOLLOWED[info.type]
        return ErrorKind.REFUSED, f"{shown} is {what}, which is not followed: put the file itself into the archive"
    if info.sparse is not None:
        return ErrorKind.REFUSED, f"{shown} is stored as a sparse file, which is not read: pack it without --sparse"
    return None


def _class_content(file: BinaryIO, info: tarfile.TarInfo) -> bytes | None:
    """What is in a class, while the file is read here anyway; None of all other members."""
    if not info.isreg() or info.size > MAX_CLASS_BYTES or not info.name.lower().endswith(f".{CLASS}"):
        return None
    try:
        file.seek(info.offset_data)
        return file.read(info.size)
    except DAMAGE_ERRORS as error:
        _raise_if_it_says_nothing(error)
        return None


def _reaches(file: BinaryIO, size: int | None, offset: int) -> bool:
    """Whether the archive has all bytes before an offset."""
    if size is not None:
        return offset <= size
    try:
        return offset == file.seek(offset - 1) + len(file.read(1))
    except DAMAGE_ERRORS as error:
        _raise_if_it_says_nothing(error)
        return False


def _look_at_end(file: BinaryIO, block: bytes, offset: int, name: str) -> None:
    """Say what tarfile does not: that an archive goes on after its end, as joined ones do, or has none."""
    if not block and not offset:
        raise NoTarError("it is empty")
    if len(block) < _BLOCK:
        log.warning("%s ends without the mark of its end: it may be cut off", name)
        return
    try:
        if any(file.read(_LOOK_BEHIND_BYTES)):
            log.warning("%s goes on after the mark of its end, as joined archives do: what follows is not read", name)
    except DAMAGE_ERRORS as error:
        _raise_if_it_says_nothing(error)


def _raise_if_it_says_nothing(error: Exception) -> None:
    """Raise an error again that is not one of the archive."""
    if is_of_the_disk(error):
        raise error
