"""Owns the names inside a job folder.

The folder is the dataset: what opens a folder of Parquet files sees the parts of OUT and nothing else. So everything
else is in one folder that readers skip: pandas, PyArrow and Spark skip names that begin with `_` or `.`, Hugging Face
`datasets` those that begin with `__` or `.`; Polars and DuckDB take a pattern, `OUT/*.parquet`.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from batchcap.core.atomic import remove_leftovers, storage_error, sync
from batchcap.core.errors import UsageError
from batchcap.core.jobfolder import STATE, STATE_2, has_folder, is_job_folder
from batchcap.core.text import printable_name

FORMAT_VERSION = 3
MAX_ATTEMPTS = 20
ATTEMPT_PAUSE_S = 0.02
CAPTIONS_2 = "captions"  # the folder of the parts in format 2


def alike(path: Path) -> str:
    """Job folders beside a path whose names are like its own, as the end of a message; empty where there are none."""
    try:
        names = [one.name for one in path.absolute().parent.iterdir() if is_job_folder(one)]
    except OSError:
        names = []
    found = get_close_matches(path.name, names)
    return f"; did you mean {', '.join(found)}?" if found else ""


@dataclass(frozen=True, slots=True)
class JobFolder:
    """A job folder.

    Attributes:
        path: OUT.
        format_version: 3, or 2 where an earlier batchcap made it; such a folder stays as it is.
    """

    path: Path
    format_version: int = field(init=False, default=FORMAT_VERSION)

    def __post_init__(self) -> None:
        if has_folder(self.path, STATE_2) and not has_folder(self.path, STATE):
            object.__setattr__(self, "format_version", 2)
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
            for _attempt in range(MAX_ATTEMPTS):
                with suppress(FileNotFoundError):  # another run that begins, too, has removed what it had made to try
                    return cls._make(path)
                time.sleep(ATTEMPT_PAUSE_S)
            return cls._make(path)
        except OSError as error:
            raise storage_error(path, error) from None

    @classmethod
    def _make(cls, path: Path) -> "JobFolder":
        # The state folder may be there by now: another run begins, too.
        if path.is_dir() and not is_job_folder(path) and any(one.name != STATE for one in path.iterdir()):
            raise UsageError(f"--output {path} holds other files: choose an empty or new folder")
        folder = cls(path)
        made = [one for one in (path, *path.absolute().parents) if not one.exists()]
        folder.state_path.mkdir(parents=True, exist_ok=True)
        folder.captions_path.mkdir(exist_ok=True)
        # Or a power cut could take a folder away together with what is durable inside it.
        holders = [path, path.absolute().parent, *(one.absolute().parent for one in made)]
        for one in dict.fromkeys(holders):
            sync(one)
        return folder

    @classmethod
    def open_existing(cls, path: Path) -> "JobFolder":
        """The job folder at `path`.

        Raises:
            UsageError: it is none.
        """
        if not is_job_folder(path):
            raise UsageError(
                f"{path} is not a job folder (no {STATE} in it): give the --output of a caption job{alike(path)}"
            )
        return cls(path)

    @property
    def state_path(self) -> Path:
        """The folder with everything but the parts (in format 2 not all of it)."""
        return self.path / (STATE if self.format_version > 2 else STATE_2)

    @property
    def captions_path(self) -> Path:
        """The folder with the parts."""
        return self.path if self.format_version > 2 else self.path / CAPTIONS_2

    @property
    def _reports_path(self) -> Path:
        """The folder with what people read beside the captions."""
        return self.state_path if self.format_version > 2 else self.path

    @property
    def job_path(self) -> Path:
        """The configuration and fingerprint."""
        return self.state_path / "job.json"

    @property
    def journal_path(self) -> Path:
        """Plan, and rows not in a part yet."""
        return self.state_path / "journal.sqlite"

    @property
    def lock_path(self) -> Path:
        """Held by the run at work."""
        return self.state_path / "lock"

    @property
    def stats_path(self) -> Path:
        """Throughput over time."""
        return self._reports_path / "stats.parquet"

    @property
    def summary_path(self) -> Path:
        """How the last run ended."""
        return self._reports_path / "summary.json"

    @property
    def run_card_path(self) -> Path:
        """How the last run ended, as a page for people."""
        return self._reports_path / "RUN.md"

    @property
    def report_path(self) -> Path:
        """The page of `batchcap report`, unless another place is asked for."""
        return self._reports_path / "report.html"

    def part_path(self, seq: int) -> Path:
        """The part file of a shard."""
        return self.captions_path / f"part-{seq:05d}.parquet"

    def part_paths(self) -> list[Path]:
        """The part files that are there, in manifest order."""
        return sorted(self.captions_path.glob("part-*.parquet"), key=lambda path: (len(path.name), path.name))

    def remove_results(self) -> None:
        """Delete parts and journal, for a job that starts over; call it with the lock held.

        The journal goes last, its log before it: a folder with parts and no journal could not be resumed, and an old
        log must not meet the next journal.

        Raises:
            StorageError: the file system refused.
        """
        journals = [self.journal_path.with_name(self.journal_path.name + end) for end in ("-wal", "-shm", "")]
        for path in (*self.part_paths(), *journals):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise storage_error(path, error) from error

    def remove_leftovers(self) -> None:
        """Delete what a killed run left half-written; call it with the lock held."""
        for folder in {self.path, self.captions_path, self.state_path}:
            remove_leftovers(folder)
