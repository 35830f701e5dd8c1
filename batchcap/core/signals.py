"""Owns which signals ask a process to stop, and the exit code of each."""

import signal

from batchcap.core.errors import ExitCode

# Ctrl-C, a service manager, a terminal that is closed or a connection that is lost.
STOP_SIGNALS = {
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGTERM: ExitCode.STOPPED_EARLY,
    signal.SIGHUP: ExitCode.STOPPED_EARLY,
}


def stop_signals() -> list[signal.Signals]:
    """Signals that ask this process to stop: not SIGHUP where `nohup` has it ignored."""
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in STOP_SIGNALS if not (number == signal.SIGHUP and is_ignored)]
