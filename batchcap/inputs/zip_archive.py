"""Owns zip archives as inputs: an index of the directory, and members that are stored or packed."""

import bz2
import lzma
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa

from batchcap.core.errors import ErrorKind, RowError, UsageError
from batchcap.core.sources import Bytes, FileAt, ImageRef
from batchcap.inputs.archive import ArchiveFiles, Contents, open_regular
from batchcap.inputs.columns import shown
from batchcap.inputs.content import PREFIX_BYTES, other_format
from batchcap.inputs.encoded import require_size
from batchcap.inputs.index_cache import index_of
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
from batchcap.inputs.samples import IndexBuilder, StoredMember, fault_of, key_codes, stored_fault
from batchcap.inputs.zip_directory import BZIP2, LZMA, STORED, NoZipError, zip_members

_INDEX = "zip-1"
_FIELDS = ("packed", "method", "crc")
_BATCH_ENTRIES = 8192
_ENTRY_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("name", "key", "fault")),
        *((name, pa.bool_()) for name in ("is_image", "is_sidecar")),
        *((name, pa.int64()) for name in ("offset", "size", *_FIELDS)),
    ]
)
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_DICTIONARY_BYTES = 1 << 28
_INFLATE_ERRORS = (zlib.error, OSError, EOFError, ValueError, lzma.LZMAError)


class _Decompressor(Protocol):
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _ZipContents(Contents):
    """A zip archive: what is stored is read where it is needed, what is packed is unpacked here."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = str(path)
        self._file = file

    def image(self, member: StoredMember) -> ImageRef:
        require_size("the encoded image", member.size)
        if member.method == STORED:
            return FileAt(self._path, self._start(member), member.size)
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
    suffixes = frozenset({".zip"})

    @staticmethod
    def index(path: Path) -> pa.Table:
        """The samples, of which only the directory is read, and classes."""
        return index_of(path, _INDEX, lambda: _index(path))

    def open_contents(self, path: Path) -> Contents:
        """The archive."""
        return _ZipContents(path, open_regular(path))


def _index(path: Path) -> pa.Table:
    with open_regular(path) as file:
        try:
            entries, damages = _entries(zip_members(file))
        except NoZipError as error:
            file.seek(0)
            beginning = file.read(PREFIX_BYTES)
            what = None if beginning.startswith(b"PK") else other_format(beginning)
            is_one = what is None
            wrong = f"is no zip archive that can be read ({error}): mend it or leave it out" if is_one else f"is {what}"
            raise UsageError(f"{shown(path)} {wrong}") from None
        order = _grouped_order(entries)
        if order is not None:
            entries = entries.take(order)
        builder = IndexBuilder(_FIELDS, is_grouped=order is not None)
        return builder.build(chain(_with_classes(entries, _ZipContents(path, file)), damages))


def _entries(members: Iterable[Member | Damage]) -> tuple[pa.Table, list[Damage]]:
    """The members as a table, which takes a tenth of the memory; damages apart, which come last."""
    batches = [pa.RecordBatch.from_pylist([], _ENTRY_SCHEMA)]
    damages: list[Damage] = []

    def kept() -> Iterator[dict[str, Any]]:
        for member in members:
            if isinstance(member, Damage):
                damages.append(member)
            elif not is_passed_over(member.name):
                key, extension = key_and_extension(member.name)
                yield {
                    **{name: getattr(member, name) for name in ("name", "offset", "size", *_FIELDS)},
                    "fault": stored_fault(member.fault),
                    "key": key,
                    "is_image": is_image(extension),
                    "is_sidecar": extension in SIDECARS,
                }

    rows = kept()
    while batch := list(islice(rows, _BATCH_ENTRIES)):
        batches.append(pa.RecordBatch.from_pylist(batch, _ENTRY_SCHEMA))
    return pa.Table.from_batches(batches), damages


def _grouped_order(entries: pa.Table) -> pa.Array | None:
    """The members with those of one key together, wherever they are; None where no key has an image and a sidecar.

    Zip archives are made in any order, and no one reads them from their beginning to their end.
    """
    codes = key_codes(entries["key"])
    images, sidecars = (np.unique(codes[entries[name].to_numpy()]) for name in ("is_image", "is_sidecar"))
    if not len(np.intersect1d(images, sidecars)):
        return None
    return pa.array(np.argsort(codes, kind="stable"))


def _with_classes(entries: pa.Table, contents: Contents) -> Iterator[Member]:
    """The members of a table again, with the content of those that are classes."""
    for batch in entries.to_batches(max_chunksize=_BATCH_ENTRIES):
        for row in batch.to_pylist():
            fault = None if row["fault"] is None else fault_of(row["fault"])
            member = Member(row["name"], row["offset"], row["size"], fault, **{name: row[name] for name in _FIELDS})
            if fault is None and member.size <= MAX_CLASS_BYTES and key_and_extension(member.name)[1] == CLASS:
                with suppress(RowError):
                    stored = StoredMember(CLASS, None, *(row[name] for name in ("offset", "size", *_FIELDS)))
                    member = member._replace(content=contents.content(stored))
            yield member
