"""Owns what is known about this machine: cores, memory, CPU features."""

import os
from pathlib import Path

import psutil

MIB = 1024 * 1024


def available_cores() -> int:
    """Cores this process may use, a CPU quota of its control group counted."""
    cores = len(os.sched_getaffinity(0))
    quota = _cgroup_cpu_quota()
    return max(1, min(cores, quota)) if quota else max(1, cores)


def _cgroup_cpu_quota() -> int | None:
    """Whole cores the control group (version 2) grants, or None without a quota."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, int(quota) // int(period))


def cpu_flags() -> frozenset[str]:
    """Instruction-set flags as the kernel names them; empty where it does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def cpu_name() -> str:
    """The CPU's model name as the kernel gives it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown"
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else "unknown"


def available_memory_bytes() -> int:
    """Memory that new work may take without swapping, the limit of the control group (version 2) counted."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        counts = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return free
    if limit == "max":
        return free
    files = int(counts.get("inactive_file", 0))  # counted as used, and given up when something else needs room
    return max(0, min(free, int(limit) - used + files))


def total_memory_bytes() -> int:
    """Memory of the machine, or the limit of the control group (version 2) where that is less."""
    total = int(psutil.virtual_memory().total)
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # none, or `max`
        return total


def memory_mib(process_ids: list[int]) -> float:
    """Memory the processes hold together in MiB, pages they share counted once (proportional set size)."""
    return sum(_pss_mib(pid) for pid in process_ids)


def _pss_mib(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # the process has just ended
        return 0.0
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0
