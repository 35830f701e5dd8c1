"""One `batchcap` command run to its end, and what every refused one must look like."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile

import pyarrow.parquet as pq

from batchcap.store.folder import JobFolder
from tests.e2e.warm import Warm, is_cold, obeying

TIMEOUT_S = 120
# ONNX Runtime starts in a fraction of the time that PyTorch takes, which `auto` may mean.
ONNX = ("--vision-backend", "onnx")


def batchcap(
    *arguments: object, cwd: Path | None = None, torch: bool = False, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command; also as root it may read and write only what the files' modes allow.

    With `torch` it is one that will load PyTorch, and starts with that.
    """
    words = [str(argument) for argument in arguments]
    environment = {**os.environ, **environment}
    if is_cold():
        command = obeying([sys.executable, "-m", "batchcap.cli", *words])
        return subprocess.run(
            command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    with Path(os.devnull).open() as nothing, TemporaryFile("w+") as out, TemporaryFile("w+") as error:
        streams = (nothing.fileno(), out.fileno(), error.fileno())
        process = Warm("batchcap.cli", words, streams, environment, cwd=cwd, obeys_modes=True, torch=torch)
        code = process.wait(TIMEOUT_S)
        out.seek(0)
        error.seek(0)
        return subprocess.CompletedProcess(process.args, code, out.read(), error.read())


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
