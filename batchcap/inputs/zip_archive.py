"""Owns zip archives as inputs: an index of the directory, and members that are stored or packed."""

import bz2
import lzma
import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import pyarrow as pa

from batchcap.core.errors import ErrorKind, RowError, UsageError
from batchcap.core.sources import Bytes, FileAt, ImageRef
from batchcap.inputs.archive import ArchiveFiles, Contents, open_regular
from batchcap.inputs.columns import shown
from batchcap.inputs.content import PREFIX_BYTES, other_format
from batchcap.inputs.encoded import require_size
from batchcap.inputs.members import (
    CLASS,
    MAX_CLASS_BYTES,
    SIDECARS,
    Damage,
    Member,
    is_image,
    is_passed_over,
    key_and_extension,
)
from batchcap.inputs.samples import IndexBuilder, StoredMember
from batchcap.inputs.storage import version_of
from batchcap.inputs.zip_directory import BZIP2, LZMA, STORED, NoZipError, ZipDirectory

_FIELDS = ("packed", "method", "crc")
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_DICTIONARY_BYTES = 1 << 28
_INFLATE_ERRORS = (zlib.error, OSError, EOFError, ValueError, lzma.LZMAError)


class _Decompressor(Protocol):
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _ZipContents(Contents):
    """A zip archive: what is stored is read where it is needed, what is packed is unpacked here."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._version = str(path), version_of(path)
        self._file = file

    def image(self, member: StoredMember) -> ImageRef:
        require_size("the encoded image", member.size)
        if member.method == STORED:
            return FileAt(self._path, self._start(member), member.size, version=self._version)
        return Bytes(self.content(member))

    def content(self, member: StoredMember) -> bytes:
        require_size("what it is packed into", member.packed)
        self._file.seek(self._start(member))
        packed = self._file.read(member.packed)
        if len(packed) < member.packed:
            raise RowError(ErrorKind.CORRUPT, "the archive ends inside of it: it is cut off, or another one")
        content = packed if member.method == STORED else _unpacked(packed, member)
        if len(content) != member.size or zlib.crc32(content) != member.crc:
            raise RowError(ErrorKind.CORRUPT, "its checksum or size is not what the archive says: it is damaged")
        return content

    def close(self) -> None:
        self._file.close()

    def _start(self, member: StoredMember) -> int:
        """Where a member's content begins: after its own header, whose length the directory does not know."""
        self._file.seek(member.offset)
        header = self._file.read(_LOCAL.size)
        if len(header) < _LOCAL.size or not header.startswith(b"PK\3\4"):
            raise RowError(ErrorKind.CORRUPT, f"the archive has no member at byte {member.offset}: it is damaged")
        name_bytes, extra_bytes = _LOCAL.unpack(header)[-2:]
        return int(member.offset + _LOCAL.size + name_bytes + extra_bytes)


def _unpacked(packed: bytes, member: StoredMember) -> bytes:
    """A member's content, and one byte more where there is more: whoever says too little is found out, and no bomb."""
    try:
        if member.method == LZMA:
            packed = _lzma_file(packed)
        return _decompressor(member.method).decompress(packed, member.size + 1)
    except _INFLATE_ERRORS as error:
        raise RowError(ErrorKind.CORRUPT, f"it can't be unpacked: {error}") from error


def _decompressor(method: int) -> _Decompressor:
    if method == BZIP2:
        return bz2.BZ2Decompressor()
    if method == LZMA:
        return lzma.LZMADecompressor(lzma.FORMAT_ALONE, _MAX_DICTIONARY_BYTES)
    return zlib.decompressobj(-zlib.MAX_WBITS)


def _lzma_file(packed: bytes) -> bytes:
    """LZMA as zip has it (version, length of the properties, properties) as a file of its own of unknown size."""
    length = int.from_bytes(packed[2:4], "little")
    return packed[4 : 4 + length] + b"\xff" * 8 + packed[4 + length :]


class ZipFiles(ArchiveFiles):
    """Zip archives of images, also with texts and classes beside them."""

    kind = "zip"
    noun = "zip archive"
    index_name = "zip-1"
    suffixes = frozenset({".zip"})

    @staticmethod
    def build_index(path: Path, *, with_raws: bool) -> pa.Table:
        """The samples, of which only the directory is read, and classes."""
        return _index(path, with_raws=with_raws)

    def open_contents(self, path: Path) -> Contents:
        """The archive."""
        return _ZipContents(path, open_regular(path))


def _index(path: Path, *, with_raws: bool) -> pa.Table:
    with open_regular(path) as file:
        try:
            directory = ZipDirectory(file)
            offsets, damages, is_grouped = _order(directory, with_raws=with_raws)
            members = _with_classes(map(directory.member_at, offsets), _ZipContents(path, file))
            builder = IndexBuilder(_FIELDS, is_grouped=is_grouped, with_raws=with_raws)
            return builder.build(chain(members, damages))
        except NoZipError as error:
            file.seek(0)
            beginning = file.read(PREFIX_BYTES)
            what = None if beginning.startswith(b"PK") else other_format(beginning)
            is_one = what is None
            wrong = f"is no zip archive that can be read ({error}): mend it or leave it out" if is_one else f"is {what}"
            raise UsageError(f"{shown(path)} {wrong}") from None


def _order(directory: ZipDirectory, *, with_raws: bool) -> tuple[Iterable[int], list[Damage], bool]:
    """Where the entries of images and sidecars begin, what is damaged, and whether members of one key are a sample.

    If they are, they come together, wherever they lie: zip archives are made in any order, and nobody reads them from
    the beginning to the end. A number is kept for each key, not the key: there may be millions.
    """
    offsets, keys, sidecars, damages = array("q"), array("q"), bytearray(), []
    for found in directory.members():
        if isinstance(found, Damage):
            damages.append(found)
            continue
        offset, member = found
        key, extension = key_and_extension(member.name)
        is_sidecar = extension in SIDECARS
        if (is_sidecar or is_image(extension, with_raws=with_raws)) and not is_passed_over(member.name):
            offsets.append(offset)
            keys.append(hash(key))
            sidecars.append(is_sidecar)
    numbers, has_text = np.array(keys), np.frombuffer(bytes(sidecars), np.bool_)
    if not len(np.intersect1d(numbers[has_text], numbers[~has_text])):
        return offsets, damages, False
    _unique, first, codes = np.unique(numbers, return_index=True, return_inverse=True)
    return np.array(offsets)[np.argsort(first[codes], kind="stable")].tolist(), damages, True


def _with_classes(members: Iterable[Member], contents: Contents) -> Iterator[Member]:
    """The members, with the content of those that are classes."""
    for member in members:
        is_class = key_and_extension(member.name)[1] == CLASS
        if is_class and member.fault is None and member.size <= MAX_CLASS_BYTES:
            with suppress(RowError):
                numbers = (getattr(member, name) for name in ("offset", "size", *_FIELDS))
                yield member._replace(content=contents.content(StoredMember(CLASS, None, *numbers)))
                continue
        yield member
