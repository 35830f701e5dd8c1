"""Owns what is known about this machine: cores, memory, CPU features.

Containers and sandboxes hide parts of `/proc` and `/sys`, so every number has a fallback and none of them is needed.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePath

import psutil

MIB = 1024 * 1024

# What psutil raises where a file of the kernel is absent or looks otherwise than it expects.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, RuntimeError, psutil.Error)


def available_cores() -> int:
    """Cores this process may use, a CPU quota of its control group counted."""
    cores = len(os.sched_getaffinity(0))
    quota = _cgroup_cpu_quota()
    return max(1, min(cores, quota)) if quota else max(1, cores)


def session_threads(threads: int, lanes: int) -> int:
    """Threads of an ONNX Runtime session that so many lanes of a worker with so many threads run at once.

    A lane's own thread computes, too; the session's others help whoever needs them.
    """
    return max(1, threads - lanes + 1)


def _cgroup_cpu_quota() -> int | None:
    """Whole cores the control group grants, or None without a quota."""
    quotas = []
    for group in _control_groups("cpu"):
        quota, period = [*_text(f"{group}/cpu.max").split(), "", ""][:2]  # version 2
        if not quota:
            quota, period = (_text(f"{group}/cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
        granted, each = _number(quota), _number(period)
        if granted and each:  # no quota: `max` or -1
            quotas.append(max(1, granted // each))
    return min(quotas, default=None)


def cpu_flags() -> frozenset[str]:
    """Instruction-set flags as the kernel names them; empty where it does not say."""
    return frozenset((_of_cpu("flags") or _of_cpu("Features")).split())  # x86, ARM


def cpu_name() -> str:
    """The CPU's model name as the kernel gives it."""
    return _of_cpu("model name") or "unknown"


def _of_cpu(name: str) -> str:
    """A value of the first CPU that has it."""
    for line in _text("/proc/cpuinfo").splitlines():
        key, _colon, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def available_memory_bytes() -> int:
    """Memory that new work may take without swapping, limits of the control group counted."""
    return max(0, min([_free_bytes(), *_cgroup_free_bytes()]))


def _free_bytes() -> int:
    try:
        return int(psutil.virtual_memory().available)
    except _UNREADABLE:
        # Pages that hold files count as used and are released when something else needs room. Where nothing says how
        # many they are half of the memory is the guess: a job must not hold back for ever because files are cached.
        return max(_pages_bytes("SC_AVPHYS_PAGES"), _free_in_nodes_bytes() or _pages_bytes("SC_PHYS_PAGES") // 2)


def _free_in_nodes_bytes() -> int:
    """Free pages of all NUMA nodes, and those that hold files; 0 where the kernel does not say."""
    kib = 0
    for path in Path("/sys/devices/system/node").glob("node*/meminfo"):
        for line in _text(str(path)).splitlines():
            fields = line.split()  # Node 0 MemFree: 4969520 kB
            if len(fields) > 3 and fields[2] in ("MemFree:", "Active(file):", "Inactive(file):"):
                kib += _number(fields[3]) or 0
    return kib * 1024


def total_memory_bytes() -> int:
    """Memory of the machine, or the limit of the control group where that is less."""
    try:
        total = int(psutil.virtual_memory().total)
    except _UNREADABLE:
        total = _pages_bytes("SC_PHYS_PAGES")
    return min([total, *(limit for _group, limit in _cgroup_memory_limits())])


def _pages_bytes(name: str) -> int:
    """Bytes of so many pages as the C library counts; 0 where it can't."""
    try:
        return max(0, os.sysconf(name)) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def _cgroup_memory_limits() -> Iterator[tuple[str, int]]:
    """Folders of control groups that limit memory, and the limits in bytes."""
    for group in _control_groups("memory"):
        for name in (
            "memory.max",
            "memory.limit_in_bytes",
        ):  # version 2, 1; no limit: `max`, a number beyond all memory
            limit = _number(_text(f"{group}/{name}"))
            if limit is not None:
                yield group, limit


def _cgroup_free_bytes() -> Iterator[int]:
    """What each limit leaves."""
    for group, limit in _cgroup_memory_limits():
        used = _number(_text(f"{group}/memory.current") or _text(f"{group}/memory.usage_in_bytes")) or 0
        counts = dict(line.split() for line in _text(f"{group}/memory.stat").splitlines() if line.count(" ") == 1)
        # Counted as used, and given up when something else needs room; version 1 counts groups below under `total_`.
        files = _number(counts.get("total_inactive_file", counts.get("inactive_file", ""))) or 0
        yield limit - used + files


def _control_groups(controller: str) -> list[str]:
    """Folders of this process's control groups and those around them, where limits of a controller may stand.

    A container with a namespace of its own sees its group as the root; a service of systemd is in a folder below.
    """
    paths = {"": "/", controller: "/"}  # version 2, version 1
    for line in _text("/proc/self/cgroup").splitlines():
        _number_of_it, names, path = [*line.split(":", 2), "", ""][:3]
        paths |= {name: path for name in names.split(",") if name in paths}
    folders = []
    for root, path in (("/sys/fs/cgroup", paths[""]), (f"/sys/fs/cgroup/{controller}", paths[controller])):
        parts = [part for part in PurePath(path).parts if part not in ("/", "..")]
        folders += ["/".join([root, *parts[:depth]]) for depth in range(len(parts), -1, -1)]
    return folders


def memory_mib(process_ids: list[int]) -> float:
    """Memory the processes hold together in MiB, pages they share counted once (proportional set size).

    Where the kernel does not say it, pages in memory, shared or not; 0 where it says nothing.
    """
    return sum(_pss_mib(pid) for pid in process_ids)


def _pss_mib(pid: int) -> float:
    for name, key in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        for line in _text(f"/proc/{pid}/{name}").splitlines():  # none: the process has just ended
            fields = line.split()
            if len(fields) > 1 and fields[0] == key:
                return (_number(fields[1]) or 0) / 1024
    return 0.0


def file_system(folder: Path) -> str:
    """Kind of the file system that a folder is on; empty where the kernel does not say."""
    try:
        mounts = {Path(one.mountpoint): one.fstype for one in psutil.disk_partitions(all=True)}
    except _UNREADABLE:
        return ""
    return next((mounts[path] for path in (folder.resolve(), *folder.resolve().parents) if path in mounts), "")


def busy_cpu_s() -> float | None:
    """Seconds that all programs have kept the CPUs busy since the machine started; None where nothing says it."""
    try:
        times = psutil.cpu_times()
    except _UNREADABLE:
        return None
    return float(times.user + times.nice + times.system)


def _text(path: str) -> str:
    """Content of a file of the kernel; empty where there is none or it may not be read."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() else None
