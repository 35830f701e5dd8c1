"""The loop of a job with an engine without a model: every row once, whatever happens to the engine."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap.commands.signals import stop_on_signals
from batchcap.config import GenerationConfig, InputConfig, JobConfig, LimitConfig, PlacementConfig
from batchcap.core.atomic import TEMPORARY_SUFFIX
from batchcap.core.errors import (
    ErrorKind,
    ExitCode,
    LockedError,
    NotSameJobError,
    StorageError,
    UsageError,
    WorkerError,
)
from batchcap.core.records import Failure, Outcome, Request
from batchcap.core.sources import Source
from batchcap.engines.base import EngineLoad
from batchcap.inputs.discover import discover
from batchcap.inputs.skipped import Skipped
from batchcap.job import run as job
from batchcap.job.run import run_job
from batchcap.job.summary import Summary
from batchcap.report.status import read_status
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.lock import job_lock, read_holder
from tests.e2e.process import snapshot
from tests.fake_engine import FakeEngine, fake_bundle
from tests.inputs.parquets import path_of

ROWS = 23


class Listener:
    """A `Progress` that remembers what it was told."""

    def __init__(self, on_advance: Callable[[int], None] = lambda _done: None) -> None:
        self.started: tuple[int, int] | None = None
        self.done: list[int] = []
        self.closed = False
        self._on_advance = on_advance

    def start(self, rows: int, done: int) -> None:
        self.started = (rows, done)

    def advance(self, done: int, failed: int, images: int, load: EngineLoad) -> None:
        self.done.append(done)
        self._on_advance(done)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobConfig:
    """A job of 23 rows, every tenth of them bad, in parts of five."""
    bundle = fake_bundle()
    monkeypatch.setattr(job, "load_bundle", lambda _model: bundle)
    monkeypatch.setattr("batchcap.job.recorder.FLUSH_ROWS", 3)
    keys = [f"bad-{row}" if row % 10 == 2 else f"row-{row}" for row in range(ROWS)]
    pq.write_table(pa.table({"path": ["x.png"] * ROWS, "key": keys}), tmp_path / "in.parquet")
    return JobConfig(
        InputConfig((str(tmp_path / "in.parquet"),), id_column="key"),
        str(tmp_path / "out"),
        placement=PlacementConfig(rows_per_part=5),
    )


def run(config: JobConfig, engine: FakeEngine, listener: Listener | None = None) -> Summary:
    return run_job(config, listener or Listener(), lambda _config: engine, stopping=stop_on_signals())


def rows_of(config: JobConfig) -> list[dict[str, Any]]:
    paths = JobFolder(Path(config.output)).part_paths()
    rows: list[dict[str, Any]] = pa.concat_tables([pq.read_table(path) for path in paths]).to_pylist()
    return rows


def summary_of(config: JobConfig) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(JobFolder(Path(config.output)).summary_path.read_text())
    return content


def folder_bytes(config: JobConfig) -> dict[str, bytes]:
    """Every file of the job folder and its bytes, but for the lock."""
    return snapshot(Path(config.output))


def assert_complete(config: JobConfig) -> None:
    rows = rows_of(config)
    assert [row["row"] for row in rows] == list(range(ROWS))
    for number, row in enumerate(rows):
        if number % 10 == 2:
            assert (row["status"], row["caption"], row["error_kind"]) == ("failed", None, "corrupt")
        else:
            assert (row["status"], row["caption"], row["width"]) == ("ok", f"of row-{number}", 64)


def test_rows_come_out_in_order_and_are_counted(config: JobConfig) -> None:
    engine, listener = FakeEngine(), Listener()
    summary = run(config, engine, listener)
    assert_complete(config)
    assert engine.submitted == list(range(ROWS))
    assert (summary.exit_code, summary.counts.ok, summary.counts.failed) == (ExitCode.COMPLETE, 20, 3)
    assert engine.closed
    assert listener.closed
    assert listener.started == (ROWS, 0)
    assert listener.done == sorted(listener.done)
    assert listener.done[-1] == ROWS
    content = summary_of(config)
    assert (content["state"], content["remaining"], content["error_kinds"]) == ("complete", 0, {"corrupt": 3})
    assert (content["run"]["rows"], content["run"]["new_tokens"]) == (ROWS, 60)
    assert content["run"]["stage_busy_s"]["vision"] == 0.5 * ROWS
    assert content["run"]["peak_memory_mib"] > 10
    run_of = content["run"]
    assert (run_of["images"], run_of["twins"]) == (ROWS - 3, 0), "failures are no images captioned"
    assert run_of["images_per_min"] > 0
    assert re.search(
        r"20 captions, 3 failed \(this run: 20 images in [^,]+, [\d.]+ images/min after loading\): ", summary.message
    )


@pytest.mark.parametrize(("temperature", "remembered"), [(0.0, True), (0.7, False)])
def test_a_resume_tells_the_engine_which_images_are_captioned(
    config: JobConfig, temperature: float, remembered: bool
) -> None:
    config = replace(config, generation=GenerationConfig(temperature=temperature))
    with pytest.raises(WorkerError):
        run(config, FakeEngine(dies_after=6))
    second = FakeEngine()
    run(config, second)
    captioned = set(range(ROWS)) - set(second.submitted) - {2}  # row 2 has failed
    assert len(captioned) >= 5
    assert {index for _sha256, index in second.remembered} == (captioned if remembered else set())
    assert_complete(config)


def test_nothing_left_to_do_starts_no_engine(config: JobConfig) -> None:
    run(config, FakeEngine())
    untouched = FakeEngine()
    assert run(config, untouched).exit_code is ExitCode.COMPLETE
    assert not untouched.submitted
    assert not untouched.closed, "it was never made"


def test_what_came_before_a_workers_death_is_kept(config: JobConfig) -> None:
    dying = FakeEngine(dies_after=8)
    with pytest.raises(WorkerError):
        run(config, dying)
    assert dying.closed
    content = summary_of(config)
    assert (content["state"], content["exit_code"], content["done"]) == ("failed", 1, 8)
    assert "was killed by signal 9" in content["message"]
    assert read_holder(JobFolder(Path(config.output))) is None

    second, listener = FakeEngine(), Listener()
    run(config, second, listener)
    assert_complete(config)
    assert f"{Path(config.output) / 'part-*.parquet'} (5 files)" in summary_of(config)["message"]
    assert listener.started == (ROWS, 8)
    assert len(second.submitted) == ROWS - 8


@pytest.mark.parametrize(
    ("number", "code", "state"),
    [
        (signal.SIGTERM, ExitCode.STOPPED_EARLY, "stopped"),
        (signal.SIGHUP, ExitCode.STOPPED_EARLY, "stopped"),
        (signal.SIGINT, ExitCode.INTERRUPTED, "interrupted"),
    ],
)
def test_a_signal_stops_and_the_next_run_goes_on(
    config: JobConfig, number: signal.Signals, code: ExitCode, state: str
) -> None:
    def ask(done: int) -> None:
        if done == 6:
            os.kill(os.getpid(), number)

    first, second = FakeEngine(), FakeEngine()
    summary = run(config, first, Listener(ask))
    assert summary.exit_code is code
    assert summary_of(config)["state"] == state
    assert "run the same command again to go on" in summary.message
    done = summary.counts.rows
    assert 6 <= done < ROWS
    run(config, second)
    assert_complete(config)
    assert len(second.submitted) == ROWS - done


def test_the_time_is_up(config: JobConfig) -> None:
    hurried = JobConfig(config.input, config.output, placement=config.placement, limits=LimitConfig(max_runtime_s=1e-6))
    assert run(hurried, FakeEngine()).exit_code is ExitCode.STOPPED_EARLY
    assert run(config, FakeEngine()).exit_code is ExitCode.COMPLETE
    assert_complete(config)


def test_a_stop_while_the_inputs_are_found_keeps_nothing_of_the_plan(
    config: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the next run would cut other parts than a run that nobody stopped."""

    def interrupted(inputs: InputConfig, output: Path, skipped: Skipped) -> Iterator[Source]:
        found = list(discover(inputs, output, skipped))
        yield from found
        os.kill(os.getpid(), signal.SIGINT)
        yield from found

    with monkeypatch.context() as patch:
        patch.setattr(job, "discover", interrupted)
        summary = run(config, FakeEngine())
    assert (summary.exit_code, summary.total_rows) == (ExitCode.INTERRUPTED, None)
    assert "run the same command again" in summary.message
    with closing(Journal.open(JobFolder(Path(config.output)).journal_path)) as journal:
        assert journal.shards() == []
    run(config, FakeEngine())
    assert_complete(config)


def test_images_that_cannot_be_read_are_in_the_summary(config: JobConfig, tmp_path: Path) -> None:
    run(config, FakeEngine())
    assert summary_of(config)["skipped_inputs"] == {}
    for name in ("a.svg", "b.SVG", "c.ai"):
        (tmp_path / name).touch()
    more = replace(config, input=replace(config.input, inputs=(str(tmp_path),)))
    assert run(more, FakeEngine()).skipped_inputs == {".svg": 2, ".ai": 1}
    assert summary_of(config)["skipped_inputs"] == {".svg": 2, ".ai": 1}
    assert_complete(config)


def test_an_input_that_is_not_there_makes_no_folder(config: JobConfig, tmp_path: Path) -> None:
    wrong = replace(config, input=InputConfig((str(tmp_path / "in.parquet"), str(tmp_path / "nowhere"))))
    with pytest.raises(UsageError, match="nowhere does not exist"):
        run(wrong, FakeEngine())
    assert not Path(config.output).exists()


def _without_log(config: JobConfig) -> Path:
    """The job folder's journal as a copy of the file alone has it."""
    path = JobFolder(Path(config.output)).journal_path
    for kind in ("wal", "shm"):
        path.with_name(f"{path.name}-{kind}").unlink(missing_ok=True)
    return path


@pytest.mark.parametrize("damage", ["no tables", "no rows of the plan", "a part more"])
def test_parts_that_the_journal_does_not_know_stop_the_job(config: JobConfig, damage: str) -> None:
    run(config, FakeEngine())
    journal = _without_log(config)
    if damage == "no tables":
        journal.write_bytes(b"")
    elif damage == "no rows of the plan":
        with closing(sqlite3.connect(journal)) as connection:
            connection.execute("DELETE FROM shards WHERE seq > 1")
            connection.commit()
    else:
        shutil.copy(Path(config.output) / "part-00000.parquet", Path(config.output) / "part-00099.parquet")
    before = {name: data for name, data in folder_bytes(config).items() if name.endswith(".parquet")}
    with pytest.raises(UsageError, match=r"part-0.*is not in this job's journal.*journal\.sqlite-wal"):
        run(config, FakeEngine())
    if damage == "no tables":
        with pytest.raises(UsageError, match=r"part-0.*is not in this job's journal"):
            read_status(Path(config.output))
    assert {name: data for name, data in folder_bytes(config).items() if name.endswith(".parquet")} == before


def test_the_journals_file_alone_has_the_plan(config: JobConfig, tmp_path: Path) -> None:
    class CopyingEngine(FakeEngine):
        """Copies the journal's file without its log when the first row comes."""

        def submit(self, request: Request) -> None:
            if not copied.exists():
                shutil.copy(JobFolder(Path(config.output)).journal_path, copied)
            super().submit(request)

    copied = tmp_path / "copy.sqlite"
    run(config, CopyingEngine())
    with closing(Journal.open_to_read(copied)) as journal:
        assert sum(shard.rows for shard in journal.shards()) == ROWS


def test_a_refused_run_leaves_alone_what_another_one_began_while_it_loaded(
    config: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"path": ["x.png"]}), tmp_path / "keyless.parquet")
    mistaken = replace(
        config, input=replace(config.input, inputs=(*config.input.inputs, str(tmp_path / "keyless.parquet")))
    )
    with pytest.raises(UsageError, match="key"):
        run(mistaken, FakeEngine())
    assert not Path(config.output).exists()

    load = job.load_bundle

    def slow_load(model: str) -> Any:
        monkeypatch.setattr(job, "load_bundle", load)
        run(config, FakeEngine())
        return load(model)

    monkeypatch.setattr(job, "load_bundle", slow_load)
    with pytest.raises(UsageError, match="key"):
        run(mistaken, FakeEngine())
    assert summary_of(config)["state"] == "failed"
    assert run(config, FakeEngine()).counts.rows == ROWS, "it is the job it was, and nothing is left to do"
    assert_complete(config)


def test_a_run_that_finds_the_lock_taken_changes_nothing(config: JobConfig) -> None:
    """What the run at work has not given its name yet is no leftover."""
    folder = JobFolder.open_or_create(Path(config.output))
    for parent in (folder.path, folder.state_path):
        (parent / f".x.1{TEMPORARY_SUFFIX}").write_bytes(b"half")
    with folder.lock_path.open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = folder_bytes(config)
        with pytest.raises(LockedError):
            run(config, FakeEngine())
        assert folder_bytes(config) == before
    run(config, FakeEngine())
    assert not list(folder.path.rglob(f"*{TEMPORARY_SUFFIX}"))


@pytest.mark.parametrize(("allowed", "code"), [(0.1, ExitCode.TOO_MANY_FAILURES), (3 / ROWS, ExitCode.COMPLETE)])
def test_failures_beyond_the_share_allowed(config: JobConfig, allowed: float, code: ExitCode) -> None:
    strict = JobConfig(
        config.input, config.output, placement=config.placement, limits=LimitConfig(max_error_rate=allowed)
    )
    assert run(strict, FakeEngine()).exit_code is code
    assert summary_of(config)["exit_code"] == code
    assert_complete(config)


def test_an_unexpected_error_is_in_the_summary_and_the_folder_is_free(config: JobConfig) -> None:
    def fail(done: int) -> None:
        raise ZeroDivisionError("odd")

    engine = FakeEngine()
    with pytest.raises(ZeroDivisionError):
        run(config, engine, Listener(fail))
    assert engine.closed
    content = summary_of(config)
    assert (content["state"], content["exit_code"]) == ("failed", 1)
    assert content["done"] == 1, "what had come before is kept"
    assert "unexpected ZeroDivisionError: odd" in content["message"]
    with job_lock(JobFolder(Path(config.output))):
        pass
    run(config, FakeEngine())
    assert_complete(config)


def test_a_path_that_is_not_text_ends_no_job(config: JobConfig) -> None:
    odd = Path(config.output).with_name(os.fsdecode(b"gr\xf6\xdfe"))
    odd.mkdir()
    given = replace(config.input, image_root=str(odd))
    there = replace(config, input=given)
    assert run(there, FakeEngine()).exit_code is ExitCode.COMPLETE
    assert run(there, FakeEngine()).exit_code is ExitCode.COMPLETE


def test_another_prompt_changes_nothing(config: JobConfig) -> None:
    run(config, FakeEngine())
    before = JobFolder(Path(config.output)).summary_path.read_bytes()
    other = JobConfig(config.input, config.output, generation=GenerationConfig("Other?"), placement=config.placement)
    with pytest.raises(NotSameJobError, match="--prompt"):
        run(other, FakeEngine())
    assert JobFolder(Path(config.output)).summary_path.read_bytes() == before


def test_a_part_says_how_it_was_made(config: JobConfig) -> None:
    run(config, FakeEngine())
    for path in JobFolder(Path(config.output)).part_paths():
        metadata = {key.decode(): value.decode() for key, value in pq.read_metadata(path).metadata.items()}
        assert json.loads(metadata["batchcap.bundle"])["id"] == "b" * 64
        assert json.loads(metadata["batchcap.settings"])["prompt"] == GenerationConfig().prompt
        assert len(metadata["batchcap.prompt_sha256"]) == 64


@pytest.mark.parametrize("rerun", [False, True])
def test_a_job_without_a_caption_is_no_success(config: JobConfig, rerun: bool) -> None:
    """Whatever share of failures is allowed, also where nothing is left to do."""

    def fail(request: Request) -> Outcome:
        message = f"{path_of(request.row)}: No such file or directory"
        return Outcome(request, Failure(request.index, ErrorKind.MISSING, message))

    summary = run(config, FakeEngine(end=fail))
    if rerun:
        summary = run(config, FakeEngine())
    assert (summary.exit_code, summary.state) == (ExitCode.TOO_MANY_FAILURES, "complete")
    assert f"0 captions, {ROWS} failed" in summary.message
    assert "nothing was captioned" in summary.message
    assert f"{ROWS} of {ROWS} rows failed as missing, such as row-0 (" in summary.message
    assert "--image-root" in summary.message
    assert summary_of(config)["exit_code"] == ExitCode.TOO_MANY_FAILURES


@pytest.mark.parametrize("lost", [(0,), (2,), (4,), (0, 1, 2, 3, 4)], ids=str)
def test_the_rows_of_damaged_parts_are_captioned_again(config: JobConfig, lost: tuple[int, ...]) -> None:
    """Also of the first and the last one, which are asked for the columns that all parts have."""
    config = replace(config, input=replace(config.input, keep_columns=("*",)))
    run(config, FakeEngine())
    parts = JobFolder(Path(config.output)).part_paths()
    for number in lost:
        os.truncate(parts[number], parts[number].stat().st_size // 2)
    engine = FakeEngine()
    assert run(config, engine).exit_code is ExitCode.COMPLETE
    assert engine.submitted == [row for row in range(ROWS) if row // 5 in lost]
    assert_complete(config)


def test_a_part_that_can_not_be_read_for_a_moment_is_left_alone(
    config: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A passing fault of the disk neither captions rows again nor replaces their part."""
    run(config, FakeEngine())
    before = {path: path.read_bytes() for path in JobFolder(Path(config.output)).part_paths()}
    read_metadata = pq.read_metadata

    def flaky(path: Path) -> Any:
        if path.name == "part-00002.parquet":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read_metadata(path)

    untouched = FakeEngine()
    with monkeypatch.context() as patch:
        patch.setattr("batchcap.store.parts.pq.read_metadata", flaky)
        with pytest.raises(StorageError, match=r"part-00002.parquet .*check the disk"):
            run(config, untouched)
    assert not untouched.submitted
    assert run(config, untouched).exit_code is ExitCode.COMPLETE
    assert not untouched.submitted
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("change", "is_told"),
    [
        ({}, True),  # the disk with the inputs is not mounted tonight
        ({"more": "other"}, True),  # the job has grown
        ({"inputs": ("nowhere",)}, False),
        ({"prompt": "Other?"}, False),
        ({"model": "other"}, False),
    ],
)
def test_a_run_that_does_not_begin_speaks_only_in_the_folder_of_its_own_job(
    config: JobConfig, change: dict[str, Any], is_told: bool
) -> None:
    run(config, FakeEngine())
    before = folder_bytes(config)
    Path(config.input.inputs[0]).unlink()
    given = config.input
    if "inputs" in change or "more" in change:
        inputs = change.get("inputs", (*given.inputs, change.get("more", "")))
        given = replace(given, inputs=inputs)
    wrong = replace(
        config,
        input=given,
        model=change.get("model"),
        generation=GenerationConfig(change.get("prompt", GenerationConfig().prompt)),
    )
    with pytest.raises(UsageError, match="does not exist"):
        run(wrong, FakeEngine())
    if is_told:
        assert (summary_of(config)["state"], summary_of(config)["exit_code"]) == ("failed", 2)
    else:
        assert folder_bytes(config) == before


def test_an_error_before_the_jobs_are_compared_leaves_another_job_alone(
    config: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a vision backend that is not installed: the fingerprint can't be made."""
    run(config, FakeEngine())
    before = folder_bytes(config)

    def refuse(_vision: object) -> None:
        raise UsageError("not installed")

    monkeypatch.setattr("batchcap.job.settings.resolve_encoder", refuse)
    with pytest.raises(UsageError, match="not installed"):
        run(replace(config, generation=GenerationConfig("Other?")), FakeEngine())
    assert folder_bytes(config) == before
    with pytest.raises(UsageError, match="not installed"):
        run(config, FakeEngine())
    assert summary_of(config)["state"] == "failed"
