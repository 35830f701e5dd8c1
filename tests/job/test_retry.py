"""Rows that have ended and are captioned again: by a retry, or because their image is another one now."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap.config import GenerationConfig, InputConfig, JobConfig, OnChanged, PlacementConfig, ResumeConfig
from batchcap.core.errors import (
    ChangedInputError,
    ErrorKind,
    ExitCode,
    NotSameJobError,
    RowError,
    StorageError,
    UsageError,
)
from batchcap.core.records import (
    Caption,
    Duplicate,
    Failure,
    FinishReason,
    ImageFacts,
    ImageRow,
    Outcome,
    Request,
    Verdict,
)
from batchcap.job import run as job
from batchcap.job.part_writer import PartWriter
from batchcap.job.run import run_job
from batchcap.job.summary import Summary
from batchcap.report.status import read_status
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.parts import write_part
from tests.fake_engine import FakeEngine, SilentProgress, fake_bundle
from tests.inputs.parquets import path_of

# What is in the images: how they end. Parts of three rows.
IMAGES = {
    "a.png": "cat",
    "b.png": "bad",
    "c.png": "long story",
    "d.png": "dog",
    "e.png": "cow",
    "f.png": "hen",
    "g.png": "again and again",
    "h.png": "bad, too",
}
SHORT, ENOUGH = 10, 100


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobConfig:
    bundle = fake_bundle()
    monkeypatch.setattr(job, "load_bundle", lambda _model: bundle)
    monkeypatch.setattr("batchcap.job.recorder.FLUSH_ROWS", 1)
    (tmp_path / "in").mkdir()
    for name, content in IMAGES.items():
        (tmp_path / "in" / name).write_text(content)
    return JobConfig(
        InputConfig((str(tmp_path / "in"),)),
        str(tmp_path / "out"),
        generation=GenerationConfig(max_new_tokens=SHORT),
        placement=PlacementConfig(rows_per_part=3),
    )


def engine_of(config: JobConfig, dies_after: int | None = None) -> FakeEngine:
    """Captions say what is in a file; `bad` ones fail, `long` ones want tokens, `again` ones a penalty."""
    words = config.generation

    def end(request: Request) -> Outcome:
        row = request.row
        content = Path(path_of(row)).read_bytes()
        if content.startswith(b"bad"):
            return Outcome(request, Failure(row.index, ErrorKind.CORRUPT, "cut"))
        verdict = Verdict.OK
        if content.startswith(b"long") and words.max_new_tokens < ENOUGH:
            verdict = Verdict.TRUNCATED
        if content.startswith(b"again") and words.repetition_penalty == 1:
            verdict = Verdict.REPEATED
        caption = Caption(row.index, (1,), f"of {content.decode()}", FinishReason.STOP, verdict, 9, 4, 3.0, 5.0)
        return Outcome(request, (caption,), ImageFacts(64, 48, hashlib.sha256(content).hexdigest(), 1.0, 2.0))

    return FakeEngine(end=end, dies_after=dies_after)


def run(config: JobConfig, engine: FakeEngine | None = None) -> tuple[Summary, list[int]]:
    """The summary, and the rows that were given to the engine."""
    engine = engine or engine_of(config)
    summary = run_job(config, SilentProgress(), lambda _config: engine)
    return summary, sorted(engine.submitted)


def resuming(config: JobConfig, *retry: str, on_changed: OnChanged = OnChanged.STOP, **words: Any) -> JobConfig:
    generation = replace(config.generation, **words)
    return replace(config, resume=ResumeConfig(retry, on_changed), generation=generation)


def rows_of(config: JobConfig) -> list[dict[str, Any]]:
    paths = JobFolder(Path(config.output)).part_paths()
    rows: list[dict[str, Any]] = pa.concat_tables([pq.read_table(path) for path in paths]).to_pylist()
    assert [row["id"] for row in rows] == sorted(path.name for path in Path(config.input.inputs[0]).iterdir())
    return rows


def part_path(config: JobConfig, number: int) -> Path:
    return JobFolder(Path(config.output)).part_path(number)


def retries_of(config: JobConfig, number: int) -> list[dict[str, Any]]:
    metadata = pq.read_metadata(part_path(config, number)).metadata
    found: list[dict[str, Any]] = json.loads(metadata.get(b"batchcap.retries", b"[]"))
    return found


def write(config: JobConfig, name: str, content: str) -> None:
    (Path(config.input.inputs[0]) / name).write_text(content)


def test_only_failed_rows_are_tried_again(config: JobConfig) -> None:
    run(config)
    before = rows_of(config)
    write(config, "b.png", "bat")
    summary, submitted = run(resuming(config, "failed"))
    assert submitted == [1, 7]
    rows = rows_of(config)
    assert (rows[1]["status"], rows[1]["caption"], rows[1]["attempts"]) == ("ok", "of bat", 2)
    assert (rows[7]["status"], rows[7]["error_kind"], rows[7]["attempts"]) == ("failed", "corrupt", 2)
    assert [row for number, row in enumerate(rows) if number not in submitted] == [
        row for number, row in enumerate(before) if number not in submitted
    ]
    assert (summary.exit_code, summary.counts.rows, summary.counts.ok, summary.counts.failed) == (0, 8, 7, 1)
    assert run(config)[1] == [], "what was tried again is not tried for ever"
    assert run(resuming(config, "failed"))[1] == [7]
    assert rows_of(config)[7]["attempts"] == 3


def test_captions_are_tried_again_with_other_settings_only(config: JobConfig, caplog: pytest.LogCaptureFixture) -> None:
    run(config)
    assert run(resuming(config, "truncated", "repeated"))[1] == []
    assert "2 captions (repeated, truncated) are not retried" in caplog.text
    assert run(resuming(config, "truncated", max_new_tokens=ENOUGH))[1] == [2]
    assert run(resuming(config, "truncated", "repeated", repetition_penalty=1.1))[1] == [6]
    assert [row["verdict"] for row in rows_of(config)] == ["ok", None, "ok", "ok", "ok", "ok", "ok", None]
    metadata = pq.read_metadata(JobFolder(Path(config.output)).part_path(0)).metadata
    assert json.loads(metadata[b"batchcap.settings"])["max-new-tokens"] == SHORT
    assert [one["max-new-tokens"] for one in json.loads(metadata[b"batchcap.retries"])] == [ENOUGH]
    run(resuming(config, "failed"))
    metadata = pq.read_metadata(JobFolder(Path(config.output)).part_path(0)).metadata
    assert len(json.loads(metadata[b"batchcap.retries"])) == 1


def test_other_settings_are_for_a_retry_of_a_finished_job(config: JobConfig) -> None:
    run(config)
    with pytest.raises(NotSameJobError, match="--max-new-tokens: was 10, now 100"):
        run(resuming(config, max_new_tokens=ENOUGH))
    with pytest.raises(NotSameJobError, match="--prompt"):
        run(resuming(config, "failed", prompt="Why?"))
    write(config, "i.png", "new")
    with pytest.raises(
        UsageError, match=r"1 rows have never been captioned: .* then retry with another --max-new-tokens"
    ):
        run(resuming(config, "truncated", max_new_tokens=ENOUGH))
    assert run(resuming(config, "failed"))[1] == [1, 7, 8]
    assert run(resuming(config, "truncated", max_new_tokens=ENOUGH))[1] == [2]


@pytest.mark.parametrize("dies_after", [0, 1, 2])
def test_an_interrupted_retry_goes_on(config: JobConfig, dies_after: int) -> None:
    run(config)
    write(config, "b.png", "bat")
    write(config, "h.png", "hat")
    retry = resuming(config, "failed", "truncated", max_new_tokens=ENOUGH)
    with pytest.raises(Exception, match="was killed by signal 9"):
        run(retry, engine_of(retry, dies_after=dies_after))
    status = read_status(Path(config.output))
    assert (status.total_rows, status.remaining) == (8, 3 - dies_after)
    assert [row["id"] for row in rows_of(config)] == list(IMAGES), "the parts are whole all the time"
    assert len(run(retry)[1]) == 3 - dies_after
    rows = rows_of(config)
    assert [row["caption"] for row in rows] == [
        f"of {text}" for text in ("cat", "bat", "long story", "dog", "cow", "hen", "again and again", "hat")
    ]
    assert [row["attempts"] for row in rows] == [1, 2, 2, 1, 1, 1, 1, 2]
    assert read_status(Path(config.output)).remaining == 0


def test_a_plain_resume_ends_an_interrupted_retry(config: JobConfig) -> None:
    run(config)
    write(config, "b.png", "bat")
    with pytest.raises(Exception, match="was killed by signal 9"):
        run(resuming(config, "failed"), engine_of(config, dies_after=0))
    assert run(config)[1] == [1, 7]
    assert rows_of(config)[1]["caption"] == "of bat"


def test_a_plain_resume_gives_up_a_retry_with_other_settings(
    config: JobConfig, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("d.png", "f.png"):
        write(config, name, "long, too")
    run(config)
    before = rows_of(config)
    retry = resuming(config, "truncated", max_new_tokens=ENOUGH)
    with pytest.raises(Exception, match="was killed by signal 9"):
        run(retry, engine_of(retry, dies_after=1))
    assert read_status(Path(config.output)).remaining == 2
    write(config, "i.png", "new")
    assert run(config)[1] == [8]
    assert "a retry with other settings is cancelled: 2 captions stay as they were" in caplog.text
    rows = rows_of(config)
    tried = [row["id"] for row in rows if row["attempts"] == 2]
    assert len(tried) == 1
    assert [row for row in rows if row["id"] not in (*tried, "i.png")] == [
        row for row in before if row["id"] not in tried
    ]
    told = [one for number in range(3) for one in retries_of(config, number)]
    assert told == [{"max-new-tokens": ENOUGH}]
    other = resuming(config, "truncated", max_new_tokens=ENOUGH + 1)
    assert len(run(other)[1]) == 2
    assert retries_of(config, 1)[-1] == {"max-new-tokens": ENOUGH + 1}


def test_an_interrupted_retry_tries_nothing_twice(config: JobConfig) -> None:
    """Else a retry that is stopped each time before its end would try the same rows for ever."""
    for name in ("a.png", "d.png", "e.png"):
        write(config, name, "bad")
    run(config)
    for _night in range(4):
        with pytest.raises(Exception, match="was killed by signal 9"):
            run(resuming(config, "failed"), engine_of(config, dies_after=1))
    assert len(run(resuming(config, "failed"))[1]) == 1
    assert [row["attempts"] for row in rows_of(config) if row["status"] == "failed"] == [2] * 5
    assert len(run(resuming(config, "failed"))[1]) == 5


def test_a_request_says_which_attempt_it_is(config: JobConfig) -> None:
    attempts = dict[int, int]()

    def end(request: Request) -> Outcome:
        attempts[request.index] = request.attempt
        return Outcome(request, Failure(request.index, ErrorKind.CORRUPT, "cut"))

    for attempt in (1, 2, 3):
        attempts.clear()
        run(config if attempt == 1 else resuming(config, "failed"), FakeEngine(end=end))
        assert attempts == dict.fromkeys(range(len(rows_of(config))), attempt)


def test_a_caption_is_not_lost_to_an_image_that_vanished(config: JobConfig, caplog: pytest.LogCaptureFixture) -> None:
    def end(request: Request) -> Outcome:
        return Outcome(request, Failure(request.index, ErrorKind.MISSING, "no such file"))

    run(config)
    before = rows_of(config)
    (Path(config.input.inputs[0]) / "c.png").unlink()
    retry = resuming(config, "failed", "truncated", max_new_tokens=ENOUGH)
    run(retry, FakeEngine(end=end))
    rows = [row for number in range(3) for row in pq.read_table(part_path(config, number)).to_pylist()]
    assert rows[2] == {**before[2], "attempts": 2}
    assert (rows[1]["error_kind"], rows[1]["attempts"]) == ("missing", 2)
    assert "c.png keeps its old caption: the retry failed as missing" in caplog.text


def test_a_twin_does_not_get_the_caption_that_stays_for_another_image(config: JobConfig) -> None:
    run(config)
    for name in ("d.png", "i.png"):
        write(config, name, "new")

    def end(request: Request) -> Outcome:
        index = request.index
        return Outcome(request, Failure(3, ErrorKind.CRASHED, "twice") if index == 3 else Duplicate(index, 3, 1.0))

    run(resuming(config, on_changed=OnChanged.RECAPTION), FakeEngine(room=1, end=end))
    rows = rows_of(config)
    assert (rows[3]["status"], rows[3]["caption"]) == ("ok", "of dog"), "a crash says nothing of the image"
    assert (rows[8]["status"], rows[8]["error_kind"], rows[8]["caption"]) == ("failed", "crashed", None)


def test_a_changed_image_that_is_broken_has_no_caption(config: JobConfig) -> None:
    run(config)
    write(config, "d.png", "bad now")
    run(resuming(config, on_changed=OnChanged.RECAPTION))
    assert (rows_of(config)[3]["error_kind"], rows_of(config)[3]["caption"]) == ("corrupt", None)


def test_other_settings_are_not_for_rows_that_are_in_no_part(
    config: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_parts: PartWriter, _state: object) -> None:
        raise StorageError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(PartWriter, "write", refuse)
        with pytest.raises(StorageError):
            run(replace(config, placement=PlacementConfig(rows_per_part=8)))
    retry = resuming(config, "truncated", max_new_tokens=ENOUGH)
    with pytest.raises(UsageError, match=r"1 part files are not written yet.*run the job with its own settings first"):
        run(retry)
    assert run(config)[1] == [], "every row is in the journal"
    assert run(retry)[1] == [2]


def test_twins_have_no_captions_of_other_settings(config: JobConfig) -> None:
    run(config)
    write(config, "b.png", "long story")  # as c.png, whose caption is cut off
    retry = resuming(config, "failed", max_new_tokens=ENOUGH)
    engine = engine_of(retry)
    run(retry, engine)
    assert engine.remembered == []
    assert rows_of(config)[1]["verdict"] == "ok"
    write(config, "i.png", "long story")
    engine = engine_of(config)
    run(config, engine)
    assert {index for _sha256, index in engine.remembered} == {0, 2, 3, 4, 5, 6}
    assert rows_of(config)[8]["verdict"] == "truncated"


def test_carried_columns_outlive_their_input(config: JobConfig, tmp_path: Path) -> None:
    table = pa.table({"path": [str(tmp_path / "in" / "a.png")] * 2, "lab": ["precious", "things"]})
    pq.write_table(table, tmp_path / "in" / "z.parquet")
    config = replace(config, input=replace(config.input, keep_columns=("*",)))
    run(config)
    assert pq.read_table(part_path(config, 3))["lab"].to_pylist() == ["things"]
    (tmp_path / "in" / "z.parquet").unlink()
    write(config, "b.png", "bat")
    write(config, "h.png", "hat")
    assert run(resuming(config, "failed"))[1] == [1, 7]
    values = [pq.read_table(part_path(config, number))["lab"].to_pylist() for number in range(4)]
    assert values == [[None] * 3, [None] * 3, [None, None, "precious"], ["things"]]


def test_rows_of_a_parquet_file_that_is_gone_are_not_reopened(
    config: JobConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [str(tmp_path / "in" / name) for name in IMAGES]
    pq.write_table(pa.table({"path": paths}), tmp_path / "rows.parquet")
    config = replace(config, input=InputConfig((str(tmp_path / "in"), str(tmp_path / "rows.*"))))
    run(config)
    (tmp_path / "rows.parquet").unlink()
    (tmp_path / "rows.png").write_text("other")
    write(config, "b.png", "bat")
    assert run(resuming(config, "failed"))[1] == [1, 7, 16]
    assert "2 rows can't be retried: their Parquet files no longer exist" in caplog.text
    assert read_status(Path(config.output)).remaining == 0


def test_a_damaged_part_is_named(config: JobConfig) -> None:
    run(config)
    with part_path(config, 0).open("r+b") as file:
        file.seek(4)
        file.write(b"\xff" * 200)
    with pytest.raises(StorageError, match=r"part-00000\.parquet is damaged .* delete it"):
        run(resuming(config, "failed"))
    part_path(config, 0).unlink()
    assert run(config)[1] == [0, 1, 2]


def test_a_kill_between_the_part_and_the_journal(config: JobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config)
    write(config, "b.png", "bat")
    forget = Journal.forget

    def refused(journal: Journal, shard: Any) -> None:
        if shard.seq == 0 and journal.reopened(shard):
            raise StorageError("killed here")
        forget(journal, shard)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "forget", refused)
        with pytest.raises(StorageError):
            run(resuming(config, "failed"))
    assert rows_of(config)[1]["caption"] == "of bat"
    assert run(config)[1] in ([], [7])
    rows = rows_of(config)
    assert [row["attempts"] for row in rows] == [1, 2, 1, 1, 1, 1, 1, 2]


def test_a_retry_before_the_parts_are_there(config: JobConfig) -> None:
    with pytest.raises(Exception, match="was killed by signal 9"):
        run(config, engine_of(config, dies_after=2))
    with closing(Journal.open(JobFolder(Path(config.output)).journal_path)) as journal:
        ended = {index for shard in journal.shards() for index, _row in journal.rows(shard)}
    submitted = run(resuming(config, "failed"))[1]
    assert submitted == sorted(set(range(8)) - (ended - {1}))
    rows = rows_of(config)
    assert rows[1]["attempts"] == (2 if 1 in ended else 1)
    assert [row["status"] for row in rows].count("failed") == 2


def test_a_changed_image_stops_the_job_by_default(config: JobConfig) -> None:
    run(config)
    write(config, "d.png", "fox")
    write(config, "e.png", "cow")  # other time, same image
    with pytest.raises(ChangedInputError, match=r"in/d\.png has changed since.*--on-changed recaption") as caught:
        run(config)
    assert caught.value.exit_code == ExitCode.NOT_SAME_JOB
    summary = json.loads(JobFolder(Path(config.output)).summary_path.read_text())
    assert (summary["exit_code"], summary["state"]) == (5, "failed")
    with pytest.raises(ChangedInputError):
        run(config)


def test_a_changed_image_keeps_its_caption(config: JobConfig, caplog: pytest.LogCaptureFixture) -> None:
    run(config)
    write(config, "d.png", "fox")
    assert run(resuming(config, on_changed=OnChanged.KEEP))[1] == []
    assert "d.png has changed; the captions are kept" in caplog.text
    assert rows_of(config)[3]["caption"] == "of dog"
    with pytest.raises(ChangedInputError):  # to keep is no answer for ever
        run(config)


def test_a_changed_image_is_captioned_again(config: JobConfig) -> None:
    run(config)
    write(config, "d.png", "fox")
    write(config, "h.png", "hat")  # it had failed, and was mended
    assert run(resuming(config, on_changed=OnChanged.RECAPTION))[1] == [3, 7]
    rows = rows_of(config)
    assert [rows[3]["caption"], rows[7]["caption"]] == ["of fox", "of hat"]
    assert run(config)[1] == []
    write(config, "d.png", "lynx")
    assert run(resuming(config, "failed", on_changed=OnChanged.RECAPTION))[1] == [1, 3], "both in one run"


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: os.utime(path, (5, 5))])
def test_what_vanished_or_was_touched_is_not_changed(config: JobConfig, change: Callable[[Path], None]) -> None:
    run(config)
    change(Path(config.input.inputs[0]) / "d.png")
    assert run(config)[1] == []
    captions = pq.read_table(JobFolder(Path(config.output)).part_path(1))["caption"].to_pylist()
    assert captions == ["of dog", "of cow", "of hen"]


@pytest.mark.parametrize("on_changed", OnChanged)
def test_an_image_that_can_not_be_read_is_not_changed(
    config: JobConfig, monkeypatch: pytest.MonkeyPatch, on_changed: OnChanged
) -> None:
    def refuse(row: ImageRow) -> bytes:
        raise RowError(ErrorKind.UNREADABLE, f"{path_of(row)}: Input/output error")

    run(config)
    before = rows_of(config)
    os.utime(Path(config.input.inputs[0]) / "d.png", (5, 5))
    monkeypatch.setattr("batchcap.job.comparison.read_encoded", refuse)
    assert run(resuming(config, on_changed=on_changed))[1] == []
    assert rows_of(config) == before


def test_an_image_that_can_not_be_read_is_looked_at_by_the_next_run(
    config: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(row: ImageRow) -> bytes:
        raise RowError(ErrorKind.UNREADABLE, f"{path_of(row)}: Input/output error")

    run(config)
    write(config, "d.png", "fox")
    with monkeypatch.context() as disk:
        disk.setattr("batchcap.job.comparison.read_encoded", refuse)
        assert run(config)[1] == []
    with pytest.raises(ChangedInputError, match=r"d\.png has changed"):
        run(config)


def test_a_failed_row_whose_image_was_mended_waits_for_a_retry(config: JobConfig) -> None:
    run(config)
    write(config, "b.png", "bat")
    assert run(config)[1] == []
    assert run(resuming(config, "failed"))[1] == [1, 7]


def test_changed_images_get_the_jobs_settings(config: JobConfig) -> None:
    run(config)
    write(config, "d.png", "fox")
    both = resuming(config, "truncated", on_changed=OnChanged.RECAPTION, max_new_tokens=ENOUGH)
    with pytest.raises(UsageError, match=r"d\.png has changed, and changed inputs are captioned"):
        run(both)
    assert run(resuming(config, on_changed=OnChanged.RECAPTION))[1] == [3]
    assert run(both)[1] == [2]


def test_images_changed_before_they_were_captioned_are_just_read(config: JobConfig) -> None:
    with pytest.raises(Exception, match="was killed by signal 9"):
        run(config, engine_of(config, dies_after=2))
    write(config, "h.png", "hat")
    run(config)
    assert rows_of(config)[7]["caption"] == "of hat"


def test_a_changed_parquet_file(config: JobConfig, tmp_path: Path) -> None:
    def write_table(label: str) -> None:
        paths = [str(tmp_path / "in" / name) for name in IMAGES]
        pq.write_table(pa.table({"path": paths, "label": [label] * len(paths)}), tmp_path / "rows.parquet")

    config = replace(config, input=InputConfig((str(tmp_path / "rows.parquet"),), keep_columns=("label",)))
    write_table("old")
    run(config)
    write_table("new, and longer")
    with pytest.raises(ChangedInputError, match=r"rows\.parquet has changed"):
        run(config)
    assert run(resuming(config, on_changed=OnChanged.KEEP))[1] == []
    paths = JobFolder(tmp_path / "out").part_paths()
    assert {label for path in paths for label in pq.read_table(path)["label"].to_pylist()} == {"old"}
    assert run(resuming(config, on_changed=OnChanged.RECAPTION))[1] == list(range(8))
    assert {label for path in paths for label in pq.read_table(path)["label"].to_pylist()} == {"new, and longer"}


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--retry must be some of failed, truncated, .* not 'lost'"):
        ResumeConfig(("failed", "lost"))


class _KilledError(BaseException):
    """The end of the process, as far as the code can tell."""


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_retry_that_ends_before_its_last_part_is_not_complete(
    config: JobConfig, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    """All rows have ended again, and the part holds them as they were."""
    run(config)
    write(config, "b.png", "bat")

    def fail_at_last(path: Path, *args: Any) -> None:
        if path.name == "part-00000.parquet":  # the engine gives its rows back from the last to the first
            raise _KilledError if is_killed else StorageError("the disk is full")
        write_part(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr("batchcap.job.part_writer.write_part", fail_at_last)
        with pytest.raises((_KilledError, StorageError)):
            run(resuming(config, "failed"))
    status = read_status(Path(config.output))
    assert (status.remaining, status.parts_left) == (0, 1)
    assert status.state == ("stopped" if is_killed else "failed")
    assert rows_of(config)[1]["caption"] is None
    if not is_killed:
        summary = json.loads(JobFolder(Path(config.output)).summary_path.read_text())
        assert (summary["state"], summary["remaining"], summary["parts_left"]) == ("failed", 0, 1)
    assert run(config)[1] == [], "no row is captioned twice"
    assert rows_of(config)[1]["caption"] == "of bat"
    status = read_status(Path(config.output))
    assert (status.state, status.parts_left) == ("complete", 0)
