"""Owns what is left to do: the shards that are not done, and which of their rows have no outcome yet."""

from bisect import bisect_right
from collections.abc import Iterator

from batchcap.core.records import ImageRow, Status
from batchcap.core.row_counts import RowCounts
from batchcap.job.plan import Plan
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.parts import captioned_images
from batchcap.store.shard_state import ShardState, finished_rows, shard_state_of


class OpenShards:
    """The shards of a job whose part is still to be written or replaced; `counts` is of all rows finished before."""

    def __init__(self, folder: JobFolder, plan: Plan, journal: Journal) -> None:
        self._folder = folder
        self._plan = plan
        self._journal = journal
        self._open: dict[int, ShardState] = {}
        self._left: dict[int, int] = {}
        self.counts = RowCounts()
        for shard in plan.shards():
            state = shard_state_of(folder, journal, shard)
            self.counts.add(state.counts)
            if state.is_done:
                journal.forget(shard)  # a kill between part and journal leaves both
            else:
                self._open[shard.seq] = state
                self._left[shard.seq] = state.left
        self._whole = [seq for seq, left in self._left.items() if left == 0]
        self._first_rows = [state.shard.first_row for state in self._open.values()]
        self._order = list(self._open)

    def __len__(self) -> int:
        """Part files that are still to be written or, where rows are captioned again, replaced."""
        return len(self._open)

    def rows_to_do(self) -> Iterator[ImageRow]:
        """Rows without an outcome, in manifest order."""
        for state in list(self._open.values()):
            wanted = state.reopened if state.has_part else set(range(*state.shard.span))
            yield from self._plan.shard_rows(state.shard, wanted - self._journal.done_indexes(state.shard))

    def count_finished(self, index: int) -> None:
        """A row has an outcome, and it is durable."""
        seq = self._order[bisect_right(self._first_rows, index) - 1]
        self._left[seq] -= 1
        if self._left[seq] == 0:
            self._whole.append(seq)

    def take_whole(self) -> Iterator[ShardState]:
        """The open shards whose rows all have an outcome, in order; each is no longer open once its part is written."""
        for seq in sorted(self._whole):
            yield self._open[seq]
            self._whole.remove(seq)
            del self._open[seq], self._left[seq]

    def captioned_images(self, most: int) -> list[tuple[str, int]]:
        """Digest and row index of images that earlier runs captioned at the first try: the last `most`, in order."""
        found: list[tuple[str, int]] = []
        for shard in reversed(self._plan.shards()):
            if len(found) >= most:
                break
            if shard.seq in self._open:
                has_part = self._open[shard.seq].has_part
                finished = finished_rows(self._folder, self._journal, shard, has_part=has_part)
                rows = [(row.image_sha256, index) for index, row in finished if _is_captioned(row.status, row.attempts)]
            else:
                places = captioned_images(self._folder.part_path(shard.seq))
                rows = [(sha256, shard.first_row + index) for index, sha256 in places]
            found += [(sha256, index) for sha256, index in reversed(rows) if sha256 is not None]
        return found[:most][::-1]


def _is_captioned(status: Status, attempts: int) -> bool:
    return status is Status.OK and attempts == 1
