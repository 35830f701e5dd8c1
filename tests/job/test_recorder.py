"""A row's way to disk: out of order in, whole parts out, durable before it is counted."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap.config import InputConfig
from batchcap.core.errors import StorageError
from batchcap.core.records import CaptionRow, Duplicate, ImageFacts, ImageRow, Outcome, Shard, Status, Verdict
from batchcap.inputs.discover import discover
from batchcap.job import recorder as recorder_module
from batchcap.job.open_shards import OpenShards
from batchcap.job.output_rows import caption_row
from batchcap.job.part_writer import PartWriter
from batchcap.job.plan import Plan
from batchcap.job.recorder import Recorder
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.parts import UNNAMED, column_name
from tests.fake_engine import outcome_of, request_of

ROWS, ROWS_PER_PART = 10, 4


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    pq.write_table(pa.table({"path": ["x"] * ROWS, "label": list(range(ROWS))}), tmp_path / "in.parquet")
    return JobFolder.open_or_create(tmp_path / "out")


@pytest.fixture
def journal(folder: JobFolder) -> Iterator[Journal]:
    with closing(Journal.open(folder.journal_path)) as opened:
        yield opened


class Recording(Recorder):
    """A recorder with the shards and the part writer of its job."""

    def __init__(self, folder: JobFolder, plan: Plan, journal: Journal, prompts: tuple[str, ...]) -> None:
        self.shards = OpenShards(folder, plan, journal)
        parts = PartWriter(folder, plan, journal, {"batchcap.bundle": "b"}, prompts)
        super().__init__(folder, journal, self.shards, parts)


def make(folder: JobFolder, journal: Journal, prompts: tuple[str, ...] = UNNAMED) -> Recording:
    config = InputConfig((str(folder.path.parent / "in.parquet"),), keep_columns=("label",))
    plan = Plan(journal, config, prompts)
    plan.extend(discover(config, folder.path), ROWS_PER_PART, 0)
    return Recording(folder, plan, journal, prompts)


def row_of(outcome: Outcome) -> CaptionRow:
    assert not isinstance(outcome.result, Duplicate)
    return caption_row(outcome.row, outcome.result, outcome.facts)


def test_the_row_of_a_caption_and_of_a_failure(folder: JobFolder, journal: Journal) -> None:
    row = next(make(folder, journal).shards.rows_to_do())
    found = row_of(outcome_of(row))
    assert (found.id, found.caption, found.status, found.verdict) == (row.id, f"of {row.id}", Status.OK, Verdict.OK)
    assert (found.width, found.height, found.read_ms, found.vision_ms) == (64, 48, 1.0, 2.0)
    assert (found.new_tokens, found.prompt_tokens, found.visual_tokens) == (3, 9, 4)
    failed = row_of(outcome_of(type(row)(0, "bad", "s", 0)))
    assert (failed.status, failed.caption, failed.verdict, failed.error_message) == (Status.FAILED, None, None, "cut")
    assert failed.width is None


def test_thinking_survives_a_restart(folder: JobFolder, journal: Journal) -> None:
    first, *others = list(make(folder, journal).shards.rows_to_do())[:ROWS_PER_PART]
    outcome = outcome_of(first)
    assert isinstance(outcome.result, tuple)
    thoughtful = replace(outcome, result=(replace(outcome.result[0], thinking="It is\na cat."),))
    recorder = make(folder, journal)
    recorder.record([thoughtful])
    recorder.flush()
    recorder = make(folder, journal)
    recorder.record([outcome_of(row) for row in others])
    recorder.flush()
    table = pq.read_table(folder.part_path(0))
    assert table["thinking"].to_pylist() == ["It is\na cat.", *[None] * len(others)]
    assert table["caption"][0].as_py() == f"of {first.id}"


def test_a_part_appears_when_its_last_row_is_there(folder: JobFolder, journal: Journal) -> None:
    recorder = make(folder, journal)
    rows = list(recorder.shards.rows_to_do())
    for row in [rows[9], rows[7], rows[2], rows[0], rows[3]]:
        recorder.record([outcome_of(row)])
    recorder.flush()
    assert folder.part_paths() == []
    assert recorder.counts.rows == 5
    recorder.record([outcome_of(rows[1])])
    recorder.flush()
    assert folder.part_paths() == [folder.part_path(0)]
    table = pq.read_table(folder.part_path(0))
    assert table["row"].to_pylist() == table["label"].to_pylist() == [0, 1, 2, 3]
    assert [index for shard in journal.shards() for index, _row in journal.rows(shard)] == [7, 9]

    again = make(folder, journal)
    assert again.counts.rows == 6
    assert [row.index for row in again.shards.rows_to_do()] == [4, 5, 6, 8]


def test_rows_count_when_they_are_durable(folder: JobFolder, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "FLUSH_ROWS", 3)
    monkeypatch.setattr(recorder_module, "FLUSH_INTERVAL_S", 1e9)
    recorder = make(folder, journal)
    rows = list(recorder.shards.rows_to_do())
    counted = []
    for row in rows[:7]:
        recorder.record([outcome_of(row)])
        durable = sum(len(journal.rows(shard)) for shard in journal.shards()) + 4 * len(folder.part_paths())
        assert recorder.counts.rows == durable
        counted.append(durable)
    assert counted == [0, 0, 3, 3, 3, 6, 6]
    assert (recorder.run.rows, recorder.run.images, recorder.run.tokens) == (6, 6, 18)


def test_rows_that_wait_too_long_are_made_durable(
    folder: JobFolder, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "FLUSH_INTERVAL_S", 0.0)
    recorder = make(folder, journal)
    recorder.record([outcome_of(next(recorder.shards.rows_to_do()))])
    assert recorder.counts.rows == 1


def test_shards_whose_rows_are_all_journalled_become_parts(folder: JobFolder, journal: Journal) -> None:
    recorder = make(folder, journal)
    journal.add([(row.index, row_of(outcome_of(row))) for row in recorder.shards.rows_to_do()])
    again = make(folder, journal)
    assert list(again.shards.rows_to_do()) == []
    again.write_whole_parts()
    assert [pq.read_metadata(path).num_rows for path in folder.part_paths()] == [4, 4, 2]
    assert again.counts.rows == ROWS


def twin_of(row: ImageRow, of: int) -> Outcome:
    return Outcome(request_of(row), Duplicate(row.index, of, 0.25))


def further(outcome: Outcome) -> Outcome:
    """The same outcome with the answer to a second prompt."""
    assert isinstance(outcome.result, tuple)
    (caption,) = outcome.result
    return replace(outcome, result=(caption, replace(caption, text="short", token_ids=(1,), prompt=1)))


@pytest.mark.parametrize("prompts", [("",), ("long", "short")])
def test_a_twin_is_the_same_row_wherever_the_first_is_by_now(
    folder: JobFolder, journal: Journal, monkeypatch: pytest.MonkeyPatch, prompts: tuple[str, ...]
) -> None:
    monkeypatch.setattr(recorder_module, "FLUSH_INTERVAL_S", 1e9)
    answer = further if len(prompts) == 2 else lambda outcome: outcome
    recorder = make(folder, journal, prompts)
    rows = list(recorder.shards.rows_to_do())
    recorder.record([answer(outcome_of(rows[0])), twin_of(rows[1], 0)])  # in the buffer
    recorder.flush()
    assert recorder.run.duplicates == 1
    recorder.record([twin_of(rows[2], 0), answer(outcome_of(rows[3]))])  # in the journal
    recorder.flush()
    assert folder.part_paths() == [folder.part_path(0)]
    again = make(folder, journal, prompts)  # nothing in memory: it is in the part
    again.record([twin_of(row, row.index % 3) for row in rows[4:]])
    again.flush()
    assert again.run.rows == again.run.duplicates == 6
    assert again.run.tokens == 0, "no token was written for them"
    assert again.counts.new_tokens == ROWS * sum((3, 1)[: len(prompts)])

    table = pa.concat_tables([pq.read_table(path) for path in folder.part_paths()]).to_pylist()
    assert [row["row"] for row in table] == list(range(ROWS))
    assert [row["id"] for row in table] == [row.id for row in rows]
    expected = dict.fromkeys(range(ROWS), f"of {rows[0].id}") | {3: f"of {rows[3].id}"}
    names = {name: column_name("caption", name) for name in prompts}
    assert {index: row[names[prompts[0]]] for index, row in enumerate(table)} == expected
    if len(prompts) == 2:
        assert {row["caption_short"] for row in table} == {"short"}
    for index, row in enumerate(table):
        is_first = index in (0, 3)
        assert (row["width"], row["image_sha256"], row["visual_tokens"]) == (64, "0" * 64, 4)
        assert (row["read_ms"], row["vision_ms"]) == ((1.0, 2.0) if is_first else (0.25, None))
        for name in prompts:
            assert row[column_name("prefill_ms", name)] == (3.0 if is_first else None)
            assert row[column_name("decode_ms", name)] == (5.0 if is_first else None)


def test_a_twin_of_a_failure_fails(folder: JobFolder, journal: Journal) -> None:
    recorder = make(folder, journal)
    rows = list(recorder.shards.rows_to_do())
    bad = replace(rows[0], id="bad")
    recorder.record([Outcome(request_of(rows[0]), outcome_of(bad).result), twin_of(rows[1], 0)])
    recorder.flush()
    ((_first, one), (_second, two)) = journal.rows(journal.shards()[0])
    assert (two.status, two.error_kind, two.error_message) == (Status.FAILED, one.error_kind, one.error_message)
    assert recorder.counts.failed == 2


def test_images_of_earlier_runs(folder: JobFolder, journal: Journal) -> None:
    recorder = make(folder, journal)
    rows = list(recorder.shards.rows_to_do())
    assert recorder.shards.captioned_images(9) == []

    def outcome(index: int) -> Outcome:
        given = outcome_of(rows[index] if index not in (2, 5) else replace(rows[index], id="bad"))
        facts = ImageFacts(64, 48, f"{index:064x}", 1.0, 2.0)
        return Outcome(request_of(rows[index]), given.result, facts)

    recorder.record([outcome(index) for index in (0, 1, 2, 3, 5, 6, 9)])
    recorder.flush()
    again = make(folder, journal)
    done = [0, 1, 3, 6, 9]  # in the first part, in the journal of two shards; a copy of a failure is tried anew
    for most in range(len(done) + 2):
        expected = done[len(done) - min(most, len(done)) :]
        assert again.shards.captioned_images(most) == [(f"{index:064x}", index) for index in expected]


def test_a_part_that_has_gone_while_the_job_ran(folder: JobFolder, journal: Journal) -> None:
    recorder = make(folder, journal)
    rows = list(recorder.shards.rows_to_do())
    recorder.record([outcome_of(row) for row in rows[:4]])
    recorder.flush()
    folder.part_path(0).write_bytes(b"torn")
    with pytest.raises(StorageError, match=r"part-00000.parquet is damaged .*delete it"):
        recorder.record([twin_of(rows[4], 0)])


def test_a_kill_between_part_and_journal_doubles_nothing(
    folder: JobFolder, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Stands for the process's end."""

    def killed(_journal: Journal, _shard: Shard) -> None:
        raise Killed

    recorder = make(folder, journal)
    rows = list(recorder.shards.rows_to_do())
    recorder.record([outcome_of(row) for row in rows[:5]])
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "forget", killed)
        with pytest.raises(Killed):
            recorder.flush()
    assert folder.part_paths() == [folder.part_path(0)]
    first = journal.shards()[0]
    assert len(journal.done_indexes(first)) == ROWS_PER_PART  # in both places now
    written = folder.part_path(0).read_bytes()

    again = make(folder, journal)
    again.write_whole_parts()
    assert again.counts.rows == 5
    assert [row.index for row in again.shards.rows_to_do()] == [5, 6, 7, 8, 9]
    assert journal.done_indexes(first) == set()
    assert folder.part_path(0).read_bytes() == written
