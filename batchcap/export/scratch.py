"""Owns the hidden folder beside a bundle in which the bundle grows: one export at a time, nothing left behind."""

import ctypes
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from batchcap.core.errors import BatchcapError, LockedError

_LOCK_FILE = "lock"
_GIB = 1 << 30
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # Linux, fcntl.h and linux/fs.h


@contextmanager
def scratch_folder(output: Path) -> Iterator[Path]:
    """The empty folder `.NAME.partial` beside `output`, removed at the end whatever happens.

    Folders above it that were not there before go with it if nothing has come into them.

    Only a kill leaves it; the next export to the same place begins by emptying it. It is beside the bundle because a
    rename must stay on one file system, and because the folder for temporary files is often in memory.

    Raises:
        LockedError: another export to the same place is at work.
        OSError: it can't be made.
    """
    folder = output.parent / f".{output.name}.partial"
    new_parents = [parent for parent in output.parents if not parent.exists()]  # the innermost first
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK_FILE).open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # freed by the kernel however this process ends
        except BlockingIOError:
            raise LockedError(f"another export to {output} is running: wait for it, or stop it first") from None
        try:
            _empty(folder)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                for parent in new_parents:
                    parent.rmdir()


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK_FILE:
            path.unlink()


def require_space(folder: Path, needed_bytes: int) -> None:
    """Make sure that an export will not fill the disk after minutes of work.

    Raises:
        BatchcapError: less is free.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise BatchcapError(
            f"the export needs {needed_bytes / _GIB:.1f} GiB at {folder.absolute()} while it works "
            f"and {free_bytes / _GIB:.1f} GiB are free: free space or choose another --output"
        )


def put_in_place(folder: Path, output: Path) -> None:
    """Move a finished bundle to its place; the one that is there changes places with it in one step.

    A file system that can't exchange two folders sees the old one moved away first; a kill between the two moves
    leaves no bundle then, and never half of one.

    Raises:
        OSError: it can't be moved.
    """
    if not output.exists():
        folder.rename(output)
    elif not _exchange(folder, output):
        output.rename(folder.with_name("replaced"))
        folder.rename(output)


def _exchange(one: Path, other: Path) -> bool:
    """Whether two folders have changed places, which the C library and the file system must know how to do."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return (
        rename is not None and rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0
    )
