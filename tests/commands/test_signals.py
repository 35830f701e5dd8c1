"""Ctrl-C, SIGTERM and SIGHUP ask a job to stop; the second one ends it; afterwards signals are what they were."""

import os
import signal
import subprocess
import sys

import pytest

from batchcap.commands.signals import stop_on_signals
from batchcap.core.errors import ExitCode
from batchcap.job.stop import StopRequest


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, ExitCode.INTERRUPTED),
        (signal.SIGTERM, ExitCode.STOPPED_EARLY),
        (signal.SIGHUP, ExitCode.STOPPED_EARLY),
    ],
)
def test_a_signal_asks_to_stop(number: signal.Signals, code: ExitCode) -> None:
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.exit_code is code
    assert signal.getsignal(number) is before


def test_the_first_to_ask_decides() -> None:
    stop = StopRequest()
    stop.ask(ExitCode.STOPPED_EARLY)
    stop.ask(ExitCode.INTERRUPTED)
    assert stop.exit_code is ExitCode.STOPPED_EARLY


def test_handlers_are_put_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), stop_on_signals():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_terminal_may_hang_up_several_times() -> None:
    with stop_on_signals() as stop:
        for _time in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.exit_code is ExitCode.STOPPED_EARLY


def test_nohup_stays() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


TWICE = """
import os, signal
from batchcap.commands.signals import stop_on_signals
with stop_on_signals():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    print("still here")
"""


def test_the_second_signal_ends_the_process_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (ExitCode.INTERRUPTED, "")
