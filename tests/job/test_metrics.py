"""What `--metrics` says of a run, read by a strict reader of Prometheus's format."""

import logging
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from batchcap.core.atomic import TEMPORARY_SUFFIX
from batchcap.core.errors import ErrorKind, ExitCode, LockedError, NotSameJobError, UsageError, WorkerError
from batchcap.core.records import Verdict
from batchcap.engines.base import EngineLoad, WorkerRestart
from batchcap.job import monitor
from batchcap.job.stop import StopRequest
from batchcap.store.folder import JobFolder
from batchcap.store.lock import job_lock
from tests.e2e.process import snapshot
from tests.fake_engine import FakeEngine
from tests.job.small import ROWS, run_small, small_job, summary_of
from tests.prometheus import Family, parsed

ODD = 'a "b" \\c\nd'


class Restarting(FakeEngine):
    """Says that its workers were started again."""

    def load(self) -> EngineLoad:
        load = super().load()
        load.queue_mib, load.queue_rows, load.reading_rows = 2.0, 3, 4
        load.restarts = (WorkerRestart("decoder 1", "was killed"), WorkerRestart("decoder 0", "was killed"))
        return load


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "textfile"
    folder.mkdir()
    return folder / "captions.prom"


def read(path: Path) -> dict[str, Family]:
    return parsed(path.read_text(encoding="utf-8"))


def seconds_of(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_a_finished_run_is_told_as_its_summary_tells_it(tmp_path: Path, path: Path) -> None:
    config = small_job(tmp_path, metrics=str(path))
    before_s = time.time()
    run_small(config, Restarting())
    found, summary = read(path), summary_of(config)
    assert found["batchcap_rows_planned"].only == ROWS
    assert found["batchcap_rows_total"].by("status") == {"ok": 20, "failed": 3}
    failed = found["batchcap_rows_failed_total"].by("kind")
    assert failed == {**dict.fromkeys(map(str, ErrorKind), 0), "corrupt": 3}, "none is a value, too"
    assert found["batchcap_captions_total"].by("verdict") == {**dict.fromkeys(map(str, Verdict), 0), "ok": 20}
    assert found["batchcap_tokens_total"].only == summary["new_tokens"] == 60
    assert found["batchcap_running"].only == 0
    assert found["batchcap_last_exit_code"].only == 0
    assert found["batchcap_last_success_timestamp_seconds"].only == seconds_of(summary["ended_at"])
    assert found["batchcap_last_end_timestamp_seconds"].only == seconds_of(summary["ended_at"])
    assert before_s <= found["batchcap_start_timestamp_seconds"].only <= time.time()
    assert found["batchcap_worker_restarts_total"].by("worker") == {"vision": 0, "decoder": 2}
    assert found["batchcap_rows_in_progress"].by("stage") == {"read": 4, "queue": 3, "decode": 0}
    assert found["batchcap_queue_bytes"].only == 2 * 1024 * 1024
    assert found["batchcap_stage_busy_seconds_total"].by("stage")["vision"] == 0.5 * ROWS
    assert found["batchcap_memory_bytes"].only > 10_000_000
    assert found["batchcap_captions_per_second"].only == 0, "nothing is captioned any more"
    assert found["batchcap_info"].by("model") == {"fake": 1}
    assert all(family.by("job").keys() == {"out"} for family in found.values())
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_names_of_metrics_are_as_prometheus_wants_them(tmp_path: Path, path: Path) -> None:
    run_small(small_job(tmp_path, metrics=str(path)))
    for name, family in read(path).items():
        assert name.startswith("batchcap_")
        assert "seconds" not in family.help.lower().split() or "seconds" in name
        assert not name.endswith(("_count", "_sum", "_bucket")), "these belong to histograms"


def test_a_run_at_work_is_told_while_it_is(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "SAMPLE_INTERVAL_S", 0.0)
    seen = []

    def look(_done: int) -> None:
        found = read(path)
        rate = found["batchcap_captions_per_second"].only
        rows = sum(found["batchcap_rows_total"].by("status").values())
        seen.append((found["batchcap_running"].only, found["batchcap_last_success_timestamp_seconds"].only, rows, rate))

    monkeypatch.setattr("batchcap.job.recorder.FLUSH_ROWS", 3)
    run_small(small_job(tmp_path, metrics=str(path)), look=look)
    assert {one[:2] for one in seen} == {(1, 0)}, "there was no success yet"
    assert len({one[2] for one in seen}) > 3
    assert max(one[3] for one in seen) > 0


def test_the_last_success_stays_when_runs_fail(tmp_path: Path, path: Path) -> None:
    config = small_job(tmp_path, metrics=str(path))
    run_small(config)
    success = read(path)["batchcap_last_success_timestamp_seconds"].only
    again = replace(config, resume=replace(config.resume, retry=("failed",)))
    path.unlink()  # the job folder knows
    with pytest.raises(WorkerError):
        run_small(again, FakeEngine(dies_after=0))
    found = read(path)
    assert (found["batchcap_running"].only, found["batchcap_last_exit_code"].only) == (0, 1)
    assert found["batchcap_last_success_timestamp_seconds"].only == success
    assert found["batchcap_last_end_timestamp_seconds"].only > success
    (tmp_path / "in.parquet").unlink()  # before the folder is held
    with pytest.raises(UsageError):
        run_small(config)
    assert read(path)["batchcap_last_exit_code"].only == 2
    assert read(path)["batchcap_last_success_timestamp_seconds"].only == success
    assert "batchcap_rows_total" not in read(path), "what is not known is not told"


def test_a_stopped_run_and_another_jobs_folder(tmp_path: Path, path: Path) -> None:
    config, stop = small_job(tmp_path, metrics=str(path)), StopRequest()
    summary = run_small(config, look=lambda _done: stop.ask(ExitCode.STOPPED_EARLY), stop=stop)
    assert summary.exit_code is ExitCode.STOPPED_EARLY
    assert read(path)["batchcap_last_exit_code"].only == 75
    assert read(path)["batchcap_last_success_timestamp_seconds"].only == 0
    run_small(config)
    with pytest.raises(NotSameJobError):
        run_small(replace(config, generation=replace(config.generation, prompt="another")))
    assert read(path)["batchcap_last_exit_code"].only == 5


def test_a_run_that_finds_another_at_work_leaves_its_metrics(tmp_path: Path, path: Path) -> None:
    config = small_job(tmp_path, metrics=str(path))
    run_small(config)
    before = path.read_bytes()
    with job_lock(JobFolder(Path(config.output))):
        with pytest.raises(LockedError):
            run_small(config)
        (tmp_path / "in.parquet").unlink()
        with pytest.raises(UsageError):
            run_small(config)
    assert path.read_bytes() == before


def test_odd_names_are_labels(tmp_path: Path, path: Path) -> None:
    run_small(small_job(tmp_path, output=ODD, metrics=str(path)))
    shown = ODD.replace("\n", "\\u000a")
    assert set(read(path)["batchcap_running"].by("job")) == {shown}


def test_metrics_that_can_not_be_written_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(monitor, "SAMPLE_INTERVAL_S", 0.0)
    plain = small_job(tmp_path)
    run_small(plain)
    told = small_job(
        tmp_path, output="told", metrics=str(tmp_path / "gone/x.prom"), events=str(tmp_path / "in.parquet/e")
    )
    with caplog.at_level(logging.WARNING):
        assert run_small(told).exit_code is ExitCode.COMPLETE
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line.partition(":")[0] for line in lines] == ["--metrics", "--events"]
    assert all("captioning goes on" in line for line in lines)
    parts = [
        {
            name: data
            for name, data in snapshot(Path(one.output)).items()
            if name.endswith(".parquet") and "/" not in name
        }
        for one in (plain, told)
    ]
    assert len(parts[0]) == 5
    assert parts[0] == parts[1], "none of it decides a caption"


def test_what_a_killed_run_has_left_half_written_is_removed(tmp_path: Path, path: Path) -> None:
    left = path.with_name(f".{path.name}.123{TEMPORARY_SUFFIX}")
    left.write_text("half")
    other = path.with_name(f".other.prom.123{TEMPORARY_SUFFIX}")
    other.write_text("of somebody else")
    run_small(small_job(tmp_path, metrics=str(path)))
    assert set(path.parent.iterdir()) == {path, other}


def test_no_file_is_put_among_the_parts(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for told in ({"metrics": str(tmp_path / "out/x.prom")}, {"events": str(tmp_path / "out/../out/events.jsonl")}):
        with pytest.raises(UsageError, match="would be among the parts"):
            run_small(small_job(tmp_path, **told))
    assert list((tmp_path / "out").iterdir()) == []
