"""Owns the place of a job folder: whether one can be made there; a refused run leaves nothing of a new one."""

import errno
import os
import shutil
import stat
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from batchcap.core.atomic import storage_error
from batchcap.core.errors import UsageError
from batchcap.core.jobfolder import STATE, STATE_2, is_job_folder
from batchcap.store.folder import JobFolder

# What is wrong with the place itself. Other errors (a full disk, a server that is gone) may be over soon.
_ADVICE = {
    errno.EACCES: "you may not write in {}: change the permissions or choose another --output",
    errno.EPERM: "you may not write in {}: change the permissions or choose another --output",
    errno.EROFS: "the file system of {} is read-only: mount it writable or choose another --output",
    errno.ENAMETOOLONG: "a name below {} is too long: choose a shorter --output",
}
_OTHER_ERRORS = (errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)

# Runs that begin at one place at the same time see each other's trials come and go.
MAX_LOOKS = 20
LOOK_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job folder is, or is to be made.

    Attributes:
        path: the job folder.
        missing: it and its parents, as far as they are not there; the lowest first.
        is_new: whether no job has been begun there.
    """

    path: Path
    missing: tuple[Path, ...]
    is_new: bool

    @classmethod
    def of(cls, path: Path) -> "Place":
        """Look at a place, and try whether a job folder can be made there; what the trial makes is removed again.

        Raises:
            UsageError: none can be made there.
            StorageError: none can be made there now.
        """
        if Path(os.path.abspath(path)).name in (STATE, STATE_2):  # noqa: PTH100 - resolves `..`, and no link
            raise _refusal(path, f"{path.name} is reserved for a folder inside job folders")
        for _attempt in range(MAX_LOOKS):
            with suppress(FileNotFoundError):
                return cls._look_and_try(path)
            time.sleep(LOOK_PAUSE_S)
        there = next(one for one in (path, *path.parents) if os.path.exists(one))  # noqa: PTH110
        raise _refusal(path, f"no folder can be created in {there}")

    @classmethod
    def _look_and_try(cls, path: Path) -> "Place":
        """Look at a place once.

        Raises:
            FileNotFoundError: a folder has gone meanwhile, which another run's trial may have made; or, always, the
                file system takes none.
        """
        missing = []
        here = path
        while not os.path.exists(here):  # noqa: PTH110 - False also where it may not be looked at
            if os.path.islink(here):  # noqa: PTH114
                raise _refusal(path, f"{here} is a link to {here.readlink()}, which does not exist")
            missing.append(here)
            here = here.parent
        kind = here.stat().st_mode  # asked once: between two questions another run's trial may make and remove it
        if not stat.S_ISDIR(kind):
            raise _refusal(path, f"{here} is a {'file' if stat.S_ISREG(kind) else 'device'}, not a folder")
        place = cls(path, tuple(missing), is_new=not is_job_folder(path))
        if place.is_new:
            place._try(here)
        return place

    def _try(self, here: Path) -> None:
        made = []
        try:
            if not self.missing and any(self.path.iterdir()):
                return  # what else is in it is told when it is opened
            for folder in (*reversed(self.missing), self.path / STATE):
                folder.mkdir()
                made.append(folder)
        except FileExistsError:  # another run has just made it
            pass
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise
            if error.errno in _ADVICE:
                advice = _ADVICE[error.errno].format(here)
                raise UsageError(f"can't make the job folder {self.path}: {advice}") from None
            if error.errno in _OTHER_ERRORS:
                raise _refusal(self.path, f"no folder can be created in {here} ({error.strerror})") from None
            raise storage_error(self.path, error) from None
        finally:
            for folder in reversed(made):
                with suppress(OSError):  # another run has begun to use it
                    folder.rmdir()

    def once_held(self) -> "Place":
        """The same place, now that the lock of its folder is held: another run may have begun a job meanwhile."""
        return replace(self, is_new=self.is_new and not JobFolder(self.path).job_path.exists())

    def remove_if_new(self) -> None:
        """Remove what a run has made of a job folder that was not there before; call it with the lock held."""
        if not self.is_new:
            return
        folder = JobFolder(self.path)
        for name in (folder.summary_path, folder.run_card_path, folder.stats_path):
            with suppress(OSError):
                name.unlink(missing_ok=True)
        for inside in (folder.job_path.parent, folder.part_path(0).parent):
            if inside != self.path:
                shutil.rmtree(inside, ignore_errors=True)
        for made in self.missing:
            with suppress(OSError):  # it holds something else by now
                made.rmdir()


def _refusal(path: Path, reason: str) -> UsageError:
    return UsageError(f"can't make the job folder {path}: {reason}; choose another --output")
