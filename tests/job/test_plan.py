"""The plan: rows in are rows out, and what is planned once never moves."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcap.config import InputConfig
from batchcap.core.errors import UsageError
from batchcap.core.records import ImageRow, Shard
from batchcap.core.sources import Source
from batchcap.inputs.discover import discover
from batchcap.inputs.files import ImageFiles
from batchcap.inputs.parquet import ParquetFiles
from batchcap.job.plan import Plan
from batchcap.store.journal import Journal
from batchcap.store.plan_tables import ChangedSource
from tests.inputs.parquets import path_of, write_table

Place = tuple[str, int]


def image(name: str, mtime_ns: int = 0) -> Source:
    return Source(name, Path("/in") / name, ImageFiles.kind, 1, 10, mtime_ns)


def table_source(path: Path, rows: int) -> Source:
    if not path.exists():
        write_table(path, {"path": [f"{row}.png" for row in range(rows)]}, row_group_size=3)
    return Source(path.name, path, ParquetFiles.kind, rows, path.stat().st_size, path.stat().st_mtime_ns)


@contextmanager
def opened(folder: Path, config: InputConfig | None = None) -> Iterator[Plan]:
    with closing(Journal.open(folder / "journal.sqlite")) as journal:
        yield Plan(journal, config or InputConfig(("x",)))


def all_rows(plan: Plan) -> list[ImageRow]:
    return [row for shard in plan.shards() for row in plan.shard_rows(shard)]


def places(plan: Plan) -> list[Place]:
    return [(row.source, row.row) for row in all_rows(plan)]


def _spans(changed: ChangedSource) -> list[tuple[int, int]]:
    return [(piece.first_row, piece.rows) for piece in changed.pieces]


# A source is a name and its rows: 0 stands for an image, more for a Parquet file of so many rows and one.
NAMED = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9)), max_size=10, unique_by=lambda pair: pair[0])
RUN = st.tuples(NAMED, st.integers(1, 5), st.integers(0, 40))


@settings(max_examples=60, deadline=None)
@given(st.lists(RUN, min_size=1, max_size=4))
def test_rows_keep_their_place_whatever_is_added_or_vanishes(
    runs: list[tuple[list[tuple[int, int]], int, int]],
) -> None:
    sizes: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before: list[Place] = []
        shards: list[Shard] = []
        for named, rows_per_part, limit in runs:
            sources = []
            for number, size in named:
                rows = sizes.setdefault(number, size)
                sources.append(table_source(folder / f"{number}.parquet", rows - 1) if rows else image(f"{number}.png"))
            with opened(folder) as plan:
                added = plan.extend(sources, rows_per_part, limit)
                now = places(plan)
                assert now[: len(before)] == before
                assert plan.shards()[: len(shards)] == shards
                assert len(now) == len(set(now)) == plan.total_rows == len(before) + added
                assert [row.index for row in all_rows(plan)] == list(range(len(now)))
                assert len({row.id for row in all_rows(plan)}) == len(now)
                expected = {(str(source.path), row) for source in sources for row in range(source.rows)}
                assert not limit or len(now) <= max(limit, len(before))
                if not limit:
                    assert expected <= set(now)
                assert all(1 <= shard.rows <= rows_per_part for shard in plan.shards()[len(shards) :])
                before, shards = now, plan.shards()


def test_new_sources_come_after_the_old_ones(tmp_path: Path) -> None:
    with opened(tmp_path) as plan:
        assert plan.extend([image("b.png"), image("d.png"), image("e.png")], 2, 0) == 3
        names = ("a.png", "b.png", "c.png", "d.png", "e.png")
        assert plan.extend([image(name) for name in names], 2, 0) == 2
        assert [row.id for row in all_rows(plan)] == ["b.png", "d.png", "e.png", "a.png", "c.png"]
        assert plan.shards() == [Shard(0, 0, 2), Shard(1, 2, 1), Shard(2, 3, 2)]


def test_a_file_that_comes_twice_counts_once(tmp_path: Path) -> None:
    table = table_source(tmp_path / "t.parquet", 3)
    with opened(tmp_path) as plan:
        assert plan.extend([image("b.png"), table, image("a.png"), image("b.png"), table], 4, 0) == 5
        assert [row.id for row in all_rows(plan)] == ["b.png", *(f"t.parquet:{row}" for row in range(3)), "a.png"]


def test_a_clash_of_names_falls_back_to_the_whole_path(tmp_path: Path) -> None:
    one, two = (Source("x.png", Path(f"/{name}/x.png"), ImageFiles.kind, 1) for name in ("one", "two"))
    with opened(tmp_path) as plan:
        plan.extend([one, two], 4, 0)
        assert [row.id for row in all_rows(plan)] == ["x.png", "/two/x.png"]


def test_the_rows_of_a_late_shard_cost_no_more_than_those_of_an_early_one(tmp_path: Path) -> None:
    """Or a job of a million files would look at each of them a thousand times."""
    with opened(tmp_path) as plan:
        plan.extend([image(f"{number:05d}.png") for number in range(4000)], 10, 0)
        steps = 0

        def count() -> None:
            nonlocal steps
            steps += 1

        costs = []
        shards = plan.shards()
        plan._journal._connection.set_progress_handler(count, 1)
        for shard in (shards[1], shards[-1]):
            steps = 0
            assert len(list(plan.shard_rows(shard))) == 10
            costs.append(steps)
    assert costs[1] < 2 * costs[0]


def test_a_larger_limit_goes_on_inside_a_source(tmp_path: Path) -> None:
    source = table_source(tmp_path / "a.parquet", 10)
    with opened(tmp_path) as plan:
        assert plan.extend([source], 4, 5) == 5
        assert plan.extend([source], 4, 3) == 0
        assert plan.extend([source, image("b.png")], 4, 8) == 3
        assert plan.extend([source, image("b.png")], 4, 0) == 3
        assert [row.id for row in all_rows(plan)] == [*(f"a.parquet:{row}" for row in range(10)), "b.png"]


def test_what_looks_otherwise_keeps_its_rows_and_is_told_until_it_is_accepted(tmp_path: Path) -> None:
    table = table_source(tmp_path / "a.parquet", 3)
    now = [image("a.png", mtime_ns=9), replace(table, mtime_ns=7), image("b.png", mtime_ns=2), image("new.png")]
    with opened(tmp_path) as plan:
        plan.extend([image("a.png"), table, image("b.png", mtime_ns=2)], 2, 2)
        assert plan.extend(now[:3], 2, 0) == 3
        changed = list(plan.changed())
        assert [(one.path, one.kind, _spans(one)) for one in changed] == [
            (b"/in/a.png", ImageFiles.kind, [(0, 1)]),
            (os.fsencode(table.path), ParquetFiles.kind, [(1, 1), (2, 2)]),
        ]
        plan.accept(changed[:1])
    with opened(tmp_path) as plan:
        assert plan.extend(now, 2, 0) == 1
        assert [one.kind for one in plan.changed()] == [ParquetFiles.kind]


def test_what_can_not_be_looked_at_is_not_said_to_have_changed(tmp_path: Path) -> None:
    with opened(tmp_path) as plan:
        plan.extend([image("a.png", mtime_ns=5)], 4, 0)
        plan.extend([replace(image("a.png"), size_bytes=0)], 4, 0)
        assert list(plan.changed()) == []


def test_rows_that_a_source_got_come_after_all_others_once_they_are_accepted(tmp_path: Path) -> None:
    one, two, three = (table_source(tmp_path / f"{name}.parquet", 3) for name in "abc")
    rows = [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("b", 2), ("c", 0), ("c", 1), ("c", 2)]
    with opened(tmp_path) as plan:
        plan.extend([one, two, three], 4, 0)
    more = []
    for source in (one, two):
        source.path.unlink()
        more.append(table_source(source.path, 5))
    for limit, planned in ((10, 10), (11, 11), (0, 14)):
        with opened(tmp_path) as plan:
            plan.extend([*more, three, image("d.png")], 4, limit)
            plan.accept(list(plan.changed()))
            assert plan.total_rows == planned
    expected = [*rows, ("d", 0), ("a", 3), ("a", 4), ("b", 3), ("b", 4)]
    with opened(tmp_path) as plan:
        plan.extend([*more, three, image("d.png")], 4, 0)
        assert [(Path(source).stem, row) for source, row in places(plan)] == expected
        assert list(plan.changed()) == []
        assert plan.shards()[3:] == [Shard(3, 9, 1), Shard(4, 10, 1), Shard(5, 11, 3)]


def test_a_parquet_file_that_vanished_is_named_when_its_rows_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with opened(tmp_path) as plan:
        plan.extend([table_source(path, 3)], 4, 0)
    path.unlink()
    with opened(tmp_path) as plan:
        assert plan.extend([image("b.png")], 4, 0) == 1
        with pytest.raises(UsageError, match=r"a\.parquet is missing"):
            all_rows(plan)


def test_ids_of_later_runs_do_not_clash(tmp_path: Path) -> None:
    with opened(tmp_path) as plan:
        plan.extend([image("a.png")], 4, 0)
        other = Source("a.png", Path("/other/a.png"), ImageFiles.kind, 1, 1, 1)
        third = Source("a.png", Path("/third/a.png"), ImageFiles.kind, 1, 1, 1)
        plan.extend([image("a.png"), other, third], 4, 0)
        assert [row.id for row in all_rows(plan)] == ["a.png", "/other/a.png", "/third/a.png"]


def test_a_path_that_is_not_text_has_a_printable_source(tmp_path: Path) -> None:
    source = Source("x", Path("/in/caf\udce9.png"), ImageFiles.kind, 1, 1, 1)
    with opened(tmp_path) as plan:
        plan.extend([source], 4, 0)
        (row,) = all_rows(plan)
    assert row.source == "file:///in/caf%E9.png"
    assert path_of(row) == "/in/caf\udce9.png"


def test_files_that_are_skipped_today_keep_the_rows_that_a_job_has_planned(tmp_path: Path) -> None:
    (tmp_path / "in/_temporary").mkdir(parents=True)
    (tmp_path / "in/job/_batchcap").mkdir(parents=True)
    old = [table_source(tmp_path / "in" / name, 4) for name in ("_temporary/a.parquet", "b.parquet", "job/c.parquet")]
    with opened(tmp_path) as plan:
        plan.extend(old, 3, 0)
        before = places(plan)
        assert len(before) == 12
    (tmp_path / "in/d.png").touch()
    with opened(tmp_path) as plan:
        found = list(discover(InputConfig((str(tmp_path / "in"),)), tmp_path / "out"))
        assert [source.id for source in found] == ["b.parquet", "d.png"]
        assert plan.extend(found, 3, 0) == 1
        assert places(plan)[:-1] == before
        assert list(plan.changed()) == []


def test_no_two_files_have_one_source(tmp_path: Path) -> None:
    r"""Not even the byte ff and the four characters `\xff`; a name that is text stays as it is."""
    names = [b"caf\xff.png", rb"caf\xff.png", b"file:\xff.png", rb"a\b.png", "é%FF.png".encode()]
    try:
        for name in names:
            (tmp_path / os.fsdecode(name)).touch()
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    with opened(tmp_path) as plan:
        plan.extend(discover(InputConfig((str(tmp_path / "*.png"),)), tmp_path / "out"), 3, 0)
        rows = {path_of(row): row.source for row in all_rows(plan)}
    assert len(set(rows.values())) == len(names)
    for name in names:
        path = str(tmp_path / os.fsdecode(name))
        is_text = b"\xff" not in name
        assert rows[path] == (path if is_text else f"file://{tmp_path}/{quote_from_bytes(name)}")
        rows[path].encode()
