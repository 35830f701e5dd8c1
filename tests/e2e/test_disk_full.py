"""A full disk: one clear message, nothing finished lost, and the same command goes on once there is room."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from batchcap.core.errors import ExitCode
from batchcap.core.jobfolder import STATE
from batchcap.store.folder import JobFolder
from tests.e2e.conftest import ROWS, Job
from tests.e2e.process import Process, assert_whole, durable_rows, read_summary, run

KIB = 1024
DISK_KIB = 2048
# Room left on the disk, from nothing to nearly enough: each meets another step of the job.
ROOMS_KIB = (0, 24, 60, 200)
PARTS = ("--rows-per-part", "40")


@contextmanager
def small_disk(folder: Path, size_kib: int) -> Iterator[None]:
    """Make a folder a file system of its own with little room."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"can't mount a small file system here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, room_kib: int) -> Path:
    """Take all the room of a disk but so much."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    free = shutil.disk_usage(disk).free - room_kib * KIB
    filler.write_bytes(bytes(max(0, free)))
    return filler


def assert_says_full(process: Process, *files: Path) -> None:
    """One error, on the file it is about, one of these, with what to do."""
    assert process.stderr.count("batchcap: error:") == 1
    error = process.stderr.partition("batchcap: error: ")[2]
    assert any(f"{file}: the disk is full: free some space" in error for file in files)
    assert "run the same command again to go on" in error


@pytest.mark.slow
def test_a_disk_that_gets_full_again_and_again(job: Job, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk, DISK_KIB):
        _fill_again_and_again(job, disk)


def _fill_again_and_again(job: Job, disk: Path) -> None:
    output = disk / "out"
    folder = JobFolder(output)
    holder = folder.lock_path.with_name("holder.json")
    durable = 0
    for room_kib in ROOMS_KIB:
        filler = fill(disk, room_kib)
        process = run(*job.arguments(output, *PARTS), expect=ExitCode.UNEXPECTED)
        # With some room it may be the journal that meets the end of it, or the part that becomes whole first.
        parts = [JobFolder(output).part_path(number) for number in range(-(-ROWS // 40))]
        assert_says_full(process, *((folder.journal_path, *parts) if room_kib else (holder,)))
        filler.unlink()
        before, (durable, _double) = durable, durable_rows(output)
        print(f"room for {room_kib} KiB: {durable} rows durable; {process.stderr.splitlines()[-1]}")
        assert durable >= before
    # Rows are kept although the disk got full.
    assert 0 < durable < ROWS
    last = run(*job.arguments(output, *PARTS))
    assert last.done_before == durable
    assert_whole(output, job.expected)


@pytest.mark.slow
def test_no_room_for_a_part(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (tmp_path / "state").mkdir()
    with small_disk(output, 8):
        (output / STATE).symlink_to(tmp_path / "state")  # there is room for everything but the parts
        folder = JobFolder(output)
        process = run(*job.arguments(output, *PARTS), expect=ExitCode.UNEXPECTED)
        assert_says_full(process, folder.part_path(0))
        summary = read_summary(output)
        assert (summary["state"], summary["exit_code"]) == ("failed", ExitCode.UNEXPECTED)
        assert "the disk is full" in summary["message"]
        assert not folder.part_paths()
    (output / STATE).symlink_to(tmp_path / "state")
    durable, _double = durable_rows(output)
    assert durable == summary["done"] >= 40
    assert run(*job.arguments(output, *PARTS)).done_before == durable
    assert_whole(output, job.expected)


@pytest.mark.slow
@pytest.mark.parametrize("limit_kib", [0, 64])
def test_a_file_that_may_not_grow(job: Job, tmp_path: Path, limit_kib: int) -> None:
    if shutil.which("prlimit") is None:
        pytest.skip("there is no prlimit here")
    output = tmp_path / "out"
    process = run(*job.arguments(output, *PARTS), expect=ExitCode.UNEXPECTED, file_size=limit_kib * KIB)
    assert "can't " in process.stderr
    assert "ulimit -f" in process.stderr
    assert "run the same command again to go on" in process.stderr
    durable, _double = durable_rows(output)
    last = run(*job.arguments(output, *PARTS))
    assert last.done_before == durable
    assert_whole(output, job.expected)
