"""A signal that comes when all is done and said changes nothing any more."""

import os
import signal
import subprocess
import sys

import pytest

# The interpreter's own end, made long: the last thing that it does before the signals' defaults are back and after.
LINGERS = """
import atexit, sys, time
from batchcap.cli import main
atexit.register(lambda: (print("ending", file=sys.stderr, flush=True), time.sleep(1)))
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_exit_code_stays(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LINGERS, "--version"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "ending\n"
    os.kill(process.pid, number)
    output, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (0, "")
    assert output.startswith("batchcap ")
