"""Owns tar archives as inputs, WebDataset's shards among them, also packed with gzip."""

import logging
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from batchcap.core.errors import ErrorKind, RowError, UsageError
from batchcap.core.sources import Bytes, FileAt, ImageRef
from batchcap.inputs.archive import ArchiveFiles, Contents, open_regular
from batchcap.inputs.columns import shown
from batchcap.inputs.content import PREFIX_BYTES, other_format
from batchcap.inputs.encoded import require_size
from batchcap.inputs.gzip_archive import has_points, is_gzip, unpacked, unpacked_by_offset
from batchcap.inputs.samples import IndexBuilder, IsGroupedError, StoredMember
from batchcap.inputs.storage import status_of, version_of
from batchcap.inputs.tar_headers import DAMAGE_ERRORS, NoTarError, is_of_the_disk, tar_members

log = logging.getLogger(__name__)

_MAGIC = b"ustar"  # of one whose first header is damaged


class _TarContents(Contents):
    """A tar archive that is not packed: images are read from it where they are needed."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._version = str(path), version_of(path)
        self._file = file

    def image(self, member: StoredMember) -> ImageRef:
        return FileAt(self._path, member.offset, member.size, version=self._version)

    def content(self, member: StoredMember) -> bytes:
        return _read(self._file, member)

    def close(self) -> None:
        self._file.close()


class _PackedContents(Contents):
    """A tar archive that is packed: images are read from it one after the other."""

    def __init__(self, file: BinaryIO, packed: BinaryIO) -> None:
        self._file = file
        self._packed = packed

    def image(self, member: StoredMember) -> ImageRef:
        require_size("the encoded image", member.size)
        return Bytes(self.content(member))

    def content(self, member: StoredMember) -> bytes:
        return _read(self._file, member)

    def close(self) -> None:
        self._file.close()
        self._packed.close()


def _read(file: BinaryIO, member: StoredMember) -> bytes:
    try:
        file.seek(member.offset)
        content = file.read(member.size)
    except DAMAGE_ERRORS as error:
        if is_of_the_disk(error):
            raise
        raise RowError(ErrorKind.CORRUPT, f"the archive is damaged where it is: {error}") from error
    if len(content) < member.size:
        raise RowError(ErrorKind.CORRUPT, "the archive ends inside of it: it is cut off, or another one")
    return content


class TarFiles(ArchiveFiles):
    """Tar archives, packed with gzip or not, whatever their suffix says."""

    kind = "tar"
    noun = "tar archive"
    index_name = "tar-1"
    suffixes = frozenset({".tar", ".tar.gz", ".tgz"})
    _is_told = False

    @staticmethod
    def build_index(path: Path, *, with_raws: bool) -> pa.Table:
        """The samples, by one pass over the headers."""
        return _index(path, with_raws=with_raws)

    def open_contents(self, path: Path) -> Contents:
        """The archive; what is packed is read from points that are kept, else from its beginning."""
        file = open_regular(path)
        if not is_gzip(file):
            return _TarContents(path, file)
        if not has_points() and not self._is_told:
            self._is_told = True
            log.info(
                "%s is packed with gzip: a run that goes on unpacks it from its beginning; pip install "
                "'batchcap[gzip]' keeps points to begin from",
                shown(path),
            )
        file.close()
        return _PackedContents(*unpacked_by_offset(path))


def _index(path: Path, *, with_raws: bool) -> pa.Table:
    with open_regular(path) as file:
        is_packed = is_gzip(file)
        size = None if is_packed else status_of(path).size_bytes
        archive = unpacked(file) if is_packed else file
        try:
            try:
                builder = IndexBuilder((), is_grouped=False, with_raws=with_raws)
                return builder.build(tar_members(archive, size, shown(path)))
            except IsGroupedError:
                builder = IndexBuilder((), is_grouped=True, with_raws=with_raws)
                return builder.build(tar_members(archive, size, shown(path)))
        except NoTarError as error:
            file.seek(0)
            beginning = file.read(PREFIX_BYTES)
            what = None if is_packed or _MAGIC in beginning else other_format(beginning)
            wrong = f"is no tar archive ({error}): mend it or leave it out" if what is None else f"is {what}"
            raise UsageError(f"{shown(path)} {wrong}") from None
