"""Owns the program that runs after a run: its words, what it is told, its time, and that it never changes the end."""

import logging
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress

from batchcap.core.text import one_line
from batchcap.job.stop import ShouldStop

log = logging.getLogger(__name__)

LIMIT_S = 300.0
# Between the request to end and the end by force.
GRACE_S = 5.0
POLL_S = 0.05
STDERR = 2


def run_on_end(command: str, told: Mapping[str, str], should_stop: ShouldStop, limit_s: float = LIMIT_S) -> None:
    """Run a program and wait for it; whatever comes of it is logged and nothing else.

    There is no shell. What it prints goes to stderr: stdout is for the result alone.

    Args:
        command: its words, as a shell would split them.
        told: environment variables besides those that are there.
        should_stop: whether to end it early.
        limit_s: seconds that it may take.
    """
    words = shlex.split(command)
    program = os.path.expanduser(words[0])  # noqa: PTH111 - as it is where there is no such user
    try:
        process = subprocess.Popen(
            [program, *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=STDERR,
            env={**os.environ, **told},
            start_new_session=True,  # a group of its own: it can be ended with all that it has started
        )
    except (OSError, ValueError) as error:
        log.warning("--on-end can't be run (%s): check the command; the exit code stays", one_line(str(error)))
        return
    ends_s = time.monotonic() + limit_s
    try:
        while process.poll() is None and time.monotonic() < ends_s and not should_stop():
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
    finally:
        had_to_end = process.poll() is None
        if had_to_end:
            _end(process)
    if had_to_end:
        why = "was stopped" if should_stop() else f"took longer than {limit_s:g} s and was ended"
        log.warning("--on-end %s; the exit code stays", why)
    elif process.returncode:
        log.warning("--on-end %s; the exit code stays", _how(process.returncode))


def _how(code: int) -> str:
    return f"ended with exit code {code}" if code > 0 else f"was killed by signal {-code}"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the program and what it has started."""
    for number, patience_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
            return
