"""Owns how a shard stands: what is in its part file, what is in the journal, what is left to do.

The part files are the truth: a shard whose part is complete is done, whatever the journal says, except for rows that
were reopened. A shard without a part is done as far as its rows are in the journal.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from batchcap.manifest.shard import Shard
from batchcap.records import CaptionRow
from batchcap.report.summary import Tally
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.parts import TALLY_KEY, part_is_complete, part_metadata, read_part


@dataclass(frozen=True, slots=True)
class Standing:
    """How a shard stands.

    Attributes:
        shard: the shard.
        has_part: whether its part file is there and whole.
        reopened: indexes of the rows that are captioned again, ended or not; empty without a part.
        tally: of the rows that have ended.
    """

    shard: Shard
    has_part: bool
    reopened: frozenset[int]
    tally: Tally

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do, not even to write the part."""
        return self.has_part and not self.reopened

    @property
    def left(self) -> int:
        """Rows without an outcome."""
        return self.shard.rows - self.tally.rows


def standing_of(folder: JobFolder, journal: Journal, shard: Shard) -> Standing:
    """How a shard stands now."""
    path = folder.part_path(shard.seq)
    has_part = part_is_complete(path, shard)
    reopened = frozenset(journal.reopened(shard) if has_part else ())
    if has_part and not reopened:
        return Standing(shard, has_part, reopened, Tally.from_dict(json.loads(part_metadata(path)[TALLY_KEY])))
    tally = Tally()
    for _index, row in ended_rows(folder, journal, shard, has_part=has_part):
        tally.add_row(row)
    return Standing(shard, has_part, reopened, tally)


def ended_rows(
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
