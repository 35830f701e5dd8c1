"""Which rows of the inputs are rows of a job: those of a condition, a sample, a shard and a limit, in this order."""

import logging
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcap.config import InputConfig, JobConfig
from batchcap.core.errors import UsageError
from batchcap.core.records import Shard
from batchcap.core.setting import SettingsError
from batchcap.core.sources import Source
from batchcap.inputs.files import ImageFiles
from batchcap.inputs.parquet import ParquetFiles
from batchcap.job.choice import choose_rows, drawn
from batchcap.job.plan import Plan
from batchcap.job.run import run_job
from batchcap.store.chosen_rows import ChosenRows
from batchcap.store.journal import Journal
from batchcap.store.schema import migrate
from tests.fake_engine import FakeEngine, SilentProgress, fake_bundle

Place = tuple[str, int]


def image(path: Path) -> Source:
    return Source(path.name, path, ImageFiles.kind, 1)


def table(path: Path, rows: int) -> Source:
    """A table whose column `n` counts its rows, and whose `word` is null in every third one."""
    if not path.exists():
        words = [None if row % 3 == 0 else f"w{row}" for row in range(rows)]
        columns = {"path": ["x.png"] * rows, "n": range(rows), "word": pa.array(words, pa.string())}
        pq.write_table(pa.table({**columns, "n": pa.array(range(rows))}), path, row_group_size=3)
    return Source(path.name, path, ParquetFiles.kind, rows)


@contextmanager
def opened(folder: Path, config: InputConfig) -> Iterator[Plan]:
    folder.mkdir(exist_ok=True)
    with closing(Journal.open(folder / "journal.sqlite")) as journal:
        yield Plan(journal, config)


def places(plan: Plan) -> list[Place]:
    rows = [row for shard in plan.shards() for row in plan.shard_rows(shard)]
    assert [row.index for row in rows] == list(range(plan.total_rows))
    return [(Path(row.source).name, row.row) for row in rows]


def chosen(folder: Path, sources: list[Source], config: InputConfig, limits: tuple[int, ...] = (0,)) -> list[Place]:
    """The rows that a job plans, run by run."""
    for limit in limits:
        with opened(folder, config) as plan:
            plan.extend(sources, 2, limit)
            found = places(plan)
            assert not limit or len(found) <= limit
    return found


SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=5)


@settings(max_examples=3, deadline=None)
@given(
    SIZES,
    st.sampled_from([None, "n % 2 = 0", "word IS NULL OR n = 1", "n > 100"]),
    st.integers(0, 12),
    st.integers(1, 5),
    st.integers(0, 4),
)
def test_shards_are_the_whole_whatever_else_is_chosen(
    sizes: list[int], where: str | None, sample: int, count: int, limit: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = [
            table(folder / f"{number}.parquet", rows) if rows or where else image(folder / f"{number}.png")
            for number, rows in enumerate(sizes)
        ]
        everything = chosen(folder / "all", sources, InputConfig(("x",)))
        config = InputConfig(("x",), where=where, sample=sample, sample_seed=3)
        whole = chosen(folder / "whole", sources, config)
        matching = chosen(folder / "matching", sources, replace(config, sample=0))
        assert len(whole) == (min(sample, len(matching)) if sample else len(matching))
        assert [place for place in everything if place in set(whole)] == whole
        assert set(whole) <= set(matching)
        shards = [
            # A limit comes last, and lets in the rest when it is lifted.
            chosen(folder / f"{number}", sources, replace(config, shard=f"{number}/{count}"), (limit, 0))
            for number in range(1, count + 1)
        ]
        assert [place for shard in shards for place in shard] == whole
        assert max(map(len, shards)) - min(map(len, shards)) <= 1


def picked(sizes: list[int], config: InputConfig) -> list[Place]:
    """The rows that are chosen among sources of some sizes."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, Path("journal"))
        connection.executemany(
            "INSERT INTO sources VALUES (?, ?, ?, 'parquet', ?, 0, 0)",
            ((number, str(number), str(number), rows) for number, rows in enumerate(sizes)),
        )
        choose_rows(ChosenRows(connection), 0, {}, config)
        found = connection.execute("SELECT source, start, rows, first_row FROM chosen ORDER BY first_row").fetchall()
    ends = [first + rows for *_where, rows, first in found]
    assert [first for *_where, first in found] == [0, *ends][: len(found)], "the stretches lie end to end"
    return [(str(source), start + row) for source, start, rows, _first in found for row in range(rows)]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=12), st.integers(0, 60), st.integers(0, 3), st.integers(1, 9))
def test_any_choice_splits_the_rows_and_loses_none(sizes: list[int], sample: int, seed: int, count: int) -> None:
    everything = [(str(number), row) for number, rows in enumerate(sizes) for row in range(rows)]
    config = InputConfig(("x",), sample=sample, sample_seed=seed)
    whole = picked(sizes, config)
    assert whole == [place for place in everything if place in set(whole)]
    assert len(whole) == (min(sample, len(everything)) if sample else len(everything))
    shards = [picked(sizes, replace(config, shard=f"{number}/{count}")) for number in range(1, count + 1)]
    assert [place for shard in shards for place in shard] == whole
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_a_sample_is_the_same_in_every_run_and_another_for_another_seed() -> None:
    first = drawn(1000, 100, 7).tolist()
    assert first == drawn(1000, 100, 7).tolist() == sorted(set(first))
    assert len(first) == 100
    others = [set(drawn(1000, 100, seed).tolist()) for seed in range(8, 28)]
    shared = [len(other & set(first)) for other in others]
    assert max(shared) < 30, "samples of different seeds are not independent"
    assert abs(sum(first) / 100 - 500) < 100, "a sample is not spread over the rows"
    shifted = [len({place + by for place in first} & other) for other in others for by in (-1, 1)]
    assert max(shifted) < 30, "a seed shifts the sample of its neighbour"


def test_a_sample_is_drawn_piece_by_piece_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = drawn(5000, 7, 1).tolist()
    monkeypatch.setattr("batchcap.job.choice._RANKED_ROWS", 13)
    assert drawn(5000, 7, 1).tolist() == whole


def test_the_sample_of_today_is_that_of_tomorrow() -> None:
    """A new version that drew others would end no job, but shards begun with both would not fit together."""
    assert drawn(100, 8, 0).tolist() == [11, 29, 34, 38, 47, 62, 70, 98]


def test_what_comes_later_is_chosen_by_a_condition_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    early, late = table(tmp_path / "b.parquet", 6), table(tmp_path / "a.parquet", 4)
    by_condition = InputConfig(("x",), where="n >= 2")
    with opened(tmp_path / "where", by_condition) as plan:
        assert plan.extend([early], 3, 0) == 4
        assert plan.extend([late, early], 3, 0) == 2
        assert places(plan)[4:] == [("a.parquet", 2), ("a.parquet", 3)]
        assert plan.shards() == [Shard(0, 0, 3), Shard(1, 3, 1), Shard(2, 4, 2)]
    caplog.set_level(logging.INFO)
    for number, config in enumerate((InputConfig(("x",), sample=20), InputConfig(("x",), where="n > 0", shard="1/2"))):
        with opened(tmp_path / str(number), config) as plan:
            plan.extend([early], 3, 0)
            before = places(plan)
            caplog.clear()
            assert plan.extend([late, early], 3, 0) == 0
            assert places(plan) == before
            assert [one.getMessage() for one in caplog.records] == [
                "1 inputs are new and not part of this job: its rows were chosen when it began (--sample, --shard)"
            ]


def test_rows_that_a_table_gets_later_are_chosen_by_a_condition_only(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for number, (config, more) in enumerate(
        [(InputConfig(("x",), where="n % 2 = 1"), 3), (InputConfig(("x",), shard="1/1"), 0)]
    ):
        path.unlink(missing_ok=True)
        early = table(path, 4)
        with opened(tmp_path / str(number), config) as plan:
            plan.extend([early], 3, 0)
            before = places(plan)
        path.unlink()
        late = table(path, 10)
        for _run in range(2):
            with opened(tmp_path / str(number), config) as plan:
                plan.extend([late], 3, 0)
                plan.accept(list(plan.changed()))
                found = places(plan)
        assert found[: len(before)] == before
        assert found[len(before) :] == [("a.parquet", row) for row in (5, 7, 9)[:more]]


def test_a_plan_that_fails_keeps_nothing(tmp_path: Path) -> None:
    good, bad = table(tmp_path / "a.parquet", 5), tmp_path / "b.parquet"
    pq.write_table(pa.table({"path": ["x.png"], "n": ["one"]}), bad)
    source = Source("b.parquet", bad, ParquetFiles.kind, 1)
    with opened(tmp_path / "out", InputConfig(("x",), where="CAST(n AS INT) > 1")) as plan:
        with pytest.raises(UsageError, match="Could not convert string 'one'"):
            plan.extend([good, source], 2, 0)
        assert plan.total_rows == 0
        assert plan.extend([good], 2, 0) == 3


@pytest.mark.parametrize(
    "shard", ["", "0/3", "4/3", "1", "1/0", "a/b", "1/3/5", "-1/3", "1 / 3", "01/3", "\u0661/\u0663"]
)
def test_a_shard_that_is_none_is_refused(shard: str) -> None:
    with pytest.raises(SettingsError, match="--shard must be I/N"):
        InputConfig(("x",), shard=shard)


def test_a_condition_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", 3)
    given = InputConfig((str(tmp_path / "a.parquet"),), where="nope = 1")
    config = JobConfig(given, str(tmp_path / "out"), "bundle")
    engine = FakeEngine()
    with pytest.raises(UsageError, match=r'Referenced column "nope" not found.*a\.parquet has n, word'):
        run_job(config, SilentProgress(), lambda _config: engine, lambda _model: fake_bundle())  # type: ignore[arg-type,return-value]
    assert not (tmp_path / "out").exists()
    assert engine.submitted == []
