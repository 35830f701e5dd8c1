"""One `batchcap` command run to its end, and what every refused one must look like."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from batchcap.store.folder import JobFolder

TIMEOUT_S = 120


def batchcap(*arguments: object, cwd: Path | None = None, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a command; also as root it may read and write only what the files' modes allow."""
    command = [sys.executable, "-m", "batchcap.cli", *map(str, arguments)]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def assert_refused(done: "subprocess.CompletedProcess[str]", *parts: str, code: int = 2) -> None:
    """The exit code, one error on stderr with these words in it, no traceback, nothing on stdout."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("batchcap: error: ") == 1, done.stderr
    message = done.stderr.partition("batchcap: error: ")[2]
    assert "unexpected" not in message
    for part in parts:
        assert part in message


def read_rows(output: Path) -> list[dict[str, object]]:
    """The caption rows of a job folder, in order."""
    parts = JobFolder(output).part_paths()
    return [row for part in parts for row in pq.read_table(part).to_pylist()]
