"""What is read from the kernel: cores under a quota, CPU features, memory."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from batchcap.core import machine

PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that stands for the root of the file system where the kernel's files are read."""
    real = Path

    def redirected(path: str) -> Path:
        return tmp_path / path.lstrip("/") if path.startswith(("/proc", "/sys")) else real(path)

    monkeypatch.setattr(machine, "Path", redirected)
    return tmp_path


@pytest.fixture
def hidden(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As `kernel`, and what psutil reads of `/proc` is not there either; 1000 pages are free of 8000."""
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(kernel / "proc"))
    pages = {"SC_AVPHYS_PAGES": 1000, "SC_PHYS_PAGES": 8000, "SC_PAGE_SIZE": PAGE}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    return kernel


def put(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8), ("", 8), ("odd", 8)],
)
def test_cores_respect_the_quota_of_the_control_group(
    kernel: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    put(kernel, "sys/fs/cgroup/cpu.max", quota)
    assert machine.available_cores() == cores


def test_cores_are_those_the_process_may_use(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3})
    assert machine.available_cores() == 1


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "0"}, 8),
        ({"cpu.max": "200000 0"}, 8),
        ({"cpu.max": "\0\xff"}, 8),
        ({"jobs/nightly/cpu.max": "max 100000", "jobs/cpu.max": "500000 100000"}, 5),
        ({"cpu/old/cpu.cfs_quota_us": "400000", "cpu/old/cpu.cfs_period_us": "100000"}, 4),
        ({"jobs/nightly/cpu.max": "600000 100000", "jobs/cpu.max": "700000 100000"}, 6),
        ({"others/cpu.max": "100000 100000"}, 8),
    ],
)
def test_quotas_of_both_versions_and_of_groups_around(
    kernel: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    put(kernel, "proc/self/cgroup", "4:cpu,cpuacct:/old\nnonsense\n0::/jobs/nightly\n")
    for name, text in files.items():
        put(kernel, f"sys/fs/cgroup/{name}", text)
    assert machine.available_cores() == cores


@pytest.mark.parametrize(("threads", "lanes", "session"), [(1, 1, 1), (2, 2, 1), (4, 2, 3), (64, 4, 61), (1, 2, 1)])
def test_threads_of_a_session(threads: int, lanes: int, session: int) -> None:
    assert machine.session_threads(threads, lanes) == session


def test_features_and_name_of_the_cpu(kernel: Path) -> None:
    assert machine.cpu_flags() == frozenset()
    assert machine.cpu_name() == "unknown"
    put(
        kernel,
        "proc/cpuinfo",
        "processor\t: 0\nmodel name\t: Fast One\nflags\t\t: fpu avx2 avx512_bf16\n\nflags\t: x\n",
    )
    assert machine.cpu_flags() == {"fpu", "avx2", "avx512_bf16"}
    assert machine.cpu_name() == "Fast One"


def test_features_of_an_arm_cpu(kernel: Path) -> None:
    put(kernel, "proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert machine.cpu_flags() == {"fp", "asimd", "bf16"}
    assert machine.cpu_name() == "unknown"


@pytest.mark.parametrize("content", ["", "\n\n", "flags", "\xff\0:::"])
def test_a_cpu_that_the_kernel_does_not_describe(kernel: Path, content: str) -> None:
    put(kernel, "proc/cpuinfo", content)
    assert (machine.cpu_flags(), machine.cpu_name()) == (frozenset(), "unknown")


HOLD = """
import sys
data = bytearray(64 << 20)
data[::4096] = b"x" * len(data[::4096])  # touched, or the pages would not be there
print(flush=True)
sys.stdin.read()
"""


def test_memory_is_what_a_process_holds_and_none_after_its_end() -> None:
    before = machine.memory_mib([os.getpid()])
    assert before > 10
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert 64 < machine.memory_mib([child.pid]) < 128
        child.kill()
    assert machine.memory_mib([child.pid]) == 0


def test_free_memory_respects_the_limit_of_the_control_group(kernel: Path) -> None:
    """Of what the group uses, the files it only keeps for later are given up when something else needs room."""
    put(kernel, "sys/fs/cgroup/memory.max", f"{500 * machine.MIB}\n")
    put(kernel, "sys/fs/cgroup/memory.current", f"{450 * machine.MIB}\n")
    put(kernel, "sys/fs/cgroup/memory.stat", f"anon {200 * machine.MIB}\ninactive_file {100 * machine.MIB}\n")
    assert machine.available_memory_bytes() == 150 * machine.MIB
    assert machine.total_memory_bytes() == 500 * machine.MIB
    put(kernel, "sys/fs/cgroup/memory.max", "max\n")
    assert machine.available_memory_bytes() > 150 * machine.MIB
    assert machine.total_memory_bytes() == psutil.virtual_memory().total


def test_free_memory_respects_limits_of_version_1_and_of_groups_around(kernel: Path) -> None:
    """Where there is no limit version 1 says a number beyond all memory; it counts groups below with `total_`."""
    put(kernel, "proc/self/cgroup", "9:memory:/system.slice/batchcap.service\n0::/\n")
    memory = "sys/fs/cgroup/memory"
    put(kernel, f"{memory}/memory.limit_in_bytes", "9223372036854771712\n")
    put(kernel, f"{memory}/memory.usage_in_bytes", "1\n")
    assert machine.total_memory_bytes() == psutil.virtual_memory().total
    put(kernel, f"{memory}/system.slice/memory.limit_in_bytes", f"{500 * machine.MIB}\n")
    put(kernel, f"{memory}/system.slice/memory.usage_in_bytes", f"{450 * machine.MIB}\n")
    put(kernel, f"{memory}/system.slice/memory.stat", f"inactive_file 7\ntotal_inactive_file {100 * machine.MIB}\n")
    put(kernel, f"{memory}/system.slice/batchcap.service/memory.limit_in_bytes", f"{600 * machine.MIB}\n")
    assert machine.available_memory_bytes() == 150 * machine.MIB
    assert machine.total_memory_bytes() == 500 * machine.MIB


def test_a_limit_whose_use_is_not_told_still_holds(kernel: Path) -> None:
    put(kernel, "sys/fs/cgroup/memory.max", f"{100 * machine.MIB}\n")
    put(kernel, "sys/fs/cgroup/memory.stat", "inactive_file\nodd line of words\ninactive_file many\n")
    assert machine.available_memory_bytes() == 100 * machine.MIB


@pytest.mark.parametrize("content", [None, "", "MemTotal:\n", "MemTotal: many kB\n", "MemAvailable: 5 kB\n"])
def test_memory_without_meminfo(hidden: Path, content: str | None) -> None:
    if content is not None:
        put(hidden, "proc/meminfo", content)
    assert machine.total_memory_bytes() == 8000 * PAGE
    assert machine.available_memory_bytes() == 4000 * PAGE, "free pages alone would leave out what files hold"
    node = "sys/devices/system/node"
    put(
        hidden,
        f"{node}/node0/meminfo",
        "Node 0 MemTotal: 9000 kB\nNode 0 MemFree: 5000 kB\nNode 0 Active(file): x kB\n",
    )
    put(hidden, f"{node}/node1/meminfo", "Node 1 MemFree: 300 kB\n\nNode 1 Inactive(file):  70 kB\n")
    assert machine.available_memory_bytes() == max(1000 * PAGE, 5370 * 1024)


def test_memory_where_nothing_says_anything(hidden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_name: str) -> int:
        raise OSError

    monkeypatch.setattr(os, "sysconf", fail)
    assert (machine.total_memory_bytes(), machine.available_memory_bytes()) == (0, 0)


def test_memory_of_processes_without_their_proportional_share(hidden: Path) -> None:
    assert machine.memory_mib([7]) == 0
    put(hidden, "proc/7/status", "Name:\tpython\nVmRSS:\t    2048 kB\n")
    assert machine.memory_mib([7]) == 2
    put(hidden, "proc/7/smaps_rollup", "Pss:\n")
    assert machine.memory_mib([7]) == 2
    put(hidden, "proc/7/smaps_rollup", "Rss: 9 kB\nPss: 1024 kB\n")
    assert machine.memory_mib([7]) == 1


@pytest.mark.parametrize("content", [None, "", "cpu", "cpu x y z"])
def test_busy_time_of_the_cpus(hidden: Path, content: str | None) -> None:
    if content is not None:
        put(hidden, "proc/stat", content)
    assert machine.busy_cpu_s() is None


def test_the_file_system_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.file_system(Path("/proc/self")) == "proc"
    mounts = tmp_path / "self" / "mounts"
    mounts.parent.mkdir()
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    assert machine.file_system(tmp_path) == ""
    mounts.write_text("nonsense\n")
    assert machine.file_system(tmp_path) == ""
