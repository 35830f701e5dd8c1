"""Owns the watching of a command from outside: its time, and the memory of all its processes together."""

import os
import subprocess
import threading
import time
from dataclasses import dataclass
from itertools import count

import psutil

from batchcap.core.machine import MIB, memory_mib

INTERVAL_S = 0.2
# The kernel walks every page to share it out: asked more often, the question would slow the command down.
SAMPLES_PER_SHARE = 10


@dataclass(frozen=True, slots=True)
class Usage:
    """What a command took.

    Attributes:
        exit_code: of the command itself.
        elapsed_s: from its start to its end.
        cpu_s: of all its processes, as far as they were waited for.
        peak_rss_mib: largest sum of resident sets; pages that processes share, or that map a file, count each time.
        peak_pss_mib: the same with shared pages counted once, looked at every two seconds.
        load_before: load average over one minute before the start.
    """

    exit_code: int
    elapsed_s: float
    cpu_s: float
    peak_rss_mib: float
    peak_pss_mib: float
    load_before: float


def run_watched(command: list[str], **options: object) -> Usage:
    """Run a command to its end and watch it, and all that it starts, every fifth of a second."""
    load_before = os.getloadavg()[0]
    times = os.times()
    started_s = time.perf_counter()
    process = subprocess.Popen(command, **options)  # type: ignore[call-overload]
    peaks = _Peaks(process.pid)
    ended = threading.Event()
    watcher = threading.Thread(target=peaks.watch, args=(ended,))
    watcher.start()
    try:
        exit_code = process.wait()
    finally:
        ended.set()
        watcher.join()
    after = os.times()
    cpu_s = after.children_user + after.children_system - times.children_user - times.children_system
    return Usage(exit_code, time.perf_counter() - started_s, cpu_s, peaks.rss_mib, peaks.pss_mib, load_before)


class _Peaks:
    """The most memory that a process and its descendants held at one time."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.rss_mib = 0.0
        self.pss_mib = 0.0

    def watch(self, ended: threading.Event) -> None:
        """Sample until the event is set."""
        for sample in count():
            if ended.wait(INTERVAL_S):
                return
            processes = _tree(self._pid)
            self.rss_mib = max(self.rss_mib, sum(_rss_mib(process) for process in processes))
            if sample % SAMPLES_PER_SHARE == 0:
                self.pss_mib = max(self.pss_mib, memory_mib([process.pid for process in processes]))


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _rss_mib(process: psutil.Process) -> float:
    try:
        return process.memory_info().rss / MIB
    except psutil.NoSuchProcess:
        return 0.0
