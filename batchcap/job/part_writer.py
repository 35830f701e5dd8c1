"""Owns how a part file is made of a shard whose rows have all finished."""

import json
from collections.abc import Callable, Sequence

import pyarrow as pa

from batchcap.core.errors import UsageError
from batchcap.core.records import Shard
from batchcap.core.row_counts import RowCounts
from batchcap.inputs.passthrough import carried_again
from batchcap.job.plan import Plan
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.parts import (
    TALLY_KEY,
    UNNAMED,
    part_metadata,
    read_passthrough,
    retried_metadata,
    write_part,
)
from batchcap.store.shard_state import ShardState, finished_rows


class PartWriter:
    """Writes parts, and clears from the journal what they hold."""

    def __init__(
        self,
        folder: JobFolder,
        plan: Plan,
        journal: Journal,
        metadata: dict[str, str],
        prompts: Sequence[str] = UNNAMED,
        is_written: Callable[[Shard], None] = lambda _shard: None,
    ) -> None:
        """`is_written` is called after each part."""
        self._folder = folder
        self._plan = plan
        self._journal = journal
        self._metadata = metadata
        self._prompts = prompts
        self._is_written = is_written

    def write(self, state: ShardState) -> None:
        """Write the part of a shard, or replace it where rows were captioned again.

        Raises:
            StorageError: the part can't be written.
        """
        shard, path = state.shard, self._folder.part_path(state.shard.seq)
        finished = finished_rows(self._folder, self._journal, shard, has_part=state.has_part)
        rows = [row for _index, row in finished]
        counts = RowCounts()
        for row in rows:
            counts.add_row(row)
        metadata = {**self._metadata, TALLY_KEY: json.dumps(counts.to_dict())}
        if state.has_part:
            metadata = retried_metadata(part_metadata(path), metadata, self._journal.reopened_settings(shard))
        write_part(path, shard, rows, self._passthrough(state), metadata, self._prompts)
        self._journal.forget(shard)
        self._is_written(shard)

    def _passthrough(self, state: ShardState) -> pa.Table | None:
        """The passthrough columns of a shard; those of a part, as they are now where rows were captioned again."""
        if not state.has_part:
            return self._plan.shard_columns(state.shard)
        was = read_passthrough(self._folder.part_path(state.shard.seq))
        try:
            now = self._plan.shard_columns(state.shard)
        except UsageError:  # an input is gone
            return was
        if was is None or now is None:
            return now if was is None else was
        return carried_again(was, now, frozenset(index - state.shard.first_row for index in state.reopened))
