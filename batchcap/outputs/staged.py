"""Owns files on their way to an address: made in a folder of the job folder, put as objects, then gone from here.

That folder holds what was made and is not put yet: a part at most, or one file. What a kill leaves is thrown away.
"""

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from batchcap.config import Existing
from batchcap.core.address import address_of, file_name
from batchcap.core.atomic import storage_error
from batchcap.core.errors import UsageError
from batchcap.inputs.columns import shown
from batchcap.outputs.form import Job
from batchcap.outputs.uploads import Found

_LOCK_TIMEOUT_S = 10.0
_STAGED = "staged"
_MARK_BYTES = 1 << 16


def _short(target: str) -> str:
    return hashlib.sha256(target.encode()).hexdigest()[:16]


@contextmanager
def held(job: Job, target: str, where: Path) -> Iterator[None]:
    """Hold a place that is written: a run and `convert` may write it at once.

    Args:
        job: the job.
        target: the place in a form.
        where: the place, for messages.

    Raises:
        UsageError: another process writes it, and goes on.
        StorageError: the lock can't be made.
    """
    lock = FileLock(str(job.folder.state_path / f"output-{_short(target)}.lock"))
    try:
        lock.acquire(timeout=_LOCK_TIMEOUT_S)
    except Timeout:
        raise UsageError(f"{shown(where)} is being written by another batchcap: try again when it is done") from None
    except OSError as error:
        raise storage_error(Path(lock.lock_file), error) from error
    try:
        yield
    finally:
        lock.release()


class Staged:
    """The files of one form on their way to one address.

    Args:
        job: the job.
        target: the address in the form.
        address: of the folder that the files go to.
        existing: whether files of somebody else are replaced.

    Attributes:
        folder: of this machine, in which they are made.
    """

    def __init__(self, job: Job, target: str, address: str, existing: Existing) -> None:
        self._uploads = job.uploads
        self._address = address
        self._replaces = existing is Existing.REPLACE
        self._root = job.folder.state_path.absolute() / _STAGED / _short(target)
        self.folder = self._root / (file_name(address) or "root")

    @classmethod
    def of(cls, job: Job, target: str, where: Path, existing: Existing) -> "Staged | None":
        """For a place that is at an address; None for one of this machine."""
        address = address_of(where)
        return None if address is None else cls(job, target, address, existing)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The folder is there and empty, and is gone afterwards; only for who holds the place."""
        self._clear()
        try:
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise storage_error(self.folder, error) from error
        try:
            yield
        finally:
            self._clear()

    def _clear(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)

    def require_place(self) -> None:
        """Refuse an address that can't be written to; raises as `Uploads.require_place`."""
        self._uploads.require_place(self._address)

    def is_empty(self) -> bool:
        """Whether nothing lies there; raises as `Uploads.found`."""
        return self._uploads.is_empty(self._address)

    def found(self, name: str) -> Found | None:
        """What is there of that name; raises as `Uploads.found`."""
        return self._uploads.found(self._at(name))

    def own_content(self, name: str) -> bytes | None:
        """What is in a small object that batchcap has put there and nobody has changed; raises as `Uploads.found`."""
        found = self.found(name)
        return self._uploads.read(self._at(name), _MARK_BYTES) if found is not None and found.own_digest else None

    def is_foreign(self, name: str) -> bool:
        """Whether somebody else's object has that name; raises as `Uploads.found`."""
        found = self.found(name)
        return found is not None and not found.own_digest

    def put(self, names: Sequence[str]) -> None:
        """Put files that were made, and remove them here.

        Raises:
            UsageError: an object of somebody else is there, and is not to be replaced.
            StorageError, NetworkError: as `Uploads.put`.
        """
        self._uploads.look_at(map(self._at, names))
        if not self._replaces:
            for name in filter(self.is_foreign, names):
                raise UsageError(
                    f"{self._at(name)} is there already, and batchcap did not put it there as it is now: move it away, "
                    "name another place, or choose --existing replace"
                )
        self._uploads.put({self._at(name): self.folder / name for name in names})
        for name in names:
            path = self.folder / name
            try:
                path.unlink()
            except OSError as error:
                raise storage_error(path, error) from error

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects that batchcap has put there; raises as `Uploads.remove`."""
        self._uploads.remove([self._at(name) for name in names])

    def _at(self, name: str) -> str:
        return f"{self._address}/{name}"
