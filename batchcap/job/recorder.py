"""Owns what became of a row: outcome → output row → journal, durable before it is counted."""

import logging
import time
from dataclasses import dataclass, replace
from functools import lru_cache

from batchcap.core.errors import ErrorKind
from batchcap.core.records import CaptionRow, Duplicate, Outcome, Status
from batchcap.core.row_counts import RowCounts
from batchcap.core.text import one_line
from batchcap.job.open_shards import OpenShards
from batchcap.job.output_rows import caption_row, duplicate_row
from batchcap.job.part_writer import PartWriter
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.parts import read_row

log = logging.getLogger(__name__)

# One fsync for so many rows, or so long after the first of them: a kill costs at most this much work.
FLUSH_ROWS = 512
FLUSH_INTERVAL_S = 0.5
SAY_NOTHING_OF_THE_IMAGE = frozenset({ErrorKind.MISSING, ErrorKind.UNREADABLE, ErrorKind.CRASHED, ErrorKind.INTERNAL})
# Rows kept in memory whose images other rows have, too.
DUPLICATED_ROWS = 256


@dataclass(slots=True)
class RunCounts:
    """What this run has recorded so far.

    Attributes:
        rows: rows with an outcome.
        images: images captioned: rows without duplicates, failures, and rows that kept an earlier caption.
        duplicates: rows whose image had been captioned as another row.
        tokens: new tokens of `images`.
        store_s: seconds of writing.
    """

    rows: int = 0
    images: int = 0
    duplicates: int = 0
    tokens: int = 0
    store_s: float = 0.0


class Recorder:
    """Takes outcomes in any order; `counts` is of all rows of the job that are durable, `run` of this run's."""

    def __init__(self, folder: JobFolder, journal: Journal, shards: OpenShards, parts: PartWriter) -> None:
        self._folder = folder
        self._journal = journal
        self._shards = shards
        self._parts = parts
        self._buffer: dict[int, CaptionRow] = {}
        self._recorded = lru_cache(DUPLICATED_ROWS)(self._find)
        self._duplicates: set[int] = set()  # of the buffer
        self._failed_again: dict[int, CaptionRow] = {}  # rows of this run whose earlier caption stays
        self._flush_at_s = 0.0
        self._has_reopened = journal.has_reopened()
        self.counts = RowCounts()
        self.counts.add(shards.counts)
        self.run = RunCounts()
        self.failures: dict[str, CaptionRow] = {}  # of this run, one of each kind

    def attempt(self, index: int) -> int:
        """Which time a row is captioned, from 1."""
        reopened = self._journal.reopened_row(index) if self._has_reopened else None
        return 1 if reopened is None else reopened.before.attempts + 1

    def record(self, outcomes: list[Outcome]) -> None:
        """Take outcomes in; they are durable and counted after the next `flush`."""
        if outcomes and not self._buffer:
            self._flush_at_s = time.perf_counter() + FLUSH_INTERVAL_S
        for outcome in outcomes:
            if isinstance(outcome.result, Duplicate):
                of = outcome.result.of
                # Not the caption that stays for it: that may be of another image.
                row = duplicate_row(outcome.row, outcome.result, self._failed_again.get(of) or self._recorded(of))
                self._duplicates.add(outcome.row.index)
            else:
                row = caption_row(outcome.row, outcome.result, outcome.facts)
            self._buffer[outcome.row.index] = self._keep_earlier_caption(outcome.row.index, row)
        if self._buffer and (len(self._buffer) >= FLUSH_ROWS or time.perf_counter() >= self._flush_at_s):
            self.flush()

    def _keep_earlier_caption(self, index: int, row: CaptionRow) -> CaptionRow:
        """The row as it is kept: a caption that was to be replaced stays where there is no other.

        Where the image is another one now, that holds only for failures that do not speak of the image.
        """
        reopened = self._journal.reopened_row(index) if self._has_reopened else None
        if reopened is None:
            return row
        before, attempts = reopened.before, reopened.before.attempts + 1
        has_failed = row.status is Status.FAILED and before.status is Status.OK
        if has_failed and (not reopened.is_changed or row.error_kind in SAY_NOTHING_OF_THE_IMAGE):
            self._failed_again[index] = row
            log.warning("%s keeps its old caption: the retry failed as %s", one_line(row.id), row.error_kind)
            return replace(before, attempts=attempts)
        return replace(row, attempts=attempts)

    def _find(self, index: int) -> CaptionRow:
        """A row recorded before, wherever it is by now."""
        row = self._buffer.get(index) or self._journal.row(index)
        if row is not None:
            return row
        shard = self._journal.shard_of(index)
        return read_row(self._folder.part_path(shard.seq), index - shard.first_row)

    def flush(self) -> None:
        """Make everything recorded durable; write the parts that are whole now."""
        started = time.perf_counter()
        self._journal.add(list(self._buffer.items()))
        for index, row in self._buffer.items():
            self._shards.count_finished(index)
            self.counts.add_row(row)
            if row.status is Status.FAILED:
                self.failures.setdefault(str(row.error_kind), row)
            self.run.rows += 1
            if index in self._duplicates:
                self.run.duplicates += 1
            elif row.status is Status.OK and index not in self._failed_again:
                self.run.images += 1
                self.run.tokens += row.new_tokens_of_all
        self._buffer.clear()
        self._duplicates.clear()
        self.write_whole_parts()
        self.run.store_s += time.perf_counter() - started

    def write_whole_parts(self) -> None:
        """Write the parts of shards whose rows have all finished."""
        for state in self._shards.take_whole():
            self._parts.write(state)
