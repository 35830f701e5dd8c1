"""Owns the directory of a zip archive: which members it has, and which of them can't be read.

It is read entry by entry: zipfile makes an object of each, which would take a gigabyte for a million images.
"""

import stat
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from batchcap.core.errors import ErrorKind
from batchcap.core.text import one_line
from batchcap.inputs.members import Damage, Member, RowFault, member_name

STORED, DEFLATED, BZIP2, LZMA = 0, 8, 12, 14
_METHODS = {
    1: "shrink",
    6: "implode",
    9: "deflate64",
    93: "zstd",
    95: "xz",
    96: "jpeg",
    98: "ppmd",
    99: "AES encryption",
}
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_MAX_COMMENT_BYTES = 0xFFFF
_IS_ENCRYPTED, _IS_PATCH, _IS_UTF_8, _IS_MASKED = 0x1, 0x20, 0x800, 0x2000
_UNKNOWN_32 = 0xFFFFFFFF
_EXTRA_64 = 1
# Systems whose archives have the kind of a file: Unix, macOS.
_UNIX = frozenset({3, 19})


class NoZipError(Exception):
    """A file is no zip archive, or none that can be read; the message is a reason."""


class _Directory(NamedTuple):
    """Where the directory is.

    Attributes:
        start: byte that it begins with.
        size: bytes of it.
        entries: how many it has.
        shift: bytes before the archive in its file, which the offsets in it don't count.
    """

    start: int
    size: int
    entries: int
    shift: int


class ZipDirectory:
    """The directory of a zip archive.

    Args:
        file: the archive.

    Raises:
        NoZipError: it is none.
        OSError: the disk can't be read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._where = _directory(file)
        self._end = self._where.start + self._where.size

    def members(self) -> Iterator[tuple[int, Member] | Damage]:
        """The members that are files, each with the byte that its entry begins with.

        Raises:
            NoZipError: the first one is damaged.
            OSError: the disk can't be read.
        """
        self._file.seek(self._where.start)
        for number in range(self._where.entries):
            offset = self._file.tell()
            member = _next_member(self._file, self._end, self._where.shift)
            if member is None:
                if not number:
                    raise NoZipError(f"its directory is damaged at byte {offset}")
                yield Damage(offset, f"the archive's directory is damaged at byte {offset}, after {number} entries")
                return
            if not member.name.endswith("/"):
                yield offset, member

    def member_at(self, offset: int) -> Member:
        """The member whose entry begins with a byte, as `members` gave it.

        Raises:
            NoZipError: it is no longer there.
            OSError: the disk can't be read.
        """
        self._file.seek(offset)
        member = _next_member(self._file, self._end, self._where.shift)
        if member is None:
            raise NoZipError(f"its directory has changed at byte {offset}")
        return member


def _directory(file: BinaryIO) -> _Directory:
    size = file.seek(0, 2)
    start = file.seek(max(0, size - _END.size - _MAX_COMMENT_BYTES))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        raise NoZipError("it has no directory at its end: it is cut off, or none at all")
    _mark, disk, first_disk, _here, entries, length, offset, _comment = _END.unpack_from(tail, at)
    end = start + at
    if (found := _end_64(file, end)) is not None:
        end, entries, length, offset = found
    elif (disk, first_disk) != (0, 0):
        raise NoZipError("it is a part of a split archive: join the parts first")
    shift = end - length - offset
    if shift < 0:
        raise NoZipError("its directory does not lie where it says")
    return _Directory(offset + shift, length, entries, shift)


def _end_64(file: BinaryIO, end: int) -> tuple[int, int, int, int] | None:
    """Where the end of a large archive's directory is, and its number of entries, its size and its offset."""
    if end < _LOCATOR_64.size + _END_64.size:
        return None
    file.seek(end - _LOCATOR_64.size)
    mark, _disk, _offset, disks = _LOCATOR_64.unpack(file.read(_LOCATOR_64.size))
    if mark != b"PK\6\7":
        return None
    if disks > 1:
        raise NoZipError("it is a part of a split archive: join the parts first")
    end -= _LOCATOR_64.size + _END_64.size
    file.seek(end)
    mark, _size, _made, _needed, _disk, _first, _here, entries, length, offset = _END_64.unpack(file.read(_END_64.size))
    return (end, entries, length, offset) if mark == b"PK\6\6" else None


def _next_member(file: BinaryIO, end: int, shift: int) -> Member | None:
    """The next entry; None where there is none."""
    header = file.read(_ENTRY.size) if file.tell() + _ENTRY.size <= end else b""
    if len(header) < _ENTRY.size or not header.startswith(b"PK\1\2"):
        return None
    fields = _ENTRY.unpack(header)
    made_by, flags, method = fields[1], fields[3], fields[4]
    crc, packed, size, *lengths = fields[7:13]
    external, at = fields[15:]
    variable = file.read(sum(lengths))
    if len(variable) < sum(lengths) or file.tell() > end:
        return None
    name_bytes, extra_bytes, _comment_bytes = lengths
    raw = variable[:name_bytes].partition(b"\0")[0]
    size, packed, at = _sizes_64(variable[name_bytes : name_bytes + extra_bytes], size, packed, at)
    name = member_name(raw.decode("utf-8", "backslashreplace") if flags & _IS_UTF_8 else raw.decode("cp437"))
    mode = external >> 16 if made_by >> 8 in _UNIX else 0
    fault = _fault(one_line(name), flags, method, mode)
    if fault is None and method == STORED and packed != size:
        fault = ErrorKind.CORRUPT, f"{one_line(name)} is stored with {packed} bytes and has {size}"
    return Member(name, at + shift, size, fault, packed=packed, method=method, crc=crc)


def _sizes_64(extra: bytes, *sizes: int) -> list[int]:
    """Numbers of an entry, those among them that need 64 bits from its extra field."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == _EXTRA_64:
            numbers = iter(struct.unpack_from(f"<{min(length, len(extra) - 4) // 8}Q", extra, 4))
            return [next(numbers, size) if size == _UNKNOWN_32 else size for size in sizes]
        extra = extra[4 + length :]
    return list(sizes)


def _fault(shown: str, flags: int, method: int, mode: int) -> RowFault | None:
    """Why a member's content can't be had."""
    if flags & (_IS_ENCRYPTED | _IS_MASKED):
        return ErrorKind.REFUSED, f"{shown} is encrypted: unpack the archive with its password and give the folder"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        what = "a symbolic link" if stat.S_ISLNK(mode) else "a device or a pipe"
        return ErrorKind.REFUSED, f"{shown} is {what}, which is not followed: put the file itself into the archive"
    if flags & _IS_PATCH or method not in (STORED, DEFLATED, BZIP2, LZMA):
        packing = "a patch" if flags & _IS_PATCH else f"packed with {_METHODS.get(method, 'an unknown method')}"
        return ErrorKind.UNREADABLE, f"{shown} is {packing} (method {method}), which is not read: pack it with deflate"
    return None
