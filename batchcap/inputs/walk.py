"""Owns which files lie below a folder or match a pattern: order, links, hidden names, folders of batchcap itself."""

import glob
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from batchcap.core.jobfolder import is_job_folder, is_own_dataset
from batchcap.core.text import shown_name
from batchcap.inputs.braces import without_ranges
from batchcap.inputs.storage import absolute, as_path, has_magic, is_folder

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Walk:
    """A search for files, which enters neither hidden folders nor those that batchcap has written.

    Attributes:
        exclude: real path of a folder that is left out without a word: the job's own output.
        job_folders: real paths of the job folders that were found and skipped.
        datasets: those of the folders with images that batchcap has written, found below an input and skipped.
    """

    exclude: str
    job_folders: set[str] = field(default_factory=set)
    datasets: set[str] = field(default_factory=set)

    def below(self, folder: str) -> Iterator[str]:
        """Relative paths of all files below a folder, in the order of their bytes.

        Links to folders are followed, but never in a circle. No more is held than the names in one folder and in those
        above it.
        """
        seen: set[tuple[int, int]] = set()
        trail = [("", iter(self._names(folder, seen)))]
        while trail:
            below, names = trail[-1]
            name = next(names, None)
            if name is None:
                trail.pop()
                continue
            relative = below + os.fsdecode(name)
            if name.endswith(b"/"):
                trail.append((relative, iter(self._names(os.path.join(folder, relative), seen))))
            else:
                yield relative

    def _names(self, folder: str, seen: set[tuple[int, int]]) -> list[bytes]:
        """What is in a folder; a folder's name ends with a slash, so that the names sort as the paths below them do.

        Bytes: they take half the memory of text, and their order is the one wanted.
        """
        names: list[bytes] = []
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                return names
            seen.add((status.st_dev, status.st_ino))
            if is_job_folder(Path(folder)):
                self.job_folders.add(os.path.realpath(folder))
                return names
            with os.scandir(os.fsencode(folder)) as entries:
                for entry in entries:
                    if entry.name.startswith(b"."):
                        continue
                    if not _is_folder(entry):
                        names.append(entry.name)
                    elif self._may_be_entered(os.fsdecode(entry.path)):
                        names.append(entry.name + b"/")
        except OSError as error:
            log.warning(
                "can't look into the folder %s (%s): what is in it is left out", shown_name(folder), error.strerror
            )
        names.sort()
        return names

    def _may_be_entered(self, folder: str) -> bool:
        real = os.path.realpath(folder)
        if is_own_dataset(Path(real)):
            self.datasets.add(real)
            return False
        return real != self.exclude

    def matches(self, pattern: str, base: str) -> list[str]:
        """Paths that a pattern matches, in order.

        Without those below `exclude`, and, unless the pattern asks for parts, those in job folders below `base`.
        `**` walks in circles where a link leads back up: of several ways into one folder only the shortest counts.
        """
        matches = sorted(glob.glob(pattern, recursive=True), key=os.fsencode)
        real = {parent: os.path.realpath(parent) for parent in {os.path.dirname(path) for path in matches}}
        shortest: dict[str, str] = {}
        for parent in sorted(real, key=lambda name: (len(name), os.fsencode(name))):
            shortest.setdefault(real[parent], parent)
        kept = [
            path
            for path in matches
            if shortest[real[parent := os.path.dirname(path)]] == parent
            and not f"{real[parent]}{os.sep}".startswith(f"{self.exclude}{os.sep}")
            and os.path.join(real[parent], os.path.basename(path)) != self.exclude
        ]
        if asks_for_parts(pattern):
            return kept
        parents = {os.path.dirname(path) for path in kept}
        inside = {parent for parent in parents if self._is_in_job_folder(parent, base)}
        return [path for path in kept if os.path.dirname(path) not in inside]

    def _is_in_job_folder(self, folder: str, base: str) -> bool:
        here = base
        for name in os.path.relpath(folder or os.curdir, base).split(os.sep):
            here = os.path.join(here, name)
            if name == os.curdir:
                continue
            for is_ours, skipped in ((is_job_folder, self.job_folders), (is_own_dataset, self.datasets)):
                if is_ours(Path(here)):
                    skipped.add(os.path.realpath(here))
                    return True
        return False


def asks_for_parts(pattern: str) -> bool:
    """Whether a pattern is meant for the part files of job folders."""
    return os.path.basename(pattern).startswith("part-")


def folder_above(given: str) -> str:
    """The folder above the first range of numbers or wildcard of an input."""
    above = os.path.dirname(without_ranges(as_path(given))) or os.curdir
    return fixed_part(above) if has_magic(above) else above


def searched_folders(inputs: Sequence[str]) -> list[Path]:
    """The folders that are searched for images, or hold those that are named: above them nothing is looked at."""
    paths = ((given, as_path(given)) for given in inputs)
    return [Path(absolute(path if is_folder(path) else folder_above(given))) for given, path in paths]


def fixed_part(pattern: str) -> str:
    """The folder above the first wildcard: ids are relative to it."""
    parts = pattern.split(os.sep)
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return os.sep.join(parts[:fixed]) or (os.sep if pattern.startswith(os.sep) else ".")


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: its row says what is wrong
        return False
