"""Owns archives of images as inputs: each sample is a row, with its image and its columns where the index says."""

import logging
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import pyarrow as pa

from batchcap.config import InputConfig
from batchcap.core.address import address_of
from batchcap.core.errors import ErrorKind, RowError, UsageError
from batchcap.core.records import ImageRow
from batchcap.core.sources import ImageRef, Piece
from batchcap.inputs.archive_layout import ArchiveLayout, archive_layout
from batchcap.inputs.beside import MAX_TEXT_BYTES
from batchcap.inputs.columns import quoted, shown
from batchcap.inputs.index_cache import index_of
from batchcap.inputs.members import CLASS, KEY_COLUMN, SIDECARS, is_image
from batchcap.inputs.plugins import RAW
from batchcap.inputs.reader import PassthroughColumns, Reader
from batchcap.inputs.samples import Sample, StoredMember, fault_of, has_image, is_number, read_samples
from batchcap.inputs.source import source_name
from batchcap.inputs.storage import open_binary
from batchcap.inputs.table import readable

log = logging.getLogger(__name__)


class Contents(ABC):
    """An archive, open for what is in its members."""

    @abstractmethod
    def image(self, member: StoredMember) -> ImageRef:
        """The image that a member is.

        Raises:
            RowError: it can't be had.
            OSError: the disk can't be read.
        """

    @abstractmethod
    def content(self, member: StoredMember) -> bytes:
        """What is in a member, whose size is within bounds; raises as `image`."""

    @abstractmethod
    def close(self) -> None:
        """Nothing more is read."""


def open_regular(path: Path) -> BinaryIO:
    """An archive's file. A pipe with such a name would be waited for without an end.

    Raises:
        UsageError: it is no regular file.
        OSError: the disk can't be read.
    """
    if address_of(path) is None and not stat.S_ISREG(path.stat().st_mode):
        raise UsageError(f"{shown(path)} is a pipe, socket or device, not an archive: leave it out")
    return open_binary(path)


@dataclass(frozen=True, slots=True)
class _Opened:
    """An archive that is being read.

    Attributes:
        path: of it.
        index: its samples.
        contents: its members.
    """

    path: Path
    index: pa.Table
    contents: Contents

    def samples(self, start: int, count: int) -> Iterator[list[Sample]]:
        """Some samples, a few at a time.

        Raises:
            UsageError: there are not so many.
        """
        if start + count > len(self.index):
            raise UsageError(f"{shown(self.path)} has changed while it was read: restore it, and run this again")
        return read_samples(self.index, start, count)


class ArchiveFiles(Reader):
    """Archives of one format.

    Attributes:
        index_name: what its index is kept as; another name is another index.
        found_in_folders: an archive beside images is a copy of them more often than not: it is taken where it is named.
    """

    index_name: ClassVar[str]
    found_in_folders: ClassVar[bool] = False

    def __init__(self, config: InputConfig, own_columns: frozenset[str] = frozenset()) -> None:
        super().__init__(config, own_columns)
        self._layouts: dict[Path, ArchiveLayout] = {}
        # One archive open for each purpose: a job may have thousands, and one that is packed is read in order.
        self._images: _Opened | None = None
        self._columns: _Opened | None = None
        self._told: set[tuple[Path, str]] = set()  # archives and columns that a warning has told of

    @classmethod
    def index(cls, path: Path) -> pa.Table:
        """The samples of an archive; see `IndexBuilder`. It is read once, and an index is kept.

        Camera raw files are images only where no others are: jobs that were begun before they were read go on with
        the rows they have, and one that lies beside its JPEG is the same photograph.

        Raises:
            UsageError: it can't be read.
            OSError: the disk can't be read.
        """
        index = index_of(path, cls.index_name, lambda: cls.build_index(path, with_raws=False))
        if not RAW.is_installed or has_image(index):
            return index
        return index_of(path, f"{cls.index_name}-raw", lambda: cls.build_index(path, with_raws=True))

    @staticmethod
    @abstractmethod
    def build_index(path: Path, *, with_raws: bool) -> pa.Table:
        """The samples; raises as `index`."""

    @abstractmethod
    def open_contents(self, path: Path) -> Contents:
        """An archive, for what is in it; raises as `index`."""

    def count(self, path: Path) -> int:
        """Samples of an archive; its headers are read once, and an index is kept."""
        with readable(path, self.noun):
            return len(self.index(path))

    def rows(self, piece: Piece, indexes: Sequence[int]) -> Iterator[ImageRow]:
        """Samples of an archive; one that is open already is gone on with."""
        path = Path(piece.path)
        layout = self._layout(path)
        source, wanted = source_name(piece.path), frozenset(indexes)
        index = indexes[0]
        row = piece.start + index - piece.first_row
        with readable(path, self.noun):
            opened = self._images = self._open(self._images, path)
            for samples in opened.samples(row, 1 + indexes[-1] - index):
                for sample in samples:
                    if index in wanted:
                        name = sample.key if layout.has_key_ids else f"{piece.source_id}:{sample.key}"
                        image, failure = _image_of(sample, layout.image, opened.contents)
                        yield ImageRow(index, name, source, row, image, failure)
                    index, row = index + 1, row + 1

    def passthrough(self, path: Path) -> PassthroughColumns | None:
        """Those that `--keep-columns` names; None for an archive of images alone."""
        layout = self._layout(path)
        return PassthroughColumns(path, layout.kept, layout.kept_as) if layout.has_columns else None

    def columns(self, piece: Piece) -> pa.Table | None:
        """Those of a piece; null where a sample has no such member, or one that can't be read."""
        path = Path(piece.path)
        layout = self._layout(path)
        if not layout.has_columns:
            return None
        with readable(path, self.noun):
            self._columns = self._open(self._columns, path)
            tables = list(self._tables(self._columns, layout.kept, piece.start, piece.rows))
        return pa.concat_tables(tables).rename_columns(list(layout.kept_as))

    def all_columns(self, path: Path) -> pa.Schema:
        """Key, members that are text, and those of its folders' names."""
        return self._layout(path).columns

    def values(self, path: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The columns, a few samples at a time."""
        columns = self._layout(path).columns
        schema = pa.schema([columns.field(name) for name in names])
        with readable(path, self.noun):
            opened = self._open(None, path)
            for table in self._tables(opened, schema, 0, len(opened.index)):
                yield from table.to_batches()
            opened.contents.close()

    def _layout(self, path: Path) -> ArchiveLayout:
        if path not in self._layouts:
            with readable(path, self.noun):
                self._layouts[path] = archive_layout(path, self.index(path), self.config, self.own_columns)
        return self._layouts[path]

    def _open(self, opened: _Opened | None, path: Path) -> _Opened:
        if opened is not None:
            if opened.path == path:
                return opened
            opened.contents.close()
        there = next((one for one in (self._images, self._columns) if one is not None and one.path == path), None)
        return _Opened(path, self.index(path) if there is None else there.index, self.open_contents(path))

    def _tables(self, opened: _Opened, schema: pa.Schema, start: int, count: int) -> Iterator[pa.Table]:
        for samples in opened.samples(start, count):
            rows = [self._values(opened, sample, schema.names) for sample in samples]
            arrays = [pa.array([row.get(field.name) for row in rows], field.type) for field in schema]
            # Without any column a table would have no rows.
            table = pa.table([pa.nulls(len(samples)), *arrays], ["", *schema.names])
            yield table.select(schema.names)

    def _values(self, opened: _Opened, sample: Sample, names: Sequence[str]) -> dict[str, Any]:
        """A sample's values; members in their order, since one that is packed is read on."""
        layout = self._layout(opened.path)
        found: dict[str, Any] = {KEY_COLUMN: sample.key, **layout.folders}
        for member in sample.members:
            name = member.extension
            if name not in SIDECARS or name not in names:
                continue
            try:
                text = _text_of(member, opened.contents)
            except RowError as error:
                self._tell_lost(opened.path, name, sample.key, error.message)
                continue
            is_text = name != CLASS or not layout.has_numbers
            found[name] = text if is_text else int(text) if is_number(text.encode()) else None
        return found

    def _tell_lost(self, path: Path, name: str, key: str, reason: str) -> None:
        if (path, name) not in self._told:
            self._told.add((path, name))
            log.warning(
                "column %s of %s is null where it can't be read, first in sample %s: %s",
                quoted(name),
                shown(path),
                quoted(key),
                reason,
            )


def _image_of(
    sample: Sample, extension: str | None, contents: Contents
) -> tuple[ImageRef | None, tuple[ErrorKind, str] | None]:
    """A sample's image, or why there is none."""
    if sample.failure is not None:
        return None, fault_of(sample.failure)
    for member in sample.members:
        if member.extension == extension or (extension is None and is_image(member.extension)):
            if member.fault is not None:
                return None, fault_of(member.fault)
            try:
                return contents.image(member), None
            except RowError as error:
                return None, (error.kind, error.message)
    what = "image" if extension is None else f"image {quoted(extension)}"
    there = ", ".join(member.extension for member in sample.members)
    return None, (ErrorKind.MISSING, f"the sample has no {what}, only {there}")


def _text_of(member: StoredMember, contents: Contents) -> str:
    """The text in a sidecar.

    Raises:
        RowError: there is none.
    """
    if member.fault is not None:
        raise RowError(*fault_of(member.fault))
    if member.size > MAX_TEXT_BYTES:
        raise RowError(ErrorKind.TOO_LARGE, f"it has {member.size} bytes, and {MAX_TEXT_BYTES} are the most")
    try:
        return contents.content(member).decode()
    except UnicodeDecodeError:
        raise RowError(ErrorKind.UNREADABLE, "it is not UTF-8 text") from None
