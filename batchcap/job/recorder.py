"""Owns a row's way to disk: outcome → journal (durable, counted) → part file, in manifest order."""

import json
import logging
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

import pyarrow as pa

from batchcap.core.errors import ErrorKind, UsageError
from batchcap.core.records import (
    CaptionRow,
    Duplicate,
    ImageRow,
    Outcome,
    RowCounts,
    Shard,
    Status,
)
from batchcap.core.text import one_line
from batchcap.job.output_rows import caption_row, duplicate_row
from batchcap.job.plan import Plan
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.parts import (
    TALLY_KEY,
    UNNAMED,
    captioned_images,
    part_metadata,
    read_passthrough,
    read_row,
    retried_metadata,
    write_part,
)
from batchcap.store.shard_state import ShardState, finished_rows, shard_state_of

log = logging.getLogger(__name__)

# One fsync for so many rows, or so long after the first of them: a kill costs at most this much work.
FLUSH_ROWS = 512
FLUSH_INTERVAL_S = 0.5
SAY_NOTHING_OF_THE_IMAGE = frozenset({ErrorKind.MISSING, ErrorKind.UNREADABLE, ErrorKind.CRASHED, ErrorKind.INTERNAL})
# Rows kept in memory whose images other rows have, too.
TWINNED_ROWS = 256


class Recorder:
    """Takes outcomes in any order and leaves whole parts behind."""

    def __init__(
        self,
        folder: JobFolder,
        plan: Plan,
        journal: Journal,
        metadata: dict[str, str],
        prompts: Sequence[str] = UNNAMED,
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._journal = journal
        self._metadata = metadata
        self._prompts = prompts
        self._buffer: dict[int, CaptionRow] = {}
        self._recorded = lru_cache(TWINNED_ROWS)(self._find)
        self._twins: set[int] = set()  # of the buffer
        self._failed_again: dict[int, CaptionRow] = {}  # rows of this run whose earlier caption stays
        self._flush_at_s = 0.0
        self._open: dict[int, ShardState] = {}
        self._left: dict[int, int] = {}
        self.counts = RowCounts()
        self.run_rows = 0
        self.run_images = 0
        self.run_twins = 0
        self.run_tokens = 0
        self.store_s = 0.0
        for shard in plan.shards():
            self._load_shard(shard)
        self._has_reopened = journal.has_reopened()
        self._first_rows = [state.shard.first_row for state in self._open.values()]
        self._open_order = list(self._open)

    def _load_shard(self, shard: Shard) -> None:
        """Count what an earlier run left of a shard, and finish what it had nearly finished."""
        state = shard_state_of(self._folder, self._journal, shard)
        self.counts.add(state.counts)
        if state.is_done:
            self._journal.forget(shard)  # a kill between part and journal leaves both
            return
        self._open[shard.seq] = state
        self._left[shard.seq] = state.left

    @property
    def parts_left(self) -> int:
        """Part files that are still to be written or, where rows are captioned again, replaced."""
        return len(self._open)

    def close_whole_shards(self) -> None:
        """Write the parts of shards whose rows have all ended already."""
        for seq in [seq for seq, left in self._left.items() if left == 0]:
            self._write_part(seq)

    def rows_to_do(self) -> Iterator[ImageRow]:
        """Rows without an outcome, in manifest order."""
        for state in list(self._open.values()):
            wanted = state.reopened if state.has_part else set(range(*state.shard.span))
            yield from self._plan.shard_rows(state.shard, wanted - self._journal.done_indexes(state.shard))

    def attempt(self, index: int) -> int:
        """Which time a row is captioned, from 1."""
        reopened = self._journal.retry(index) if self._has_reopened else None
        return 1 if reopened is None else reopened.before.attempts + 1

    def captioned_images(self, most: int) -> list[tuple[str, int]]:
        """Digest and row index of images that earlier runs captioned at the first try: the last `most`, in order."""
        found: list[tuple[str, int]] = []
        for shard in reversed(self._plan.shards()):
            if len(found) >= most:
                break
            if shard.seq in self._open:
                has_part = self._open[shard.seq].has_part
                ended = finished_rows(self._folder, self._journal, shard, has_part=has_part)
                rows = [
                    (row.image_sha256, index) for index, row in ended if (row.status, row.attempts) == (Status.OK, 1)
                ]
            else:
                places = captioned_images(self._folder.part_path(shard.seq))
                rows = [(sha256, shard.first_row + index) for index, sha256 in places]
            found += [(sha256, index) for sha256, index in reversed(rows) if sha256 is not None]
        return found[:most][::-1]

    def record(self, outcomes: list[Outcome]) -> None:
        """Take outcomes in; they are durable and counted after the next `flush`."""
        if outcomes and not self._buffer:
            self._flush_at_s = time.perf_counter() + FLUSH_INTERVAL_S
        for outcome in outcomes:
            if isinstance(outcome.result, Duplicate):
                of = outcome.result.of
                # Not the caption that stays for it: that may be of another image.
                row = duplicate_row(outcome.row, outcome.result, self._failed_again.get(of) or self._recorded(of))
                self._twins.add(outcome.row.index)
            else:
                row = caption_row(outcome.row, outcome.result, outcome.facts)
            self._buffer[outcome.row.index] = self._keep_earlier_caption(outcome.row.index, row)
        if self._buffer and (len(self._buffer) >= FLUSH_ROWS or time.perf_counter() >= self._flush_at_s):
            self.flush()

    def _keep_earlier_caption(self, index: int, row: CaptionRow) -> CaptionRow:
        """The row as it is kept: a caption that was to be replaced stays where there is no other.

        Where the image is another one now, that holds only for failures that do not speak of the image.
        """
        reopened = self._journal.retry(index) if self._has_reopened else None
        if reopened is None:
            return row
        before, attempts = reopened.before, reopened.before.attempts + 1
        has_failed = row.status is Status.FAILED and before.status is Status.OK
        if has_failed and (not reopened.is_changed or row.error_kind in SAY_NOTHING_OF_THE_IMAGE):
            self._failed_again[index] = row
            log.warning("%s keeps its caption: tried again, it failed as %s", one_line(row.id), row.error_kind)
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
        touched = set()
        for index, row in self._buffer.items():
            seq = self._open_order[bisect_right(self._first_rows, index) - 1]
            self._left[seq] -= 1
            touched.add(seq)
            self.counts.add_row(row)
            self.run_rows += 1
            if index in self._twins:
                self.run_twins += 1
            elif row.status is Status.OK and index not in self._failed_again:
                self.run_images += 1
                self.run_tokens += row.new_tokens_of_all
        self._buffer.clear()
        self._twins.clear()
        for seq in sorted(touched):
            if self._left[seq] == 0:
                self._write_part(seq)
        self.store_s += time.perf_counter() - started

    def _write_part(self, seq: int) -> None:
        state = self._open[seq]
        shard, path = state.shard, self._folder.part_path(seq)
        ended = finished_rows(self._folder, self._journal, shard, has_part=state.has_part)
        rows = [row for _index, row in ended]
        counts = RowCounts()
        for row in rows:
            counts.add_row(row)
        metadata = {**self._metadata, TALLY_KEY: json.dumps(counts.to_dict())}
        if state.has_part:
            metadata = retried_metadata(part_metadata(path), metadata, self._journal.reopened_settings(shard))
        write_part(path, shard, rows, self._passthrough(state), metadata, self._prompts)
        self._journal.forget(shard)
        del self._open[seq], self._left[seq]

    def _passthrough(self, state: ShardState) -> pa.Table | None:
        """The carried columns of a shard, as they are now; what the inputs no longer have, as it was."""
        if not state.has_part:
            return self._plan.shard_columns(state.shard)
        was = read_passthrough(self._folder.part_path(state.shard.seq))
        try:
            now = self._plan.shard_columns(state.shard)
        except UsageError:  # an input is gone
            return was
        if was is None or now is None:
            return now if was is None else was
        for field in was.schema:
            if field.name not in now.column_names:
                now = now.append_column(field, was[field.name])
        return now
