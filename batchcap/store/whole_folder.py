"""Owns job folders that appear whole or not at all: they grow under a hidden name beside their place."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batchcap.core.atomic import storage_error, sync
from batchcap.core.errors import LockedError, UsageError
from batchcap.core.text import shown_name


def require_free(output: Path) -> None:
    """Refuse a place where something is; an empty folder is nothing.

    Raises:
        UsageError: something is there.
    """
    is_there = os.path.lexists(output)
    if is_there and (output.is_symlink() or not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"--output {shown_name(str(output))} is there already: choose a new folder")


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """An empty folder that becomes `output` when the block ends well, and is removed when it does not.

    Only a kill leaves it; the next one for the same place begins by emptying it.

    Raises:
        LockedError: another process makes the same folder.
        StorageError: the file system refused.
    """
    folder = output.absolute().parent / f".{output.name}.merging"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _hold(descriptor, output)
            try:
                _empty(folder)
                yield folder
                sync(folder)
                folder.rename(output)
                sync(folder.parent)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise storage_error(output, error) from error


def _hold(descriptor: int, output: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # freed by the kernel however this process ends
    except BlockingIOError:
        raise LockedError(f"another command makes {output}: wait for it, or stop it first") from None


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
