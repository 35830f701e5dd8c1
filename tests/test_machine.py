"""What is read from the kernel: cores under a quota, CPU features, memory."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from batchcap import machine


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that stands for the root of the file system where the kernel's files are read."""
    real = Path

    def redirected(path: str) -> Path:
        return tmp_path / path.lstrip("/") if path.startswith(("/proc", "/sys")) else real(path)

    monkeypatch.setattr(machine, "Path", redirected)
    return tmp_path


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
