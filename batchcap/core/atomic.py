"""Owns files that appear whole or not at all: temporary name, fsync, rename, fsync of the folder."""

import ctypes
import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path

from batchcap.core.errors import StorageError

TEMPORARY_SUFFIX = ".batchcap-tmp"
# Letters of a name that the name of its temporary file has; a name may be too long for more.
_MAX_NAME_PART = 40
# Temporary files that are open at once; a process may have 1024 open files.
_MAX_OPEN_FILES = 250
_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "your disk quota is used up: free some space",
    errno.EROFS: "the file system is read-only: choose another --output or mount it writable",
    errno.EACCES: "you may not write there: change the permissions or choose another --output",
    errno.EPERM: "you may not write there: change the permissions or choose another --output",
    errno.EFBIG: "the file would pass a size limit: raise `ulimit -f`, or choose another file system with --output",
    errno.EIO: "the disk reported an error: check it",
}


def storage_error(path: Path, error: OSError) -> StorageError:
    """What to tell a person whose job folder can't be written."""
    advice = _ADVICE.get(error.errno or 0, str(error))
    return StorageError(f"can't write {path}: {advice}. No finished row is lost; run the same command again to go on.")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, its file becomes `path`.

    Raises:
        StorageError: the file system refused.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with _claimed(temporary):
            yield temporary
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        with suppress(OSError):  # what stopped the writing may stop this too; the next run removes it
            temporary.unlink(missing_ok=True)


@contextmanager
def _claimed(temporary: Path) -> Iterator[None]:
    """Make a temporary file that `remove_leftovers` of another process leaves alone while this one lives."""
    descriptor = os.open(temporary, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_claimed(temporary: Path) -> bool:
    try:
        with temporary.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def write_many(contents: Mapping[Path, bytes]) -> None:
    """Make each path hold its data, whole or not at all; faster than one by one. Folders that are missing are made.

    Raises:
        StorageError: the file system refused; some of them may have been written.
    """
    for folder in {path.parent for path in contents}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(folder, error) from error
    waiting = iter(contents.items())
    while some := dict(islice(waiting, _MAX_OPEN_FILES)):
        _write_some(some)


def _write_some(contents: Mapping[Path, bytes]) -> None:
    with ExitStack() as claims:
        temporaries = {}
        for path, data in contents.items():
            # Process ids of two containers may be the same, and two paths may lead to one folder.
            token = secrets.token_hex(4)
            try:
                temporary = path.with_name(f".{_label(path.name)}.{token}{TEMPORARY_SUFFIX}")
                claims.callback(_unlink, temporary)
                claims.enter_context(_claimed(temporary))
                temporary.write_bytes(data)
                with suppress(FileNotFoundError):
                    temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            except OSError as error:
                raise storage_error(path, error) from error
            temporaries[temporary] = path
        try:
            for one in {temporary.stat().st_dev: temporary for temporary in temporaries}.values():
                _sync_all_with(one)
            for temporary, path in temporaries.items():
                temporary.replace(path)
            for folder in {path.parent for path in contents}:
                sync(folder)
        except OSError as error:
            raise storage_error(path, error) from error


def _label(name: str) -> str:
    """What the name of a temporary file says of the file that it is to be, never the same for two."""
    if len(name) <= _MAX_NAME_PART:
        return name
    return f"{name[:_MAX_NAME_PART]}~{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"


def _sync_all_with(path: Path) -> None:
    """Force all files of the file system that a file is on to the disk: a thousand fsyncs would take minutes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(descriptor)


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, whole or not at all.

    Raises:
        StorageError: the file system refused.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def sync(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk.

    Raises:
        OSError: the file system refused.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files that a killed process left in a folder; call it with the job's lock held.

    What a living process is writing stays: `report` writes without the job's lock.

    Raises:
        StorageError: the file system refused.
    """
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        try:
            if not _is_claimed(path):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(path, error) from error


class Leftovers:
    """Temporary files that killed processes left in folders of somebody else, where several jobs may write at once.

    Only those of files that are to be written are removed, so that jobs with other rows do not meet, also where a file
    system has no locks. Each folder is looked through once: there may be a million files in it.
    """

    def __init__(self) -> None:
        self._found: dict[Path, dict[str, list[Path]]] = {}

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove what is left of earlier tries to write these files.

        Raises:
            StorageError: the file system refused.
        """
        for path in paths:
            found = self._found.get(path.parent)
            if found is None:
                found = self._found[path.parent] = _temporaries_in(path.parent)
            for temporary in (one for name in {path.name, _label(path.name)} for one in found.pop(name, ())):
                try:
                    if not _is_claimed(temporary):
                        temporary.unlink(missing_ok=True)
                except OSError as error:
                    raise storage_error(temporary, error) from error


def _temporaries_in(folder: Path) -> dict[str, list[Path]]:
    """The temporary files in a folder, by what their names say of the files that they were to be."""
    found = defaultdict[str, list[Path]](list)
    with suppress(OSError), os.scandir(folder) as entries:  # not there yet, or not to be read
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith(TEMPORARY_SUFFIX):
                label = entry.name[1 : -len(TEMPORARY_SUFFIX)].rpartition(".")[0]
                found[label].append(folder / entry.name)
    return found
