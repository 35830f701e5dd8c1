"""Real `batchcap` processes, each a group of its own as from a shell: start, watch, signal, see what is left."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchcap.core.atomic import TEMPORARY_SUFFIX
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.lock import read_holder
from batchcap.store.parts import part_is_complete
from tests.e2e.warm import Warm, is_cold, obeying

TIMEOUT_S = 120.0
LOADING = "loading the model"
WORKING = re.compile(r"(\d+) rows, (\d+) done before, (\d+) to do")
# What a caption run decides; times differ from run to run.
DECIDED = ("id", "source", "row", "caption", "status", "verdict", "finish_reason", "error_kind", "new_tokens", "label")

STARTED: list["Process"] = []


class Process:
    """A running command; its stderr is collected while it runs."""

    def __init__(
        self,
        *arguments: str,
        environment: dict[str, str] | None = None,
        file_size: int | None = None,
        program: Sequence[str] = ("batchcap.cli",),
        obeys_modes: bool = False,
        warm: bool = False,
        torch: bool = False,
    ) -> None:
        environment = {**os.environ, **(environment or {})}
        if warm and not is_cold() and file_size is None:
            self.popen: Any = _warm([*program, *arguments], environment, obeys_modes=obeys_modes, torch=torch)
        else:
            command = [sys.executable, "-m", *program, *arguments]
            if obeys_modes:  # root may write everywhere, unless it gives that up
                command = obeying(command)
            if file_size is not None:
                command = ["prlimit", f"--fsize={file_size}", *command]
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env=environment,
            )
        STARTED.append(self)
        self.started_s = time.monotonic()
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stderr is not None
        self._lines.extend(self.popen.stderr)

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return "".join(self._lines)

    @property
    def done_before(self) -> int | None:
        """Rows that earlier runs had finished, once it has said so."""
        found = WORKING.search(self.stderr)
        return int(found[2]) if found else None

    def wait_until(self, condition: Callable[[], object], interval_s: float = 0.002) -> bool:
        """Wait for something; False where the process ends first."""
        ends_s = time.monotonic() + TIMEOUT_S
        while not condition():
            if self.popen.poll() is not None:
                return bool(condition())
            assert time.monotonic() < ends_s, f"waited {TIMEOUT_S} s in vain; stderr so far:\n{self.stderr}"
            time.sleep(interval_s)
        return True

    def wait_for_line(self, text: str) -> bool:
        """Wait until stderr has a text; False where the process ends first."""
        return self.wait_until(lambda: text in self.stderr)

    def workers(self) -> dict[str, int]:
        """Process ids of the workers by what they are: vision, decoder; in the order they were started."""
        pids = [pid for pid in group_members(self.popen.pid) if pid != self.popen.pid]
        return dict(zip(("vision", "decoder"), sorted(pids), strict=False))

    def signal_group(self, number: int) -> None:
        """Send a signal to coordinator and workers, as a terminal or a service manager does."""
        os.killpg(self.popen.pid, number)

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """Its exit code; all its output has been read then."""
        try:
            code = self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not at its end after {timeout_s:g} s; stderr so far:\n{self.stderr}") from None
        self._reader.join(timeout_s)
        return code

    def wait_for_group(self, timeout_s: float = 10.0) -> None:
        """Wait until no process of the group lives."""
        ends_s = time.monotonic() + timeout_s
        while members := group_members(self.popen.pid):
            assert time.monotonic() < ends_s, f"processes {members} have outlived their coordinator"
            time.sleep(0.01)

    def put_away(self) -> None:
        """End what a test that failed has left at work."""
        for pid in group_members(self.popen.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait()


def _warm(words: Sequence[str], environment: dict[str, str], *, obeys_modes: bool, torch: bool) -> Warm:
    """A process that starts in a moment; its stderr can be read as that of any other."""
    ours, theirs = os.pipe()
    with Path(os.devnull).open("r+") as nothing:
        streams = (nothing.fileno(), nothing.fileno(), theirs)
        process = Warm(
            words[0], words[1:], streams, environment, new_session=True, obeys_modes=obeys_modes, torch=torch
        )
    os.close(theirs)
    process.stderr = os.fdopen(ours)
    return process


def group_members(group: int) -> list[int]:
    """Living processes of a process group; those that are only waiting to be reaped don't count."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, _parent, pgrp = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has just ended
            continue
        if int(pgrp) == group and state not in "ZX":
            members.append(int(entry.name))
    return members


def run(*arguments: str, expect: int = 0, warm: bool = True, **options: Any) -> Process:
    """Run a command to its end, which must be with the exit code expected and without a traceback."""
    process = Process(*arguments, warm=warm, **options)
    code = process.wait()
    assert code == expect, f"exit code {code}, not {expect}; stderr:\n{process.stderr}"
    assert_clean(process)
    return process


def assert_clean(process: Process) -> None:
    """No traceback, no worker left."""
    assert "Traceback" not in process.stderr, process.stderr
    assert "unexpected" not in process.stderr, process.stderr
    process.wait_for_group()


def captions(output: Path) -> pa.Table:
    """The rows of a job's parts, in order, without what was only measured."""
    parts = [pq.read_table(path) for path in JobFolder(output).part_paths()]
    table = pa.concat_tables(parts)
    return table.select([name for name in DECIDED if name in table.column_names])


def assert_whole(output: Path, expected: pa.Table) -> None:
    """A job is complete, equal to the expected rows, and nothing but its files is left."""
    found = captions(output)
    assert found["id"].to_pylist() == expected["id"].to_pylist()
    differing = [(old, new) for old, new in zip(expected.to_pylist(), found.to_pylist(), strict=True) if old != new]
    assert not differing, f"{len(differing)} of {len(expected)} rows differ, first: {differing[0]}"
    assert not leftovers(output)
    assert read_holder(JobFolder(output)) is None
    summary = read_summary(output)
    assert (summary["state"], summary["exit_code"], summary["remaining"]) == ("complete", 0, 0)
    assert summary["done"] == summary["rows"] == len(expected)


def leftovers(output: Path) -> list[str]:
    """Files that a finished job must not leave: temporary ones, and SQLite's log and index."""
    return [
        path.name for path in output.rglob("*") if path.name.endswith((TEMPORARY_SUFFIX, "-wal", "-shm", "-journal"))
    ]


def durable_rows(output: Path) -> tuple[int, int]:
    """Rows that are durable now, in parts or in the journal, and those that are in both."""
    folder = JobFolder(output)
    if not folder.journal_path.exists():
        return 0, 0
    durable = double = 0
    with closing(Journal.open(folder.journal_path)) as journal:
        for shard in journal.shards():
            journalled = len(journal.done_indexes(shard))
            in_part = shard.rows if part_is_complete(folder.part_path(shard.seq), shard) else 0
            durable += max(in_part, journalled)
            double += min(in_part, journalled)
    return durable, double


def read_summary(output: Path) -> dict[str, Any]:
    """`summary.json`."""
    content: dict[str, Any] = json.loads(JobFolder(output).summary_path.read_text(encoding="utf-8"))
    return content


def snapshot(output: Path, leave_out: Sequence[str] = ("lock", "holder.json")) -> dict[str, bytes]:
    """Every file of a job folder and its bytes, without the lock."""
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.name not in leave_out
    }
