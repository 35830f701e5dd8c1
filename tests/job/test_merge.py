"""The folders of all shards become the folder of the job in one piece, whole or not at all."""

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap.config import InputConfig, JobConfig, LimitConfig, OutputsConfig, PlacementConfig
from batchcap.core.errors import LockedError, StorageError, UsageError
from batchcap.job import merge as merging
from batchcap.job.merge import merge
from batchcap.job.run import run_job
from batchcap.job.summary import Summary
from batchcap.outputs.convert import convert
from batchcap.report.page import write_page
from batchcap.report.status import read_status
from batchcap.store import part_copy, whole_folder
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.lock import job_lock
from tests.fake_engine import FakeEngine, SilentProgress, fake_bundle

SHARDS = 3
TIMES = ("read_ms", "vision_ms", "prefill_ms", "decode_ms")
BUNDLE = fake_bundle()


def run(config: JobConfig) -> Summary:
    return run_job(config, SilentProgress(), lambda _config: FakeEngine(), lambda _model: BUNDLE)  # type: ignore[arg-type,return-value]


def write_inputs(folder: Path) -> None:
    """Two tables of 17 rows together; every fifth row is bad."""
    folder.mkdir()
    for number, rows in enumerate((12, 5)):
        keys = [f"{'bad' if row % 5 == 2 else 'row'}-{number}-{row}" for row in range(rows)]
        content = {"path": ["x.png"] * rows, "key": keys, "n": list(range(rows))}
        pq.write_table(pa.table(content), folder / f"{number}.parquet", row_group_size=4)


@pytest.fixture
def config(tmp_path: Path) -> JobConfig:
    """The job in one piece."""
    write_inputs(tmp_path / "in")
    inputs = tuple(str(tmp_path / f"in/{number}.parquet") for number in range(2))
    given = InputConfig(inputs, id_column="key", keep_columns=("n",))
    return JobConfig(given, str(tmp_path / "whole"), placement=PlacementConfig(rows_per_part=4))


def shard_of(config: JobConfig, number: int, count: int = SHARDS) -> JobConfig:
    given = replace(config.input, shard=f"{number}/{count}")
    return replace(config, input=given, output=str(Path(config.output).with_name(f"shard-{number}")))


def run_shards(config: JobConfig, count: int = SHARDS) -> list[Path]:
    """The folders of complete shards; the last one first."""
    shards = [shard_of(config, number, count) for number in range(count, 0, -1)]
    for one in shards:
        run(one)
    return [Path(one.output) for one in shards]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (
        pa.concat_tables([pq.read_table(path) for path in JobFolder(folder).part_paths()])
        .drop_columns(list(TIMES))
        .to_pylist()
    )
    return rows


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    "choice", [{}, {"where": "n % 2 = 0"}, {"sample": 9, "sample_seed": 4}, {"where": "n > 1", "sample": 2}]
)
def test_merged_shards_are_the_job_in_one_piece(config: JobConfig, tmp_path: Path, choice: dict[str, Any]) -> None:
    config = replace(config, input=replace(config.input, **choice))
    whole = run(config)
    out = tmp_path / "merged"
    said = merge(run_shards(config), out)
    assert rows_of(out) == rows_of(Path(config.output))
    parts = len(JobFolder(out).part_paths())
    assert said == f"{whole.counts.ok} captions, {whole.counts.failed} failed, of 3 shards: {out} ({parts} files)"
    known, content = (json.loads(JobFolder(one).job_path.read_text()) for one in (Path(config.output), out))
    assert content["fingerprint"] == known["fingerprint"]
    assert content["configuration"] == {**known["configuration"], "output": str(out)}
    summary = json.loads(JobFolder(out).summary_path.read_text())
    assert summary["last_success_at"] == summary["ended_at"]
    of_the_run = {"message": "", "ended_at": "", "last_success_at": "", "run": None}
    assert {**summary, **of_the_run} == {
        **json.loads(JobFolder(Path(config.output)).summary_path.read_text()),
        **of_the_run,
    }
    settings = {pq.read_schema(path).metadata[b"batchcap.settings"] for path in JobFolder(out).part_paths()}
    assert [json.loads(one)["shard"] for one in settings] == [None]


def test_a_merged_folder_is_resumed_reported_and_converted_as_any(config: JobConfig, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    merge(run_shards(config), out)
    before = {path.name: path.read_bytes() for path in JobFolder(out).part_paths()}
    merged = replace(config, output=str(out))
    assert run(merged).run is None, "nothing is left to do"
    status = read_status(out)
    assert (status.state, status.total_rows, status.remaining) == ("complete", 17, 0)
    assert write_page(out, None, 5).exists()
    convert(out, [f"jsonl:{tmp_path / 'captions.jsonl'}"], OutputsConfig())
    assert len((tmp_path / "captions.jsonl").read_text().splitlines()) == status.counts.ok
    late = tmp_path / "in/late.parquet"
    pq.write_table(pa.table({"path": ["x.png"] * 2, "key": ["a", "b"], "n": [1, 2]}), late)
    more = replace(merged, input=replace(config.input, inputs=(str(late), *config.input.inputs)))
    assert run(more).counts.rows == 19
    assert [row["id"] for row in rows_of(out)][17:] == ["a", "b"]
    assert {name: (out / name).read_bytes() for name in before} == before


def test_shards_without_a_row_are_complete(config: JobConfig, tmp_path: Path) -> None:
    config = replace(config, input=replace(config.input, where="n = 11"))
    folders = run_shards(config)
    assert [len(JobFolder(one).part_paths()) for one in folders] == [1, 0, 0]
    merge(folders, tmp_path / "merged")
    assert [row["id"] for row in rows_of(tmp_path / "merged")] == ["row-0-11"]
    nothing = replace(config, input=replace(config.input, where="n > 99"), output=str(tmp_path / "none"))
    assert run(nothing).message == f"0 captions, 0 failed: {tmp_path / 'none'}"


def test_what_is_missing_double_or_left_is_named_and_nothing_written(config: JobConfig, tmp_path: Path) -> None:
    third, second, first = run_shards(config)
    shutil.copytree(first, tmp_path / "again")
    run(config)
    out = tmp_path / "merged"
    before = names(tmp_path)

    def refused(match: str, *folders: Path) -> None:
        with pytest.raises(UsageError, match=match):
            merge(folders, out)
        assert names(tmp_path) == before

    refused("there is no folder of 1/3, 3/3", second)
    refused("more than one folder of shard 1/3; there is no folder of 2/3", first, tmp_path / "again", third)
    refused("is no shard of a job", first, second, third, Path(config.output))
    for path in JobFolder(second).part_paths():
        path.unlink()
    refused(r"shard-2 \(shard 2/3\) has 6 of 6 rows left: run", first, second, third)
    shutil.rmtree(second)
    run(replace(shard_of(config, 2), limits=LimitConfig(limit=2)))
    refused(r"shard-2 \(shard 2/3\) has 4 of 6 rows left: run", first, second, third)
    run(shard_of(config, 2))
    merge([first, second, third], out)
    before = names(tmp_path)
    refused("is there already", first, second, third)


def test_shards_of_other_jobs_are_refused(config: JobConfig, tmp_path: Path) -> None:
    third, second, first = run_shards(config)
    out = tmp_path / "merged"
    shutil.rmtree(third)
    prompt = replace(config, generation=replace(config.generation, prompt="Other?"))
    run(shard_of(prompt, 3))
    with pytest.raises(UsageError, match="are not of one job: --prompt differs"):
        merge([first, second, third], out)
    shutil.rmtree(third)
    run(shard_of(config, 3, 4))
    with pytest.raises(UsageError, match="are not of one job: the number of shards differs"):
        merge([first, second, third], out)
    shutil.rmtree(third)
    fewer = replace(config, input=replace(config.input, inputs=config.input.inputs[:1]))
    run(shard_of(fewer, 3))
    with pytest.raises(UsageError, match="begun with other inputs"):
        merge([first, second, third], out)
    assert not out.exists()


def test_shards_cut_from_other_rows_are_refused(config: JobConfig, tmp_path: Path) -> None:
    """The numbers of rows are the same, and what the condition found is not."""
    config = replace(config, input=replace(config.input, where="n < 6"))
    third, second, first = run_shards(config)
    shutil.rmtree(third)
    path = tmp_path / "in/1.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(2, "n", pa.array([0, 9, 9, 9, 9])), path)
    run(shard_of(config, 3))
    with pytest.raises(UsageError, match="were cut from other rows"):
        merge([first, second, third], tmp_path / "merged")


def test_columns_of_other_types_are_refused_with_the_reason(config: JobConfig, tmp_path: Path) -> None:
    third, second, first = run_shards(config)
    shutil.rmtree(third)
    for path in map(Path, config.input.inputs):
        table = pq.read_table(path)
        pq.write_table(table.set_column(2, "n", table["n"].cast(pa.string())), path)
    run(shard_of(config, 3))
    with pytest.raises(UsageError, match="n is int64 and string"):
        merge([first, second, third], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_shard_at_work_is_waited_for(config: JobConfig, tmp_path: Path) -> None:
    folders = run_shards(config)
    with job_lock(JobFolder(folders[0])), pytest.raises(LockedError):
        merge(folders, tmp_path / "merged")
    merge(folders, tmp_path / "merged")
    assert read_status(folders[0]).state == "complete", "merging leaves no mark of a killed run"


STEPS: dict[str, tuple[Any, str]] = {
    "job file": (merging, "write_job_file"),
    "plan": (merging, "write_merged_plan"),
    "part": (merging, "copy_part"),
    "summary": (merging, "write_atomic"),
    "rename": (whole_folder, "sync"),
}


class _KilledError(BaseException):
    """What nothing catches."""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_a_crash_leaves_nothing_or_the_whole(
    config: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, *, after: bool
) -> None:
    run(config)
    folders = run_shards(config)
    before, out = names(tmp_path), tmp_path / "merged"
    module, name = STEPS[step]
    real: Callable[..., Any] = getattr(module, name)

    def crash(*given: Any, **named: Any) -> None:
        if after:
            real(*given, **named)
        raise _KilledError

    def keep(*_given: Any, **_named: Any) -> None:
        """A killed process clears nothing away."""

    with monkeypatch.context() as patch:
        patch.setattr(module, name, crash)
        patch.setattr(whole_folder.shutil, "rmtree", keep)
        with pytest.raises(_KilledError):
            merge(folders, out)
    assert names(tmp_path) <= before | {".merged.merging"}
    merge(folders, out)
    assert names(tmp_path) == before | {"merged"}
    assert rows_of(out) == rows_of(Path(config.output))


def test_a_disk_that_is_full_leaves_nothing(config: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = run_shards(config)
    before = names(tmp_path)

    def full(*_given: Any, **_named: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(part_copy.pq.ParquetWriter, "write_table", full)
    with pytest.raises(StorageError, match="the disk is full"):
        merge(folders, tmp_path / "merged")
    assert names(tmp_path) == before


def test_the_plan_of_a_merged_folder_is_that_of_the_job_in_one_piece(config: JobConfig, tmp_path: Path) -> None:
    config = replace(config, input=replace(config.input, where="n <> 3"))
    run(config)
    merge(run_shards(config), tmp_path / "merged")

    def stretches(folder: Path, table: str) -> list[tuple[int, int]]:
        with closing(Journal.open_to_read(JobFolder(folder).journal_path)) as journal:
            found = journal.query(f"SELECT source, start, rows FROM {table} ORDER BY first_row")
            return [(source, start + row) for source, start, rows in found for row in range(rows)]

    for table in ("spans", "chosen"):
        assert stretches(tmp_path / "merged", table) == stretches(Path(config.output), table)
