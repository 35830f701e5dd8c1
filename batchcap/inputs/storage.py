"""Owns how files of inputs are reached, wherever they lie: on this machine, or at addresses that the job may fetch.

A path stands for either (`core.address`). All that a run reads of one file at an address is of the version that it saw
first, so that rows never come from two.
"""

import glob
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple

from batchcap.core.address import address_of, canonical, file_name, is_remote, is_web, path_of
from batchcap.core.errors import UsageError
from batchcap.core.text import shown_name

_MAX_HELD = 4096


class FileStatus(NamedTuple):
    """What a file looks like without being read.

    Attributes:
        size_bytes: its size.
        changed_ns: time of its last change; at an address a number that stands for its version, 0 without one.
    """

    size_bytes: int
    changed_ns: int


class _Looks:
    """What this run saw of files at addresses, the last few thousand of them."""

    def __init__(self) -> None:
        self._held: dict[str, Any] = {}

    def at(self, address: str) -> Any:  # noqa: ANN401 - a `Look`; without addresses its module is not loaded
        from batchcap.remote.objects import look  # noqa: PLC0415

        if address not in self._held:
            self.remember(address, look(address))
        return self._held[address]

    def remember(self, address: str, look: Any) -> None:  # noqa: ANN401
        if len(self._held) >= _MAX_HELD:
            self._held.pop(next(iter(self._held)))
        self._held[address] = look

    def clear(self) -> None:
        self._held.clear()


_looks = _Looks()
look_again = _looks.clear
remember = _looks.remember


def as_path(given: str) -> str:
    """An input as a person wrote it, as a path: `~` is followed, and an address is as sources have it.

    Raises:
        UsageError: it is an address that a path can't hold.
    """
    if not is_remote(given):
        return os.path.expanduser(given)
    path = path_of(canonical(given))
    if path is None:
        raise UsageError(f"{shown_name(given)} has `//` or `..` in it, which batchcap can't keep: name it without")
    return str(path)


def has_magic(path: str) -> bool:
    """Whether a path is a pattern; that of a web server never is."""
    address = address_of(path)
    return glob.has_magic(path) and not (address is not None and is_web(address))


def absolute(path: str) -> str:
    """A path as sources have it."""
    return path if address_of(path) else os.path.abspath(path)


def shown_path(path: str | PurePath) -> str:
    """A path as people write it."""
    return address_of(path) or str(path)


def name_in(path: str) -> str:
    """The last name in a path, without the query of an address."""
    address = address_of(path)
    return os.path.basename(path) if address is None else file_name(address)


def open_binary(path: Path) -> BinaryIO:
    """A file, for reading from anywhere.

    Raises:
        OSError: it can't be read; also as `remote.attempts.attempt`.
        UsageError, NetworkError: it is at an address and can't be had.
    """
    address = address_of(path)
    if address is None:
        return path.open("rb")
    from batchcap.remote.file import open_remote  # noqa: PLC0415

    return open_remote(address, _looks.at(address))


def source_for_arrow(path: Path) -> Path | BinaryIO:
    """A file for PyArrow, which opens those of this machine itself; raises as `open_binary`."""
    return path if address_of(path) is None else open_binary(path)


def status_of(path: str | Path) -> FileStatus:
    """What a file looks like; raises as `open_binary`."""
    address = address_of(path)
    if address is None:
        status = os.stat(path)
        return FileStatus(status.st_size, status.st_mtime_ns)
    look = _looks.at(address)
    return FileStatus(look.size_bytes or 0, look.number)


def version_of(path: Path) -> str:
    """Which version of a file at an address this run reads; empty for one of this machine."""
    address = address_of(path)
    return "" if address is None else str(_looks.at(address).version)


def is_regular(path: Path) -> bool:
    """Whether a file can be read from: a pipe would be waited for without an end. Raises as `open_binary`."""
    return path.is_file() if address_of(path) is None else is_there(path)


def is_there(path: Path) -> bool:
    """Whether there is a file; raises as `open_binary`, but not where there is none."""
    address = address_of(path)
    if address is None:
        return path.exists()
    try:
        _looks.at(address)
    except FileNotFoundError:
        return False
    return True


def is_folder(path: str) -> bool:
    """Whether there is a folder; raises as `open_binary`, but not where there is none."""
    address = address_of(path)
    if address is None:
        return os.path.isdir(path)
    from batchcap.remote.listing import listing  # noqa: PLC0415

    try:
        return next(listing(address), None) is not None
    except FileNotFoundError:
        return False


def is_beside(path: Path) -> bool:
    """Whether a file is there that nobody named; web servers are not asked. Raises as `is_there`."""
    address = address_of(path)
    if address is None:
        return os.path.lexists(path)
    return not is_web(address) and is_there(path)


def names_in(folder: Path) -> list[str]:
    """Names of what lies in a folder, in no order; of a web server none.

    Raises:
        OSError: it can't be looked into.
    """
    address = address_of(folder)
    if address is None:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    from batchcap.remote.listing import listing  # noqa: PLC0415

    try:
        return [entry.name for entry in listing(address)]
    except FileNotFoundError:
        return []


def matches_in(folder: Path, pattern: str) -> Iterator[Path]:
    """What lies in a folder, or right below it, and matches a pattern of one or two names."""
    if address_of(folder) is None:
        yield from folder.glob(pattern)
        return
    below, _slash, name = pattern.rpartition("/")
    here = folder / below if below else folder
    yield from (here / one for one in names_in(here) if fnmatchcase(one, name))
