"""Owns whether a source still gives what was captioned: the images, and of a table also the ids and carried columns."""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from batchcap.core.errors import ErrorKind, RowError
from batchcap.core.records import CaptionRow, ImageRow, Shard, Status
from batchcap.core.sources import FileAt, Piece
from batchcap.core.text import shown_name
from batchcap.inputs.columns import shown
from batchcap.inputs.encoded import digest, read_encoded
from batchcap.inputs.registry import READERS
from batchcap.job.plan import Plan
from batchcap.job.stop import ShouldStop, StoppedError
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.parts import read_passthrough
from batchcap.store.plan_tables import ChangedSource
from batchcap.store.shard_state import finished_rows, shard_state_of

log = logging.getLogger(__name__)

# A comparison that takes longer says so, and then how far it is, now and again.
_QUIET_S, _EVERY_S = 5.0, 60.0

EndedRow = tuple[int, CaptionRow]


class Difference(NamedTuple):
    """The first row of a table that is not what was captioned.

    Attributes:
        row: in the source, from 0.
        reason: what is different.
    """

    row: int
    reason: str


class Comparison:
    """Compares the rows that have ended with what their sources give now.

    Args:
        folder: the job's.
        journal: the job's.
        plan: the job's, up to date.
        should_stop: asked before each image is read.
    """

    def __init__(self, folder: JobFolder, journal: Journal, plan: Plan, should_stop: ShouldStop) -> None:
        self._folder = folder
        self._journal = journal
        self._plan = plan
        self._should_stop = should_stop
        self.has_unread = False  # whether an image of the last source could not be read
        self._gone = 0  # images of the last source that are not there any more
        self._shard: Shard | None = None  # the last one: one image after the other asks for it
        self._rows: dict[int, CaptionRow] = {}
        self._carried: pa.Table | None = None

    def ended(self, source: ChangedSource) -> Iterator[tuple[Piece, list[EndedRow]]]:
        """The rows of a source that have ended, those of a shard together."""
        for piece in source.pieces:
            index, end = piece.first_row, piece.first_row + piece.rows
            while index < end:
                stop = min(end, self._load(index))
                start = piece.start + index - piece.first_row
                here = piece._replace(first_row=index, start=start, rows=stop - index)
                yield here, [(one, self._rows[one]) for one in range(index, stop) if one in self._rows]
                index = stop

    def stale_images(self, source: ChangedSource) -> Iterator[list[EndedRow]]:
        """The rows of a source that is an image itself, if they are not of the image that is there now."""
        self.has_unread = False
        for _piece, rows in self.ended(source):
            if stale := [(index, row) for index, row in rows if self._is_stale(source, row)]:
                yield stale

    def first_difference(self, source: ChangedSource) -> Difference | None:
        """The first row of a table or archive that is not what was captioned; None where all are as they were.

        Rows that failed are not compared. Of an image that is gone, or can't be read, its caption is all there is.

        Raises:
            StoppedError: it is time to stop.
            UsageError: the source can't be read.
        """
        self.has_unread, self._gone = False, 0
        progress = _Progress(source)
        for piece, rows in self.ended(source):
            left = max(0, min(piece.rows, source.rows - piece.start))
            wanted = {
                index: row
                for index, row in rows
                if index < piece.first_row + left and row.status is Status.OK and row.image_sha256 is not None
            }
            if wanted and (found := self._difference_in(piece._replace(rows=left), wanted, progress)):
                return found
        if self._gone:
            log.warning("the images of %d rows of %s are gone: their captions stay", self._gone, progress.name)
        if source.pieces and source.rows < source.rows_before:
            return Difference(source.rows, "it is not there any more")
        return None

    def _difference_in(self, piece: Piece, wanted: dict[int, CaptionRow], progress: "_Progress") -> Difference | None:
        other = self._first_other_columns(piece, sorted(wanted))
        compared = [index for index in sorted(wanted) if other is None or index <= other]
        for now in self._plan.piece_rows(piece, compared):
            if self._should_stop():
                raise StoppedError
            progress.advance()
            if reason := self._why_other(now, wanted[now.index]):
                return Difference(piece.start + now.index - piece.first_row, reason)
        if other is None:
            return None
        return Difference(piece.start + other - piece.first_row, "its columns have other values")

    def _why_other(self, now: ImageRow, before: CaptionRow) -> str:
        """What is different in a row that has a caption; empty where nothing is."""
        if now.id != before.id:
            return f"its id was {shown_name(before.id)} and is {shown_name(now.id)}"
        if now.failure is not None:
            return f"it has no image now: {now.failure[1]}"
        if now.image is None:
            return "it has no image now: its cell is null"
        try:
            is_same = digest(read_encoded(now)) == before.image_sha256
        except RowError as error:
            if error.kind not in (ErrorKind.MISSING, ErrorKind.UNREADABLE):
                return f"its image is another one, which can't be read: {error.message}"
            # Images that are deleted once they have captions are gone for good: no need to look for them again.
            self._gone += error.kind is ErrorKind.MISSING
            self.has_unread |= error.kind is ErrorKind.UNREADABLE
            return ""
        return "" if is_same else "its image is another one"

    def _first_other_columns(self, piece: Piece, indexes: Sequence[int]) -> int | None:
        """The first of some rows of a piece whose carried columns are not those in the part; None without a part."""
        if self._carried is None or self._shard is None:
            return None
        places = pa.array([index - piece.first_row for index in indexes])
        before = self._carried.slice(piece.first_row - self._shard.first_row, piece.rows).take(places)
        now = self._plan.piece_columns(piece).take(places)
        names = [name for name in now.column_names if name in before.column_names]
        before, now = before.select(names), now.select(names)
        if before.equals(now):
            return None
        # Not a number is not equal to itself; its text is.
        pairs = zip(indexes, before.to_pylist(), now.to_pylist(), strict=True)
        return next((index for index, was, one in pairs if repr(was) != repr(one)), None)

    def _is_stale(self, source: ChangedSource, row: CaptionRow) -> bool:
        """Whether an image is not the one that was captioned. Of one that can't be read its caption is all there is."""
        if row.image_sha256 is None:
            return True
        path = os.fsdecode(source.path)
        try:
            return digest(read_encoded(ImageRow(0, row.id, path, 0, FileAt(path)))) != row.image_sha256
        except RowError as error:
            is_unread = error.kind in (ErrorKind.MISSING, ErrorKind.UNREADABLE)
            self.has_unread |= is_unread
            return not is_unread

    def _load(self, index: int) -> int:
        """Have the rows of a row's shard; the row after its last one."""
        if self._shard is None or not self._shard.first_row <= index < self._shard.span[1]:
            self._shard = self._journal.shard_of(index)
            has_part = shard_state_of(self._folder, self._journal, self._shard).has_part
            self._rows = dict(finished_rows(self._folder, self._journal, self._shard, has_part=has_part))
            self._carried = read_passthrough(self._folder.part_path(self._shard.seq)) if has_part else None
        return self._shard.span[1]


def is_table(source: ChangedSource) -> bool:
    """Whether a source has rows, as a table or an archive has; else it is an image."""
    return READERS[source.kind].is_container


class _Progress:
    """How far the comparison of one source is."""

    def __init__(self, source: ChangedSource) -> None:
        self.name = shown(os.fsdecode(source.path))
        self._rows = sum(piece.rows for piece in source.pieces)
        self._done = 0
        self._next_s = time.monotonic() + _QUIET_S

    def advance(self) -> None:
        """One more row is compared."""
        self._done += 1
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _EVERY_S
            log.info(
                "%s looks different: checking that its captioned rows are the same, %d of %d",
                self.name,
                self._done,
                self._rows,
            )
