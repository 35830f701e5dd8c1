"""Tables and archives that look otherwise at a later run: they grew, were written again, or hold other rows."""

import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap.config import (
    ImagesOf,
    InputConfig,
    JobConfig,
    LimitConfig,
    OnChanged,
    OutputsConfig,
    PlacementConfig,
    ResumeConfig,
)
from batchcap.core.errors import ChangedInputError, ErrorKind, ExitCode, RowError, UsageError
from batchcap.core.records import Caption, Failure, FinishReason, ImageFacts, ImageRow, Outcome, Request, Verdict
from batchcap.inputs.encoded import digest, read_encoded
from batchcap.job import comparison
from batchcap.job import run as job
from batchcap.job.run import run_job
from batchcap.job.stop import StopRequest
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.plan_tables import PlanChange
from tests.fake_engine import FakeEngine, SilentProgress, fake_bundle
from tests.inputs.archives import tar_bytes, zip_bytes

KINDS = ("parquet", "jsonl", "csv", "tsv", "arrow", "tar", "zip")
FIVE = ("cat", "dog", "bad", "hen", "cow")
SEVEN = (*FIVE, "fox", "elk")


def write(path: Path, contents: Sequence[str], label: str = "x") -> None:
    """A file of the kind that its suffix says, with a row for each content, in small groups."""
    labels = [f"{label}{row}" for row in range(len(contents))]
    kind = path.suffix[1:]
    if kind in {"tar", "zip"}:
        members = dict[str, bytes]()
        for row, content in enumerate(contents):
            members |= {f"{row:03}.png": content.encode(), f"{row:03}.txt": labels[row].encode()}
        path.write_bytes((tar_bytes if kind == "tar" else zip_bytes)(members))
        return
    table = pa.table({"image": [content.encode() for content in contents], "txt": labels})
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=2)
        return
    if kind == "arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        return
    rows = []
    for content, one in zip(contents, labels, strict=True):
        (path.parent / f"{content}.png").write_text(content)
        rows.append((f"{content}.png", one))
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"image": image, "txt": one}) + "\n" for image, one in rows))
    else:
        separator = "\t" if kind == "tsv" else ","
        path.write_text("".join(f"{separator.join(row)}\n" for row in [("image", "txt"), *rows]))


def told(request: Request) -> Outcome:
    """A caption that says what is in the image; a failure where that is `bad`."""
    try:
        content = read_encoded(request.row)
    except RowError as error:
        return Outcome(request, Failure(request.index, error.kind, error.message))
    if content.startswith(b"bad"):
        return Outcome(request, Failure(request.index, ErrorKind.CORRUPT, "cut"))
    text = f"of {content.decode()}"
    caption = Caption(request.index, (1,), text, FinishReason.STOP, Verdict.OK, 9, 4, 3.0, 5.0)
    return Outcome(request, (caption,), ImageFacts(64, 48, digest(content), 1.0, 2.0))


@dataclass(frozen=True)
class Job:
    """A job with parts of three rows over the files of a folder."""

    folder: Path
    config: JobConfig

    def path(self, name: str) -> Path:
        return self.folder / name

    def given(self, *names: str, **words: Any) -> "Job":
        inputs = InputConfig(tuple(str(self.path(name)) for name in names), **words)
        return replace(self, config=replace(self.config, input=inputs))

    def run(self, on_changed: OnChanged = OnChanged.STOP, *retry: str, limit: int = 0, **words: Any) -> list[int]:
        """The rows that a run captions."""
        engine = FakeEngine(end=told)
        resume, limits = ResumeConfig(retry, on_changed), LimitConfig(limit=limit)
        run_job(
            replace(self.config, resume=resume, limits=limits), SilentProgress(), lambda _config: engine, None, **words
        )
        return sorted(engine.submitted)

    @property
    def parts(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in JobFolder(Path(self.config.output)).part_paths()}

    def column(self, name: str) -> list[Any]:
        paths = JobFolder(Path(self.config.output)).part_paths()
        return [value for path in paths for value in pq.read_table(path)[name].to_pylist()]

    @property
    def captions(self) -> list[str | None]:
        return [caption and caption.removeprefix("of ") for caption in self.column("caption")]


@pytest.fixture
def over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(job, "load_bundle", lambda _model: fake_bundle())
    config = JobConfig(InputConfig(("x",)), str(tmp_path / "out"), placement=PlacementConfig(rows_per_part=3))
    return Job(tmp_path, config)


def names(contents: Sequence[str]) -> list[str | None]:
    return [None if content.startswith("bad") else content for content in contents]


class _KilledError(BaseException):
    """The end of the process, as far as the code can tell."""


@pytest.mark.parametrize("at", ["accept", "accept_rows", "plan_rows"])
def test_a_run_that_is_killed_while_it_takes_in_rows_changes_nothing(
    over: Job, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    over = over.given("a.jsonl", "b.jsonl")
    write(over.path("a.jsonl"), FIVE)
    write(over.path("b.jsonl"), ["ant"])
    over.run()
    before = over.parts
    write(over.path("a.jsonl"), SEVEN)
    statement, calls = getattr(PlanChange, at), 0

    def killed(change: PlanChange, *values: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        found = statement(change, *values, **options)
        if at != "plan_rows" or calls == 2:  # the first plans new files
            raise _KilledError
        return found

    with monkeypatch.context() as patched:
        patched.setattr(PlanChange, at, killed)
        with pytest.raises(_KilledError):
            over.run()
    assert over.parts == before
    assert over.run() == [6, 7]
    assert over.captions == names([*FIVE, "ant", "fox", "elk"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [(), ("txt",)])
def test_rows_that_were_added_are_captioned_and_parts_stay_as_they_are(
    over: Job, caplog: pytest.LogCaptureFixture, kind: str, keep: tuple[str, ...]
) -> None:
    caplog.set_level(logging.INFO)
    over, path = over.given(f"t.{kind}", keep_columns=keep), over.path(f"t.{kind}")
    write(path, FIVE)
    assert over.run() == [0, 1, 2, 3, 4]
    before = over.parts
    write(path, SEVEN)
    assert over.run() == [5, 6]
    assert f"{path} has 2 more rows" in caplog.text
    write(path, [*SEVEN, "bad", "owl", "ape", "bee"])
    assert over.run() == [7, 8, 9, 10]
    assert over.run() == []
    assert over.captions == names([*SEVEN, "bad", "owl", "ape", "bee"])
    assert over.parts.items() >= before.items()
    assert [len(pq.read_table(path)) for path in JobFolder(over.folder / "out").part_paths()] == [3, 2, 2, 3, 1]
    assert len(set(over.column("id"))) == 11
    if keep:
        assert over.column("txt") == [f"x{row}" for row in range(11)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [(), ("fox",)])
def test_a_row_that_is_another_one_stops_the_job(over: Job, kind: str, more: tuple[str, ...]) -> None:
    over, path = over.given(f"t.{kind}"), over.path(f"t.{kind}")
    write(path, FIVE)
    over.run()
    before = over.parts
    now = ["cat", "dog", "bad", "yak", "gnu", *more]
    write(path, now)
    told_now = rf"t\.{kind} has changed.*row 3: its image is another one\): give --on-changed recaption"
    for _time in range(2):
        with pytest.raises(ChangedInputError, match=told_now) as caught:
            over.run()
        assert caught.value.exit_code == ExitCode.NOT_SAME_JOB
    assert over.run(OnChanged.KEEP) == [5][: len(more)]
    assert over.parts.items() >= before.items()
    with pytest.raises(ChangedInputError, match="row 3"):  # to keep is no answer for ever
        over.run()
    assert over.run(OnChanged.RECAPTION) == list(range(len(now)))
    assert over.captions == names(now)
    assert over.run() == []


def test_rows_of_a_changed_table_are_captioned_again_with_those_that_were_added(over: Job) -> None:
    over = over.given("t.jsonl")
    write(over.path("t.jsonl"), FIVE)
    over.run()
    write(over.path("t.jsonl"), ["yak", *SEVEN[1:]])
    assert over.run(OnChanged.RECAPTION) == list(range(7))
    assert over.captions == names(["yak", *SEVEN[1:]])


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_rows_stop_the_job_whatever_is_to_become_of_changes(over: Job, kind: str) -> None:
    over, path = over.given(f"t.{kind}"), over.path(f"t.{kind}")
    write(path, FIVE)
    over.run()
    before = over.parts
    removed = ["cat", "dog", "hen", "cow"]
    for now, row, on_changed in (
        (removed, 3, OnChanged.STOP),
        (FIVE[:4], 4, OnChanged.KEEP),
        (removed, 3, OnChanged.RECAPTION),
    ):
        write(path, now)
        with pytest.raises(
            ChangedInputError, match=rf"had 5 rows and has 4 now .*is row {row}: .*restore the old file"
        ):
            over.run(on_changed)
    assert over.parts == before
    write(path, FIVE)
    assert over.run() == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_that_was_written_again_with_the_same_rows_has_not_changed(
    over: Job, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    over, path = over.given(f"t.{kind}", keep_columns=("txt",)), over.path(f"t.{kind}")
    write(path, FIVE)
    over.run()
    os.utime(path, (5, 5))
    assert over.run() == []
    monkeypatch.setattr(comparison.Comparison, "first_difference", lambda *_: pytest.fail("it was accepted before"))
    assert over.run() == []


@pytest.mark.parametrize("kind", KINDS)
def test_other_values_of_carried_columns_are_a_difference(over: Job, kind: str) -> None:
    over, path = over.given(f"t.{kind}", keep_columns=("txt",)), over.path(f"t.{kind}")
    write(path, FIVE)
    over.run()
    write(path, SEVEN, "y")
    with pytest.raises(ChangedInputError, match="row 0: its columns have other values"):
        over.run()
    assert over.run(OnChanged.RECAPTION) == list(range(7))
    assert over.column("txt") == [f"y{row}" for row in range(7)]


def test_a_carried_number_that_is_none_is_the_same_number(over: Job) -> None:
    over, path = over.given("t.parquet", keep_columns=("score",)), over.path("t.parquet")
    for rows in (4, 6):
        scores = [float("nan"), 1.5, None, float("nan"), 2.0, 3.0][:rows]
        pq.write_table(pa.table({"image": [b"cat"] * rows, "score": scores}), path)
        over.run()
    assert over.column("status") == ["ok"] * 6


def test_two_of_three_files_grow(over: Job) -> None:
    over = over.given("a.jsonl", "b.csv", "c.parquet")
    for name in ("a.jsonl", "b.csv", "c.parquet"):
        write(over.path(name), [f"{name[0]}{row}" for row in range(4)])
    over.run()
    before = over.parts
    for name, rows in (("b.csv", 6), ("a.jsonl", 5), ("b.csv", 8)):
        write(over.path(name), [f"{name[0]}{row}" for row in range(rows)])
        if name == "a.jsonl":
            assert over.run() == [12, 13, 14]
    over = over.given("a.jsonl", "b.csv", "c.parquet", "d.jsonl")
    write(over.path("d.jsonl"), ["d0"])
    assert over.run() == [15, 16, 17]
    first = [f"{name}{row}" for name in "abc" for row in range(4)]
    assert over.captions == [*first, "a4", "b4", "b5", "d0", "b6", "b7"]
    assert over.parts.items() >= before.items()
    write(over.path("b.csv"), [*(f"b{row}" for row in range(7)), "yak"])
    with pytest.raises(ChangedInputError, match=r"b\.csv has changed .*row 7: "):
        over.run()
    assert over.run(OnChanged.RECAPTION) == [4, 5, 6, 7, 13, 14, 16, 17]


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_holds_for_added_rows(over: Job, kind: str) -> None:
    over, path = over.given(f"t.{kind}", "u.jsonl"), over.path(f"t.{kind}")
    write(path, FIVE)
    write(over.path("u.jsonl"), ["ant", "bat"])
    assert over.run(limit=4) == [0, 1, 2, 3]
    write(path, SEVEN)
    assert over.run(limit=4) == []
    assert over.run(limit=6) == [4, 5]
    write(over.path("u.jsonl"), ["ant", "bat", "eel"])
    assert over.run(limit=8) == [6, 7]
    assert over.run() == [8, 9]
    assert over.captions == names([*SEVEN, "ant", "bat", "eel"])


def test_with_each_image_of_lists(over: Job) -> None:
    over, path = over.given("t.parquet", images=ImagesOf.EACH, keep_columns=("n",)), over.path("t.parquet")

    def written(*lists: list[str]) -> None:
        images = [[one.encode() for one in images] for images in lists]
        pq.write_table(pa.table({"image": images, "n": list(range(len(lists)))}), path)

    written(["a", "b"], ["c"])
    assert over.run() == [0, 1, 2]
    written(["a", "b"], ["c", "d"], ["e"])
    assert over.run() == [3, 4]
    assert over.captions == ["a", "b", "c", "d", "e"]
    assert over.column("n") == [0, 0, 1, 1, 2]
    written(["a", "b", "x"], ["c", "d"], ["e"])
    with pytest.raises(ChangedInputError, match=r"row 2: its id was t\.parquet:1#0 and is t\.parquet:0#2"):
        over.run()


def test_other_ids_are_a_difference(over: Job) -> None:
    over, path = over.given("t.jsonl", id_column="txt"), over.path("t.jsonl")
    write(path, FIVE)
    over.run()
    write(path, SEVEN, "y")
    with pytest.raises(ChangedInputError, match="row 0: its id was x0 and is y0"):
        over.run()


def test_other_forms_follow(over: Job) -> None:
    outputs = OutputsConfig(also=("txt", "jsonl", "dataset"))
    over = replace(over, config=replace(over.config, outputs=outputs)).given("t.jsonl")
    for contents in (FIVE, SEVEN):
        write(over.path("t.jsonl"), contents)
        over.run()
        files = {path.stem: path.read_text() for path in over.folder.rglob("*.txt")}
        assert sorted(files.values()) == sorted(f"of {one}" for one in contents if one != "bad")
        (lines,) = over.folder.glob("out*.jsonl")
        assert len(lines.read_text().splitlines()) == len(contents) - 1
        (dataset,) = over.folder.rglob("t.jsonl.parquet")
        told_of = [f"of {one}" if one != "bad" else None for one in contents]
        assert pq.read_table(dataset)["caption"].to_pylist() == told_of


def test_rows_that_failed_are_tried_again_only_if_that_is_asked(over: Job) -> None:
    over, path = over.given("t.parquet"), over.path("t.parquet")
    write(path, FIVE)
    over.run()
    mended = ["cat", "dog", "owl", *SEVEN[3:]]
    write(path, mended)
    assert over.run(OnChanged.RECAPTION) == [5, 6], "a table that grows each night would have them tried each night"
    write(path, [*mended[:6], "elk"])
    os.utime(path, (5, 5))
    assert over.run(OnChanged.RECAPTION) == [2]
    assert over.captions == mended


@pytest.mark.parametrize("is_finished", [True, False])
def test_rows_that_never_ended_are_read_as_they_are_now(over: Job, is_finished: bool) -> None:
    over, path = over.given("t.parquet"), over.path("t.parquet")
    write(path, FIVE)
    engine = FakeEngine(room=1, end=told, dies_after=4)
    with pytest.raises(Exception, match="was killed by signal 9"):
        run_job(over.config, SilentProgress(), lambda _config: engine)
    write(path, [*FIVE[:4], "yak", "fox"] if is_finished else ["cat", "gnu", *FIVE[2:]])
    if is_finished:
        assert over.run() == [4, 5]
    else:
        with pytest.raises(ChangedInputError, match="row 1: "):
            over.run()


def test_images_that_are_gone_are_not_compared(over: Job, caplog: pytest.LogCaptureFixture) -> None:
    """They are deleted once they have captions, and the list goes on."""
    over, path = over.given("t.jsonl"), over.path("t.jsonl")
    write(path, FIVE)
    over.run()
    write(path, SEVEN)
    for name in ("cat", "dog"):
        over.path(f"{name}.png").unlink()
    assert over.run() == [5, 6]
    assert "the images of 2 rows of" in caplog.text
    path.write_text(path.read_text().replace('"hen.png"', "null"))
    with pytest.raises(ChangedInputError, match=r"row 3: it has no image now"):
        over.run()


def test_images_that_can_not_be_read_are_compared_by_the_next_run(over: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(row: ImageRow) -> bytes:
        raise RowError(ErrorKind.UNREADABLE, f"{row.id}: Input/output error")

    over, path = over.given("t.jsonl"), over.path("t.jsonl")
    write(path, FIVE)
    over.run()
    write(path, ["yak", *SEVEN[1:]])
    with monkeypatch.context() as disk:
        disk.setattr("batchcap.job.comparison.read_encoded", refuse)
        assert over.run() == [5, 6]
    with pytest.raises(ChangedInputError, match="row 0: "):
        over.run()


def test_a_table_without_rows_may_get_some(over: Job) -> None:
    over = over.given("a.csv", "b.csv")
    write(over.path("a.csv"), [])
    write(over.path("b.csv"), FIVE)
    over.run()
    write(over.path("a.csv"), ["fox"])
    assert over.run() == [5]
    assert over.captions == names([*FIVE, "fox"])


def test_added_rows_want_the_jobs_own_settings(over: Job) -> None:
    over, path = over.given("t.jsonl"), over.path("t.jsonl")
    write(path, FIVE)
    over.run()
    write(path, SEVEN)
    other = replace(over.config.generation, max_new_tokens=77)
    with pytest.raises(UsageError, match="2 rows have never been captioned"):
        replace(over, config=replace(over.config, generation=other)).run(OnChanged.STOP, "failed")
    assert over.run() == [5, 6]


def test_added_values_that_do_not_fit_are_told_before_any_work(over: Job) -> None:
    over, path = over.given("t.jsonl", keep_columns=("n",)), over.path("t.jsonl")
    (over.folder / "cat.png").write_text("cat")
    path.write_text('{"image": "cat.png", "n": 1}\n')
    over.run()
    before = over.parts
    path.write_text('{"image": "cat.png", "n": 1}\n{"image": "cat.png", "n": "two"}\n')
    with pytest.raises(UsageError, match=r"column 'n' is int.* in the parts that this job has written and .*string"):
        over.run()
    assert over.parts == before


def test_a_long_comparison_says_how_far_it_is_and_stops_when_it_is_asked(
    over: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(comparison, "_QUIET_S", 0.0)
    over, path = over.given("t.jsonl"), over.path("t.jsonl")
    write(path, FIVE)
    over.run()
    write(path, SEVEN)
    stop = StopRequest()
    compared: Callable[[ImageRow], bytes] = comparison.read_encoded

    def asked(row: ImageRow) -> bytes:
        stop.ask(ExitCode.INTERRUPTED)
        return compared(row)

    with monkeypatch.context() as patched:
        patched.setattr(comparison, "read_encoded", asked)
        assert over.run(stopping=_Entered(stop)) == []
    assert f"{path} looks different: checking that its captioned rows are the same, 1 of 5" in caplog.text
    with closing(Journal.open(JobFolder(over.folder / "out").journal_path)) as journal:
        assert sum(shard.rows for shard in journal.shards()) == 5
    assert over.run() == [5, 6]


class _Entered:
    """A context that gives a request to stop."""

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop

    def __enter__(self) -> StopRequest:
        return self._stop

    def __exit__(self, *_error: object) -> None:
        pass
