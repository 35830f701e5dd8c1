"""`status` and `report` leave every file of a job folder as it is, whatever state the job is in."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap.config import InputConfig, JobConfig, PlacementConfig
from batchcap.core.atomic import TEMPORARY_SUFFIX, atomic_file
from batchcap.core.errors import StorageError
from batchcap.job import run as job_module
from batchcap.job.run import run_job
from batchcap.model.bundle import Bundle
from batchcap.report.page import write_page
from batchcap.report.status import read_status
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from tests.e2e.command import batchcap
from tests.fake_engine import FakeEngine, SilentProgress

pytestmark = pytest.mark.slow

ROWS = 20
PROJECT = Path(__file__).parents[2]
# Ends more rows of a job as its next run does, and waits at work.
RUN = """
import sys
from pathlib import Path
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.lock import job_lock
from tests.store.records import caption_row
folder = JobFolder(Path(sys.argv[1]))
with job_lock(folder):
    journal = Journal.open(folder.journal_path)
    for shard in journal.shards():
        if not folder.part_path(shard.seq).exists():
            journal.add([(shard.first_row, caption_row(shard.first_row))])
    print("at work", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle_int4: Bundle) -> Path:
    """A job that a dying worker has stopped after some parts."""
    monkeypatch.setattr(job_module, "load_bundle", lambda _model: tiny_bundle_int4)
    pq.write_table(pa.table({"path": ["x.png"] * ROWS}), tmp_path / "in.parquet")
    config = JobConfig(
        InputConfig((str(tmp_path / "in.parquet"),)), str(tmp_path / "out"), placement=PlacementConfig(rows_per_part=5)
    )
    with pytest.raises(Exception, match="killed by signal 9"):
        run_job(config, SilentProgress(), lambda *_args: FakeEngine(dies_after=12))
    assert JobFolder(tmp_path / "out").part_paths()
    return tmp_path / "out"


@contextmanager
def at_work(output: Path) -> Iterator[None]:
    command = [sys.executable, "-c", RUN, str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "at work\n"
        yield
        run.kill()


@contextmanager
def killed(output: Path) -> Iterator[None]:
    with at_work(output):
        pass
    assert log_of(output).exists()
    yield


@contextmanager
def killed_and_copied(output: Path) -> Iterator[None]:
    """Without the index of the log, which is no file to be copied."""
    with killed(output):
        log_of(output).with_name("journal.sqlite-shm").unlink()
        yield


@contextmanager
def ended(output: Path) -> Iterator[None]:
    assert not log_of(output).exists()
    yield


def log_of(output: Path) -> Path:
    path = JobFolder(output).journal_path
    return path.with_name(f"{path.name}-wal")


def contents(output: Path) -> dict[str, tuple[bytes, int]]:
    """Every file of a folder, hidden ones too: its bytes and when it was written; and the folders."""
    found = {}
    for path in sorted(output.rglob("*")):
        found[str(path.relative_to(output))] = (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
    return found


@pytest.mark.parametrize("state", [ended, killed, killed_and_copied, at_work])
def test_every_file_stays_as_it_is(output: Path, tmp_path: Path, state: Callable[[Path], Iterator[None]]) -> None:
    with state(output):
        before = contents(output)
        first = read_status(output)
        write_page(output, tmp_path / "page.html", images=2)
        assert contents(output) == before
        assert first.counts.rows >= 12
        assert first.counts.rows > 12 or state is ended, "rows in the log count"
        assert (first.holder is not None) is (state is at_work)
        page_path = write_page(output, images=0)
        after = contents(output)
        assert page_path == JobFolder(output).report_path
        name = str(page_path.relative_to(output))
        assert {*after} - {*before} == {name}
        assert all(after[one][0] == content for one, (content, _time) in before.items())


@pytest.mark.parametrize("state", [ended, killed, killed_and_copied])
def test_a_folder_that_may_not_be_written_is_read_all_the_same(
    output: Path, tmp_path: Path, state: Callable[[Path], Iterator[None]]
) -> None:
    with state(output):
        expected = read_status(output).counts.rows
        folders = [output, *(path for path in output.rglob("*") if path.is_dir())]
        before = contents(output)
        for folder in folders:
            folder.chmod(0o555)
        try:
            status = batchcap("status", output)
            report = batchcap("report", output, "--to", tmp_path / "page.html", "--images", 0)
            refused = batchcap("report", output, "--images", 0)
        finally:
            for folder in folders:
                folder.chmod(0o755)
    assert (status.returncode, status.stderr) == (0, "")
    assert f"{expected} of {ROWS} done" in status.stdout
    assert (report.returncode, report.stderr) == (0, "")
    assert refused.returncode == 1
    assert "can't write the page" in refused.stderr
    assert "name another place with --to" in refused.stderr
    assert contents(output) == before


def test_a_run_that_begins_while_an_ended_job_is_looked_into(output: Path) -> None:
    """Without a log beside it the journal is read without locks: what a run changes meanwhile is looked at again."""
    folder, looks = JobFolder(output), []

    def look(journal: Journal) -> int:
        looks.append(len(journal.shards()))
        if len(looks) == 1:
            with closing(Journal.open(folder.journal_path)) as run, run.transaction() as connection:
                connection.execute("INSERT INTO shards VALUES (99, 1000, 1)")
        return len(journal.shards())

    assert Journal.look_into(folder.journal_path, look) == looks[0] + 1
    assert len(looks) == 2


def test_runs_that_begin_all_the_time_are_told(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = iter(range(100))
    monkeypatch.setattr("batchcap.store.journal.stamp", lambda _path: [next(changes)])
    with pytest.raises(StorageError, match="is being written: try again"):
        Journal.look_into(JobFolder(output).journal_path, lambda journal: journal.shards())


def test_a_page_in_the_making_survives_a_run_that_begins(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run removes what killed ones left half-written; a report writes without the job's lock."""
    folder = JobFolder(output)
    with atomic_file(folder.report_path) as temporary:
        temporary.write_bytes(b"half of it")
        subprocess.run([sys.executable, "-c", CLEAN, str(output)], check=True, cwd=PROJECT)
        assert temporary.read_bytes() == b"half of it"
        temporary.write_bytes(b"all of it")
    assert folder.report_path.read_bytes() == b"all of it"
    left = folder.report_path.with_name(f".{folder.report_path.name}.1{TEMPORARY_SUFFIX}")
    left.write_bytes(b"of a report that was killed")
    subprocess.run([sys.executable, "-c", CLEAN, str(output)], check=True, cwd=PROJECT)
    assert not left.exists()


CLEAN = """
import sys
from pathlib import Path
from batchcap.store.folder import JobFolder
JobFolder(Path(sys.argv[1])).remove_leftovers()
"""


def test_two_reports_and_a_run_at_once(output: Path) -> None:
    """Each page is whole, and the run goes on."""
    with at_work(output):
        reports = [
            subprocess.Popen([sys.executable, "-m", "batchcap.cli", "report", str(output), "--images", "0"])
            for _ in range(2)
        ]
        assert [one.wait(60) for one in reports] == [0, 0]
    assert JobFolder(output).report_path.read_text().rstrip().endswith("</html>")
    assert not list(output.rglob(f"*{TEMPORARY_SUFFIX}"))
