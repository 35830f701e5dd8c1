"""What `status` says of a job: one moment of it, whatever a run does meanwhile, and how its last run ended."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchcap.core.errors import ErrorKind, ExitCode, StorageError, UsageError
from batchcap.core.records import CaptionRow, Shard, Status
from batchcap.core.row_counts import RowCounts
from batchcap.job.summary import JobState, Summary
from batchcap.report.status import read_status
from batchcap.store import shard_state as state
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.lock import job_lock, read_last_run
from batchcap.store.parts import TALLY_KEY, write_part
from batchcap.store.shard_state import ShardState, finished_rows, look_at_shards
from tests.store.records import caption_row

ROWS = 3  # of a shard
SHARDS = [Shard(seq, seq * ROWS, ROWS) for seq in range(3)]
FAILED = {"status": Status.FAILED, "caption": None, "verdict": None, "error_kind": ErrorKind.CORRUPT}


def begin(output: Path) -> tuple[JobFolder, Journal]:
    """A job with a plan and no finished row."""
    folder = JobFolder.open_or_create(output)
    journal = Journal.open(folder.journal_path)
    with journal.transaction() as connection:
        connection.executemany("INSERT INTO shards VALUES (?, ?, ?)", ((s.seq, s.first_row, s.rows) for s in SHARDS))
    return folder, journal


def first_rows(shard: Shard) -> list[tuple[int, CaptionRow]]:
    """The rows of a shard as the first run ends them: the middle one fails."""
    rows = [(index, caption_row(index)) for index in range(*shard.span)]
    return [(index, replace(row, **FAILED) if index % ROWS == 1 else row) for index, row in rows]  # type: ignore[arg-type]


def put_part(folder: JobFolder, journal: Journal, shard: Shard, *, has_part: bool) -> None:
    """As the recorder does."""
    rows = [row for _index, row in finished_rows(folder, journal, shard, has_part=has_part)]
    counts = RowCounts()
    for row in rows:
        counts.add_row(row)
    write_part(folder.part_path(shard.seq), shard, rows, None, {TALLY_KEY: json.dumps(counts.to_dict())})


def life(folder: JobFolder, journal: Journal, shard: Shard, retries: int) -> Iterator[None]:
    """All steps of a writer with a shard, in the writer's order: it is captioned, then rows of it are again."""
    rows = first_rows(shard)
    for some in (rows[:1], rows[1:]):
        journal.add(some)
        yield
    put_part(folder, journal, shard, has_part=False)
    yield
    journal.forget(shard)
    yield
    for attempt in range(retries):
        again = rows[attempt % 2 :: 2] or rows
        journal.reopen(again, "")
        yield
        for index, _row in again:
            journal.add([(index, caption_row(index, f"attempt {attempt}"))])
            yield
        put_part(folder, journal, shard, has_part=True)
        yield
        journal.forget(shard)
        yield


def seen(found: ShardState) -> tuple[int, int, int, bool]:
    return found.counts.rows, found.counts.ok, found.counts.failed, found.is_done


class Interleaved:
    """A writer that takes some of its steps before each thing that a reader does."""

    def __init__(self, output: Path, draw: Callable[[int], int], retries: int) -> None:
        self.folder, self.journal = begin(output)
        self._draw = draw
        self._lives = [life(self.folder, self.journal, shard, retries) for shard in SHARDS]
        self._is_reading = False
        self.moments: list[list[tuple[int, int, int, bool]]] = []
        self._remember()

    @property
    def is_at_work(self) -> bool:
        return bool(self._lives)

    def _remember(self) -> None:
        self.moments.append([seen(one) for one in look_at_shards(self.folder)])

    def step(self, count: int = 1) -> None:
        """Steps of the writer with one of the shards."""
        one = self._lives[self._draw(len(self._lives))]
        for _step in range(count):
            if next(one, self) is self:
                self._lives.remove(one)
                break
            self._remember()

    def before(self, action: Callable[..., Any]) -> Callable[..., Any]:
        """The reader's action, after some steps of the writer."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self._is_reading:
                self._is_reading = False
                if self.is_at_work and self._draw(6) == 0:
                    self.step(1 + self._draw(4))
                self._is_reading = True
            return action(*args, **kwargs)

        return wrapped

    def read(self) -> list[tuple[int, int, int, bool]]:
        self._is_reading = True
        try:
            return [seen(one) for one in look_at_shards(self.folder)]
        finally:
            self._is_reading = False


@pytest.mark.parametrize("seed", range(30))
def test_what_is_seen_is_one_moment_however_a_run_writes_meanwhile(tmp_path: Path, seed: int) -> None:
    retries = seed % 3
    with pytest.MonkeyPatch.context() as patch:
        job = Interleaved(tmp_path / "out", random.Random(seed).randrange, retries)
        with closing(job.journal):
            for name in ("part_is_complete", "part_counts", "read_part"):
                patch.setattr(state, name, job.before(getattr(state, name)))
            for name in ("shards", "rows", "reopened"):
                patch.setattr(Journal, name, job.before(getattr(Journal, name)))
            while job.is_at_work:
                job.step()
                since = len(job.moments) - 1
                for shard, found in enumerate(job.read()):
                    moments = [moment[shard] for moment in job.moments[since:]]
                    # Each shard as it was at some moment of the reading: rows, captions and part belong together.
                    assert (found[0], found[3]) in [(moment[0], moment[3]) for moment in moments]
                    assert found in moments or retries == 2, "only a second retry shows newer captions of a row"
                    assert found[0] == found[1] + found[2] <= ROWS
                    assert found[0] == ROWS or not found[3]
        assert [found[3] for found in job.read()] == [True] * len(SHARDS)


def test_the_numbers_of_a_status_belong_together(tmp_path: Path) -> None:
    folder, journal = begin(tmp_path / "out")
    with closing(journal):
        for step, _ in enumerate(life(folder, journal, SHARDS[0], 1)):
            status = read_status(tmp_path / "out")
            text = status.to_text()
            assert status.parts + status.parts_left == len(SHARDS)
            assert (status.parts == 1) is (step in (2, 3, 8)), "while rows are captioned again a part is not final"
            assert f"{status.parts} of 3 written" in text
            assert json.loads(status.to_json())["parts_left"] == status.parts_left
            assert status.state == "stopped"


def test_a_retry_whose_part_is_not_written_is_not_complete(tmp_path: Path) -> None:
    folder, journal = begin(tmp_path / "out")
    with closing(journal):
        for shard in SHARDS[:2]:
            for _step in life(folder, journal, shard, 0):
                pass
        last = life(folder, journal, SHARDS[2], 1)
        for _step in range(7):  # all rows have ended again
            next(last)
        status = read_status(tmp_path / "out")
        assert (status.remaining, status.parts_left, status.state) == (0, 1, "stopped")
        assert "Run the same command again to go on." in status.to_text()
        next(last)
        assert read_status(tmp_path / "out").state == "stopped", "the journal has not forgotten the rows"
        next(last)
        assert read_status(tmp_path / "out").state == "complete"


KILLED = """
import sys, time
from pathlib import Path
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.lock import job_lock
from tests.report.test_status import SHARDS, first_rows
folder = JobFolder(Path(sys.argv[1]))
with job_lock(folder):
    journal = Journal.open(folder.journal_path)
    journal.add(first_rows(SHARDS[0])[:2])
    print("at work", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The folder of a job without a finished row, which ended in good order."""
    folder, journal = begin(tmp_path / "out")
    journal.close()
    with job_lock(folder):
        end(folder, JobState.INTERRUPTED)
    return tmp_path / "out"


def end(folder: JobFolder, state: JobState) -> None:
    folder.summary_path.write_text(Summary(state, ExitCode.INTERRUPTED, "", None, RowCounts(), None, None).to_json())


def run_of(output: Path) -> "subprocess.Popen[str]":
    """A run at work."""
    run = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(output)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "at work\n"
    return run


def kill_a_run(output: Path) -> int:
    with run_of(output) as run:
        run.kill()
    return run.pid


def test_a_killed_run_is_told_from_one_that_stopped(output: Path) -> None:
    assert read_status(output).state == "interrupted"
    with run_of(output) as run:
        status = read_status(output)
        assert (status.state, status.killed) == ("running", None)
        run.kill()
    status = read_status(output)
    assert (status.state, status.holder, status.counts.rows) == ("killed", None, 2)
    assert status.killed is not None
    assert f"process {run.pid} on " in status.killed
    assert json.loads(status.to_json())["state"] == "killed"
    text = status.to_text()
    assert f"killed    process {run.pid} on " in text
    assert "No finished row is lost" in text
    assert "Run the same command again to go on." in text


def test_a_run_that_ends_in_good_order_takes_the_mark_away(output: Path) -> None:
    kill_a_run(output)
    folder = JobFolder(output)
    with job_lock(folder):
        assert read_status(output).state == "running"
        end(folder, JobState.STOPPED)
    assert read_status(output).state == "stopped"
    assert read_last_run(folder).killed is None


def test_a_run_that_is_refused_leaves_the_mark_of_a_killed_one(output: Path) -> None:
    """As with another prompt: it says nothing in a folder that is another job's."""
    pid = kill_a_run(output)
    with pytest.raises(UsageError), job_lock(JobFolder(output)):
        raise UsageError
    killed = read_last_run(JobFolder(output)).killed
    assert killed is not None
    assert killed.pid == pid


def test_a_run_that_is_refused_leaves_no_mark_of_its_own(output: Path) -> None:
    with pytest.raises(UsageError), job_lock(JobFolder(output)):
        raise UsageError
    assert read_status(output).state == "interrupted"


@pytest.mark.parametrize(("began", "state"), [("2020-01-01T00:00:00+00:00", "interrupted"), ("2099-", "killed")])
def test_a_folder_of_an_earlier_batchcap(output: Path, began: str, state: str) -> None:
    """Its runs left their name in any case, and no time in the summary: that of the file tells."""
    folder = JobFolder(output)
    content = json.loads(folder.summary_path.read_text())
    del content["ended_at"]
    folder.summary_path.write_text(json.dumps(content))
    start = began if state != "killed" else "2099-01-01T00:00:00+00:00"
    holder = {"host": "there", "pid": 7, "start": start}
    folder.lock_path.with_name("holder.json").write_text(json.dumps(holder))
    assert read_status(output).state == state


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"host": "a", "pid": 1, "start": 3}', "[" * 100_000])
def test_a_damaged_mark_says_nothing(output: Path, content: str) -> None:
    JobFolder(output).lock_path.with_name("holder.json").write_text(content)
    assert read_status(output).state == "interrupted"


def test_killed_at_its_very_end_a_job_is_complete(output: Path) -> None:
    folder = JobFolder(output)
    with closing(Journal.open(folder.journal_path)) as journal:
        for shard in SHARDS:
            for _step in life(folder, journal, shard, 0):
                pass
    kill_a_run(output)
    with closing(Journal.open(folder.journal_path)) as journal:
        journal.forget(SHARDS[0])
    assert read_status(output).state == "complete"


def test_a_job_that_was_complete_and_lost_a_part_is_not(output: Path) -> None:
    folder = JobFolder(output)
    with closing(Journal.open(folder.journal_path)) as journal:
        for shard in SHARDS:
            for _step in life(folder, journal, shard, 0):
                pass
    end(folder, JobState.COMPLETE)
    assert read_status(output).state == "complete"
    folder.part_path(1).unlink()
    status = read_status(output)
    assert (status.state, status.remaining, status.parts_left) == ("stopped", ROWS, 1)


def test_a_disk_that_does_not_answer_is_told(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = JobFolder(output)
    with closing(Journal.open(folder.journal_path)) as journal:
        for _step in life(folder, journal, SHARDS[0], 0):
            pass

    def refuse(_path: Path) -> None:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr("batchcap.store.parts.pq.read_metadata", refuse)
    with pytest.raises(StorageError, match=r"Input/output error.*check the disk"):
        read_status(output)


def test_a_journal_without_tables_is_a_job_that_has_not_begun(output: Path) -> None:
    folder = JobFolder(output)
    for path in folder.journal_path.parent.glob("journal.sqlite*"):
        path.unlink()
    folder.journal_path.touch()
    with pytest.raises(UsageError, match="has reached its first row"):
        read_status(output)
    assert folder.journal_path.read_bytes() == b""


def test_a_job_of_a_later_format_is_not_guessed_at(output: Path) -> None:
    JobFolder(output).job_path.write_text(json.dumps({"format_version": 99}))
    with pytest.raises(UsageError, match="has format 99"):
        read_status(output)
