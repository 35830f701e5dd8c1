"""Owns the names inside a job folder."""

import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from batchcap.errors import UsageError
from batchcap.manifest.source import printable_name
from batchcap.store.atomic import remove_leftovers, storage_error, sync

STATE = "_batchcap"
CAPTIONS = "captions"


def alike(path: Path) -> str:
    """Job folders beside a path whose names are like its own, as the end of a message; empty where there are none."""
    try:
        names = [one.name for one in path.absolute().parent.iterdir() if (one / STATE).is_dir()]
    except OSError:
        names = []
    found = get_close_matches(path.name, names)
    return f"; beside it there is {', '.join(found)}" if found else ""


@dataclass(frozen=True, slots=True)
class JobFolder:
    """A job folder that exists."""

    path: Path

    def __post_init__(self) -> None:
        # PyArrow takes a relative `a:b` for an address, and `~` for somebody's home.
        if self.path.parts and (self.path.parts[0].startswith("~") or ":" in self.path.parts[0]):
            object.__setattr__(self, "path", self.path.absolute())

    @classmethod
    def open_or_create(cls, path: Path) -> "JobFolder":
        """The job folder at `path`, made where there is none.

        Raises:
            UsageError: something else is there.
            StorageError: it can't be made.
        """
        name = printable_name(str(path))
        if name != str(path):
            raise UsageError(f"the name of --output {name} is not UTF-8: choose another")
        if path.exists() and not path.is_dir():
            raise UsageError(f"--output {path} is a file: choose a folder")
        try:
            if path.is_dir() and not (path / STATE).is_dir() and any(path.iterdir()):
                raise UsageError(f"--output {path} holds other files: choose an empty or new folder")
            (path / STATE).mkdir(parents=True, exist_ok=True)
            (path / CAPTIONS).mkdir(exist_ok=True)
            sync(path)  # or a power cut could take a folder away together with what is durable inside it
            sync(path.absolute().parent)
        except OSError as error:
            raise storage_error(path, error) from None
        return cls(path)

    @classmethod
    def open_existing(cls, path: Path) -> "JobFolder":
        """The job folder at `path`.

        Raises:
            UsageError: it is none.
        """
        if not os.path.isdir(path / STATE):  # noqa: PTH112 - False for names that no folder can have, too
            raise UsageError(
                f"{path} is not a job folder (no {STATE} in it): give the --output of a caption job{alike(path)}"
            )
        return cls(path)

    @property
    def job_path(self) -> Path:
        """The configuration and fingerprint."""
        return self.path / STATE / "job.json"

    @property
    def journal_path(self) -> Path:
        """Plan, and rows not in a part yet."""
        return self.path / STATE / "journal.sqlite"

    @property
    def lock_path(self) -> Path:
        """Held by the run at work."""
        return self.path / STATE / "lock"

    @property
    def stats_path(self) -> Path:
        """Throughput over time."""
        return self.path / "stats.parquet"

    @property
    def summary_path(self) -> Path:
        """How the last run ended."""
        return self.path / "summary.json"

    def part_path(self, seq: int) -> Path:
        """The part file of a shard."""
        return self.path / CAPTIONS / f"part-{seq:05d}.parquet"

    def part_paths(self) -> list[Path]:
        """The part files that are there, in manifest order."""
        return sorted((self.path / CAPTIONS).glob("part-*.parquet"), key=lambda path: (len(path.name), path.name))

    def remove_leftovers(self) -> None:
        """Delete what a killed run left half-written; call it with the lock held."""
        for folder in (self.path, self.path / CAPTIONS, self.path / STATE):
            remove_leftovers(folder)
