"""A process that stores rows like a job (journal, part, forget) in children that it kills when told to.

Run as a script with a job folder, the number of shards and the rows of each. Every line on stdin is the life of one
more child in seconds. Children print the index of each row once it is acknowledged; after each child comes `end` and
its exit code. Forked, since loading the libraries takes much longer than a child lives.
"""

import os
import signal
import sys
import threading
from contextlib import closing
from pathlib import Path

import pandas as pd  # noqa: F401 - pyarrow loads it at its first table, which would take a child its whole life

from batchcap.core.records import CaptionRow, Shard
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.parts import part_is_complete, write_part

BATCH = 7


def shards_of(count: int, rows: int) -> list[Shard]:
    return [Shard(seq, seq * rows, rows) for seq in range(count)]


def row_of(index: int) -> CaptionRow:
    return CaptionRow(id=f"{index}.png", source=f"/images/{index}.png", row=0, caption=f"caption {index}")


def store_rows(output: str, count: int, rows: int) -> None:
    folder = JobFolder.open_or_create(Path(output))
    folder.remove_leftovers()
    with closing(Journal.open(folder.journal_path)) as journal:
        for shard in shards_of(count, rows):
            path = folder.part_path(shard.seq)
            if part_is_complete(path, shard):
                journal.forget(shard)
                continue
            done = journal.done_indexes(shard)
            open_rows = [index for index in range(*shard.span) if index not in done]
            for start in range(0, len(open_rows), BATCH):
                batch = open_rows[start : start + BATCH]
                journal.add([(index, row_of(index)) for index in batch])
                print(*batch, flush=True)
            write_part(path, shard, [row for _index, row in journal.rows(shard)], None, {})
            journal.forget(shard)


def live(life_s: float, output: str, count: int, rows: int) -> int:
    """Fork a child and kill it after its life; gives its exit code."""
    child = os.fork()
    if child == 0:
        store_rows(output, count, rows)
        os._exit(0)
    timer = threading.Timer(life_s, os.kill, (child, signal.SIGKILL))
    timer.start()
    _pid, status = os.waitpid(child, 0)
    timer.cancel()
    timer.join()
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    for line in sys.stdin:
        code = live(float(line), sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
        print("end", code, flush=True)
