"""Owns a row's way to disk: outcome → journal (durable, counted) → part file, in manifest order."""

import json
import time
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

from batchcap.engines.base import Outcome
from batchcap.manifest.plan import Plan
from batchcap.manifest.shard import Shard
from batchcap.records import CaptionRow, Failure, ImageRow, Status
from batchcap.report.summary import Tally
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.parts import TALLY_KEY, part_is_complete, part_metadata, write_part

# One fsync for so many rows, or so long after the first of them: a kill costs at most this much work.
FLUSH_ROWS = 512
FLUSH_INTERVAL_S = 0.5


def caption_row(outcome: Outcome) -> CaptionRow:
    """The output row of an outcome."""
    row, result, facts = outcome.row, outcome.result, outcome.facts
    values: dict[str, Any] = {"id": row.id, "source": row.source, "row": row.row}
    if facts is not None:
        values |= {
            "width": facts.width,
            "height": facts.height,
            "image_sha256": facts.sha256,
            "read_ms": facts.read_ms,
            "vision_ms": facts.vision_ms,
        }
    if isinstance(result, Failure):
        values |= {"status": Status.FAILED, "error_kind": result.kind, "error_message": result.message}
    else:
        values |= {
            "caption": result.text,
            "thinking": result.thinking,
            "verdict": result.verdict,
            "finish_reason": result.finish_reason,
            "prompt_tokens": result.prompt_tokens,
            "visual_tokens": result.visual_tokens,
            "new_tokens": len(result.token_ids),
            "prefill_ms": result.prefill_ms,
            "decode_ms": result.decode_ms,
        }
    return CaptionRow(**values)


class Recorder:
    """Takes outcomes in any order and leaves whole parts behind.

    The part files are the truth: a shard whose part is complete is done, whatever the journal says; a shard without
    one is done as far as its rows are in the journal.
    """

    def __init__(self, folder: JobFolder, plan: Plan, journal: Journal, metadata: dict[str, str]) -> None:
        self._folder = folder
        self._plan = plan
        self._journal = journal
        self._metadata = metadata
        self._buffer: list[tuple[int, CaptionRow]] = []
        self._flush_at_s = 0.0
        self._open: dict[int, Shard] = {}
        self._left: dict[int, int] = {}
        self.tally = Tally()
        self.run_rows = 0
        self.run_tokens = 0
        self.store_s = 0.0
        for shard in plan.shards():
            self._take_up(shard)
        self._first_rows = [shard.first_row for shard in self._open.values()]
        self._open_order = list(self._open)

    def _take_up(self, shard: Shard) -> None:
        """Count what an earlier run left of a shard, and finish what it had nearly finished."""
        path = self._folder.part_path(shard.seq)
        if part_is_complete(path, shard):
            self.tally.add(Tally.from_dict(json.loads(part_metadata(path)[TALLY_KEY])))
            self._journal.forget(shard)  # a kill between part and journal leaves both
            return
        rows = self._journal.rows(shard)
        for _index, row in rows:
            self.tally.add_row(row)
        self._open[shard.seq] = shard
        self._left[shard.seq] = shard.rows - len(rows)

    def close_whole_shards(self) -> None:
        """Write the parts of shards whose rows are all in the journal already."""
        for seq in [seq for seq, left in self._left.items() if left == 0]:
            self._write_part(seq)

    def rows_to_do(self) -> Iterator[ImageRow]:
        """Rows without an outcome, in manifest order."""
        for shard in list(self._open.values()):
            done = self._journal.done_indexes(shard)
            for row in self._plan.shard_rows(shard):
                if row.index not in done:
                    yield row

    def record(self, outcomes: list[Outcome]) -> None:
        """Take outcomes in; they are durable and counted after the next `flush`."""
        if outcomes and not self._buffer:
            self._flush_at_s = time.perf_counter() + FLUSH_INTERVAL_S
        self._buffer.extend((outcome.row.index, caption_row(outcome)) for outcome in outcomes)
        if self._buffer and (len(self._buffer) >= FLUSH_ROWS or time.perf_counter() >= self._flush_at_s):
            self.flush()

    def flush(self) -> None:
        """Make everything recorded durable; write the parts that are whole now."""
        started = time.perf_counter()
        self._journal.add(self._buffer)
        touched = set()
        for index, row in self._buffer:
            seq = self._open_order[bisect_right(self._first_rows, index) - 1]
            self._left[seq] -= 1
            touched.add(seq)
            self.tally.add_row(row)
            self.run_rows += 1
            self.run_tokens += row.new_tokens or 0
        self._buffer.clear()
        for seq in sorted(touched):
            if self._left[seq] == 0:
                self._write_part(seq)
        self.store_s += time.perf_counter() - started

    def _write_part(self, seq: int) -> None:
        shard = self._open.pop(seq)
        del self._left[seq]
        rows = [row for _index, row in self._journal.rows(shard)]
        tally = Tally()
        for row in rows:
            tally.add_row(row)
        metadata = {**self._metadata, TALLY_KEY: json.dumps(tally.to_dict())}
        write_part(self._folder.part_path(seq), shard, rows, self._plan.shard_columns(shard), metadata)
        self._journal.forget(shard)
