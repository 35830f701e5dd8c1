"""Owns how small files of forms are looked at and written where they are to be: on this machine, or at an address."""

import os
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path

from batchcap.core.address import address_of
from batchcap.core.atomic import Leftovers, storage_error, write_many
from batchcap.core.errors import UsageError
from batchcap.inputs.columns import shown
from batchcap.outputs.ledger import digest_of
from batchcap.outputs.uploads import Uploads, at_once, result_of

# What is larger is neither a caption nor a page with some.
MAX_BYTES = 1 << 24


class FileNow:
    """A file that is there.

    Attributes:
        size_bytes: its size.
        is_own: whether it is certain that batchcap has written it as it is; where it is not, the ledger may know.
        is_here: whether it is on this machine.
    """

    def __init__(self, size_bytes: int, read: Callable[[], bytes], own_digest: str = "", *, is_here: bool) -> None:
        self.size_bytes = size_bytes
        self.is_here = is_here
        self.is_own = bool(own_digest)
        self._own_digest = own_digest
        self._read = read

    @cached_property
    def content(self) -> bytes:
        """What it holds, up to one byte more than `MAX_BYTES`; at an address it is fetched.

        Raises:
            StorageError, NetworkError: it can't be read.
        """
        return self._read()

    @property
    def is_too_large(self) -> bool:
        """Whether `content` is not all of it."""
        return self.size_bytes > MAX_BYTES

    @property
    def digest(self) -> str:
        """Digest of its content; raises as `content`."""
        return self._own_digest or digest_of(self.content)


class Files:
    """Small files of a form, by their paths; one at an address has the path that stands for it (`core.address`)."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads
        self._leftovers = Leftovers()

    def prepare(self, paths: Iterable[Path]) -> None:
        """Be told which files `now` will be asked for: what is at addresses is looked at together.

        Raises:
            StorageError, NetworkError: the store can't be asked.
            UsageError: addresses are not to be asked.
        """
        self._uploads.look_at(address for path in paths if (address := address_of(path)) is not None)

    def now(self, path: Path) -> FileNow | None:
        """A file; None where there is none.

        Raises:
            UsageError: something else has its name; also as `prepare`.
            StorageError: it can't be read.
            NetworkError: as `prepare`.
        """
        address = address_of(path)
        if address is None:
            content = _read(path)
            return None if content is None else FileNow(len(content), lambda: content, is_here=True)
        found = self._uploads.found(address)
        if found is None:
            return None
        size_bytes = found.look.size_bytes or 0
        return FileNow(size_bytes, lambda: self._fetch(address), found.own_digest, is_here=False)

    @staticmethod
    def fetch(several: Iterable[FileNow]) -> None:
        """Read the contents of those that are at addresses, some at once; raises as `FileNow.content`."""
        for outcome in at_once([one for one in several if not one.is_here], lambda one: one.content):
            result_of(outcome)

    def is_there(self, path: Path) -> bool:
        """Whether there is anything of that name; raises as `prepare`."""
        address = address_of(path)
        return os.path.lexists(path) if address is None else self._uploads.found(address) is not None

    def identity(self, path: Path) -> object | None:
        """What two names of one file have in common; None where there is none. Raises as `prepare`."""
        address = address_of(path)
        if address is None:
            try:
                status = path.stat()
            except OSError:
                return None
            return status.st_dev, status.st_ino
        return None if self._uploads.found(address) is None else address

    def remove_leftovers(self, paths: Iterable[Path]) -> None:
        """Remove what killed processes left of earlier tries to write these files; objects are never there in part.

        Raises:
            StorageError: the file system refused.
        """
        self._leftovers.remove(path for path in paths if address_of(path) is None)

    def write(self, contents: Mapping[Path, bytes]) -> None:
        """Make each path hold its data, whole or not at all.

        Raises:
            StorageError: the file system or the store refused; some of them may have been written.
            NetworkError, UsageError: as `prepare`.
        """
        here, there = dict[Path, bytes](), dict[str, bytes]()
        for path, content in contents.items():
            address = address_of(path)
            if address is None:
                here[path] = content
            else:
                there[address] = content
        if here:
            write_many(here)
        if there:
            self._uploads.put(there)

    def _fetch(self, address: str) -> bytes:
        return self._uploads.read(address, MAX_BYTES)


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise UsageError(f"{shown(path)} is a folder, where a caption file is to be: move it away") from None
    except OSError as error:
        raise storage_error(path, error) from error
