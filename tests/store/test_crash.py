"""SIGKILL at random points of journal, part and forget: nothing acknowledged is lost, parts are whole or absent."""

import random
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq

from batchcap.core.records import Shard
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.parts import part_is_complete
from tests.store import crash_child
from tests.store.crash_child import shards_of

KILLS = 40
SHARDS, ROWS = 450, 20
MAX_LIFE_S = 0.15
LONG_LIFE_S = 120.0


def let_live(nursery: subprocess.Popen[str], life_s: float) -> tuple[set[int], bool]:
    """Let a child live for so long; gives what it acknowledged and whether it got to the end."""
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    print(life_s, file=nursery.stdin, flush=True)
    acknowledged: set[int] = set()
    for line in nursery.stdout:
        before, end, code = line.partition("end ")  # a killed child may leave half a line before it
        if end:
            assert int(code) in (0, -9)
            return acknowledged, int(code) == 0
        acknowledged |= {int(word) for word in before.split()}
    raise AssertionError("the process that starts children is gone")


def rows_of(path: Path, shard: Shard, known: dict[tuple[int, int], list[int]]) -> list[int]:
    """The rows of a part, which is whole; a file that was read before, and was not touched since, is in `known`."""
    stat = path.stat()
    file = (stat.st_ino, stat.st_mtime_ns)
    if file not in known:
        assert part_is_complete(path, shard)
        known[file] = [int(name.removesuffix(".png")) for name in pq.read_table(path)["id"].to_pylist()]
    return known[file]


def check(folder: JobFolder, acknowledged: set[int], known: dict[tuple[int, int], list[int]]) -> set[int]:
    """Every acknowledged row is in a part or in the journal; gives all rows that are."""
    found: list[int] = []
    with closing(Journal.open(folder.journal_path)) as journal:
        for shard in shards_of(SHARDS, ROWS):
            path = folder.part_path(shard.seq)
            if path.exists():
                found += rows_of(path, shard, known)
            else:
                rows = journal.rows(shard)
                assert [row.id for _index, row in rows] == [f"{index}.png" for index, _row in rows]
                found += [index for index, _row in rows]
    assert len(found) == len(set(found))
    assert acknowledged <= set(found)
    return set(found)


def test_killed_again_and_again_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    output = tmp_path / "out"
    folder = JobFolder.open_or_create(output)
    chance = random.Random(7)
    acknowledged: set[int] = set()
    known: dict[tuple[int, int], list[int]] = {}
    kills = 0
    command = [sys.executable, crash_child.__file__, str(output), str(SHARDS), str(ROWS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as nursery:
        for _ in range(KILLS):
            new, ended = let_live(nursery, chance.uniform(0, MAX_LIFE_S))
            # A row that is acknowledged is never done again, so no run may acknowledge what an earlier one did.
            assert not new & acknowledged
            acknowledged |= new
            check(folder, acknowledged, known)
            kills += not ended
        assert kills > KILLS * 0.9
        assert 0 < len(folder.part_paths()) < SHARDS
        _new, ended = let_live(nursery, LONG_LIFE_S)
        assert ended
    assert check(folder, acknowledged, {}) == set(range(SHARDS * ROWS))
    assert len(folder.part_paths()) == SHARDS
    assert not list(output.glob(".*"))
