"""Whatever is added, undone, forgotten, closed or killed: the journal gives back what was committed, and no more."""

import shutil
import tempfile
from contextlib import closing, suppress
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from batchcap.core.records import CaptionRow, Shard
from batchcap.store.journal import Journal
from tests.store.records import caption_row

ROWS, SHARD_ROWS = 24, 6
SHARDS = [Shard(seq, seq * SHARD_ROWS, SHARD_ROWS) for seq in range(ROWS // SHARD_ROWS)]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
RECORDS = st.lists(st.tuples(st.integers(0, ROWS - 1), TEXT), max_size=6).map(
    lambda pairs: [(index, caption_row(index, text)) for index, text in pairs]
)


class AnyJournal(RuleBasedStateMachine):
    """A journal beside a dictionary of what must be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.committed: dict[int, CaptionRow] = {}
        self.folder: Path | None = None

    @initialize()
    def make(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.folder = self.root / "0"
        self.folder.mkdir()
        self.journal = Journal.open(self.folder / "journal.sqlite")

    @rule(records=RECORDS)
    def add(self, records: list[tuple[int, CaptionRow]]) -> None:
        new = {index for index, _row in records} - set(self.committed)
        assert self.journal.add(records) == len(new)
        for index, row in records:
            self.committed.setdefault(index, row)

    @rule(records=RECORDS)
    def add_and_fail(self, records: list[tuple[int, CaptionRow]]) -> None:
        with suppress(ZeroDivisionError), self.journal.transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO rows VALUES (?, 'x')", ((index,) for index, _row in records))
            _ = 1 / 0

    @rule(shard=st.sampled_from(SHARDS))
    def forget(self, shard: Shard) -> None:
        self.journal.forget(shard)
        for index in range(*shard.span):
            self.committed.pop(index, None)

    @rule()
    def reopen(self) -> None:
        self.journal.close()
        self.journal = Journal.open(self.folder / "journal.sqlite")

    @rule()
    def kill(self) -> None:
        """What is on the disk now is all that a killed run leaves: the file and its write-ahead log."""
        left = self.root / str(int(self.folder.name) + 1)
        left.mkdir()
        for path in self.folder.iterdir():
            if not path.name.endswith("-shm"):
                shutil.copy(path, left)
        self.journal.close()
        self.folder = left
        self.journal = Journal.open(left / "journal.sqlite")

    @invariant()
    def what_was_committed_is_there(self) -> None:
        if self.folder is None:
            return
        found = [pair for shard in SHARDS for pair in self.journal.rows(shard)]
        assert found == sorted(self.committed.items())
        assert {index for shard in SHARDS for index in self.journal.done_indexes(shard)} == set(self.committed)
        with closing(Journal.open_to_read(self.folder / "journal.sqlite")) as reader:
            assert [reader.row(index) for index in range(ROWS)] == [self.committed.get(index) for index in range(ROWS)]

    def teardown(self) -> None:
        if self.folder is not None:
            self.journal.close()
            shutil.rmtree(self.root)


AnyJournal.TestCase.settings = settings(max_examples=15, stateful_step_count=15)
TestAnyJournal = AnyJournal.TestCase
