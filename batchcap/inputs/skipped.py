"""Owns what is skipped while sources are found: the counts, and what a person is told of them."""

import logging
from collections import Counter
from dataclasses import dataclass, field

from batchcap.core.text import shown_name
from batchcap.inputs.registry import READERS
from batchcap.inputs.suffix import NOT_READ

_SHOWN_SUFFIXES = 5


@dataclass(slots=True)
class Skipped:
    """What is no source, of one input or of several.

    Attributes:
        images: files of known image types that can't be read, by suffix; one that two inputs lead to counts twice.
        others: files that are neither images nor Parquet files, by suffix.
        internal: files that a Parquet writer has left unfinished or uses inside.
        job_folders: real paths of the job folders.
        datasets: real paths of the folders with images that batchcap has written.
    """

    images: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    internal: int = 0
    job_folders: set[str] = field(default_factory=set)
    datasets: set[str] = field(default_factory=set)

    def add(self, other: "Skipped") -> None:
        """Count all that another one has, too."""
        self.images.update(other.images)
        self.others.update(other.others)
        self.internal += other.internal
        self.job_folders |= other.job_folders
        self.datasets |= other.datasets

    def lines(self) -> list[tuple[int, str]]:
        """Level for the log and text of each kind that was skipped."""
        lines = []
        if self.images:
            text = f"{_count(self.images.total(), 'image')} skipped of types that can't be read ({_kinds(self.images)})"
            lines.append((logging.WARNING, f"{text}: convert to JPEG or PNG what is to be captioned"))
        if self.others:
            text = f"{_count(self.others.total(), 'other file')} skipped ({_kinds(self.others)})"
            lines.append((logging.WARNING, text))
        if self.internal:
            text = f"{_count(self.internal, 'file')} skipped that Parquet writers leave unfinished or use inside"
            lines.append((logging.INFO, f"{text} (names that begin with _)"))
        if self.job_folders:
            lines.append((logging.INFO, f"{_count(len(self.job_folders), 'job folder')} of batchcap skipped"))
        if self.datasets:
            text = f"{_count(len(self.datasets), 'folder')} skipped that batchcap has written itself"
            lines.append((logging.INFO, f"{text}: name one as an input to caption what is in it"))
        return lines

    def nothing_found(self, name: str) -> str:
        """The error message for an input in which all was skipped."""
        none = " and ".join(f"no {reader.noun}" for reader in READERS.values())
        text = "; ".join([f"{none} in {shown_name(name)}", *(line for _, line in self.lines())])
        if self.others:
            ((suffix, _count),) = self.others.most_common(1)
            advice = NOT_READ.get(suffix)
            return f"{text}. A {suffix} file {advice}" if advice else f"{text}. Name a file itself if it is an image"
        if self.internal:
            return f"{text}. Name a Parquet file itself to take it as it is"
        return f"{text}: name a folder or a pattern that has some"


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _kinds(suffixes: Counter[str]) -> str:
    most = suffixes.most_common(_SHOWN_SUFFIXES)
    kinds = ", ".join(f"{suffix or 'no extension'} {count}" for suffix, count in most)
    return kinds if len(most) == len(suffixes) else f"{kinds}, …"
