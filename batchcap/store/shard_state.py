"""Owns how a shard stands: what is in its part file, what is in the journal, what is left to do.

The part files are the truth: a shard whose part is complete is done, whatever the journal says, except for rows that
were reopened. A shard without a part is done as far as its rows are in the journal.

Who looks while a run writes (`look_at_shards`) sees one moment of the journal first, and the part files after it. A run
adds rows to the journal, then the part appears, then the journal forgets the rows; rows that are captioned again are
reopened in the journal, added, the part is replaced, the journal forgets both. So where the moment seen was

* before the part appeared: its rows were in the journal. A part that has appeared since is whole and counts as such.
* after the journal forgot: the part had appeared before, so it is there.
* before rows were reopened: the part counts, be it the old one or the new one, with all its rows.
* between reopening and forgetting: the rows of the part that were not reopened are the same in the old and the new one,
  and reopened ones count as the journal had them. Such a shard is not done, however many of its rows have ended. (Had
  another retry begun and ended since, a row would show its newest words; the numbers of rows stay those of the moment.)

The other order would not do: a part that is not there yet, and then a journal that has forgotten, make rows vanish.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from batchcap.core.errors import UsageError
from batchcap.core.records import CaptionRow, Shard
from batchcap.core.row_counts import RowCounts
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.parts import part_counts, part_is_complete, read_part


@dataclass(frozen=True, slots=True)
class ShardState:
    """How a shard stands.

    Attributes:
        shard: the shard.
        has_part: whether its part file is there and whole.
        reopened: indexes of the rows that are captioned again, ended or not; empty without a part.
        counts: of the rows that have ended.
    """

    shard: Shard
    has_part: bool
    reopened: frozenset[int]
    counts: RowCounts

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do, not even to write the part."""
        return self.has_part and not self.reopened

    @property
    def left(self) -> int:
        """Rows without an outcome."""
        return self.shard.rows - self.counts.rows


def require_known_parts(folder: JobFolder, journal: Journal) -> None:
    """Refuse a job folder with parts that its journal has not planned: nobody knows which rows they hold.

    Raises:
        UsageError: there are such parts.
    """
    planned = {folder.part_path(shard.seq) for shard in journal.shards()}
    if unknown := next((path for path in folder.part_paths() if path not in planned), None):
        raise unknown_part(folder, unknown)


def unknown_part(folder: JobFolder, path: Path) -> UsageError:
    """The error of a part that the journal does not know."""
    return UsageError(
        f"{path} is not in this job's journal: if the job folder was copied or restored, copy it again with every file "
        f"of {folder.state_path}, including journal.sqlite-wal; if the part belongs to another job, move it away"
    )


def look_at_shards(folder: JobFolder) -> list[ShardState]:
    """How the shards of a job stand, all at one moment, also while a run writes; no file is touched.

    Raises:
        StorageError: the journal is missing or damaged, or a part can't be read.
    """

    def look(journal: Journal) -> list[ShardState]:
        return [shard_state_of(folder, journal, shard) for shard in journal.shards()]

    return Journal.look_into(folder.journal_path, look)


def shard_state_of(folder: JobFolder, journal: Journal, shard: Shard) -> ShardState:
    """How a shard stands now.

    Raises:
        StorageError: the operating system refused to read the part.
    """
    path = folder.part_path(shard.seq)
    has_part = part_is_complete(path, shard)
    reopened = frozenset(journal.reopened(shard) if has_part else ())
    if has_part and not reopened:
        return ShardState(shard, has_part, reopened, part_counts(path))
    counts = RowCounts()
    for _index, row in finished_rows(folder, journal, shard, has_part=has_part):
        counts.add_row(row)
    return ShardState(shard, has_part, reopened, counts)


def finished_rows(
    folder: JobFolder, journal: Journal, shard: Shard, *, has_part: bool
) -> Iterator[tuple[int, CaptionRow]]:
    """The rows of a shard that have an outcome, with their index, in order; a reopened one has that of its new end."""
    journalled = dict(journal.rows(shard))
    if not has_part:
        yield from journalled.items()
        return
    reopened = journal.reopened(shard)
    for index, row in enumerate(read_part(folder.part_path(shard.seq)), shard.first_row):
        if index not in reopened:
            yield index, row
        elif index in journalled:
            yield index, journalled[index]
