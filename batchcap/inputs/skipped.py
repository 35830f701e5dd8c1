"""Owns what is skipped while sources are found: the counts, and what a person is told of them."""

import logging
import os
from collections import Counter
from dataclasses import dataclass, field

from batchcap.core.text import shown_name
from batchcap.inputs.plugins import advice_for
from batchcap.inputs.registry import READERS, readers_by_suffix
from batchcap.inputs.suffix import NOT_READ

_SHOWN_SUFFIXES = 5


@dataclass(slots=True)
class Skipped:
    """What is no source, of one input or of several.

    Attributes:
        images: files of known image types that can't be read, by suffix; one that two inputs lead to counts twice.
        others: other files, by suffix, among them those of kinds that are taken where they are named only.
        raws: camera raw files beside an image of the same name.
        internal: files that a writer of tables has left unfinished or uses inside.
        job_folders: real paths of the job folders.
        datasets: real paths of the folders with images that batchcap has written.
    """

    images: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    raws: int = 0
    internal: int = 0
    job_folders: set[str] = field(default_factory=set)
    datasets: set[str] = field(default_factory=set)

    def add(self, other: "Skipped") -> None:
        """Count all that another one has, too."""
        self.images.update(other.images)
        self.others.update(other.others)
        self.raws += other.raws
        self.internal += other.internal
        self.job_folders |= other.job_folders
        self.datasets |= other.datasets

    def lines(self) -> list[tuple[int, str]]:
        """Level for the log and text of each kind that was skipped."""
        lines = []
        if self.images:
            text = f"{_count(self.images.total(), 'image')} skipped of types that can't be read ({_kinds(self.images)})"
            helps = dict.fromkeys(filter(None, map(advice_for, sorted(self.images))))
            advice = "; ".join(helps) or "convert to JPEG or PNG what is to be captioned"
            lines.append((logging.WARNING, f"{text}: {advice}"))
        if self.others:
            text = f"{_count(self.others.total(), 'other file')} skipped ({_kinds(self.others)})"
            tables = [suffix for suffix in self.others if suffix in readers_by_suffix()]
            hint = f"; name a {' or '.join(tables)} file itself to caption its rows" if tables else ""
            lines.append((logging.WARNING, text + hint))
        if self.raws:
            text = f"{_count(self.raws, 'camera raw file')} skipped with an image of the same name beside it"
            lines.append((logging.INFO, f"{text}: name them to caption them, too, as in '**/*.dng'"))
        if self.internal:
            text = f"{_count(self.internal, 'file')} skipped that writers of tables leave unfinished or use inside"
            lines.append((logging.INFO, f"{text} (names that begin with _)"))
        if self.job_folders:
            lines.append((logging.INFO, f"{_count(len(self.job_folders), 'job folder')} of batchcap skipped"))
        if self.datasets:
            text = f"{_count(len(self.datasets), 'folder')} skipped that batchcap has written itself"
            lines.append((logging.INFO, f"{text}: name one as an input to caption what is in it"))
        return lines

    def nothing_found(self, name: str) -> str:
        """The error message for an input in which all was skipped."""
        none = " and ".join(f"no {reader.noun}" for reader in READERS.values() if reader.found_in_folders)
        text = "; ".join([f"{none} in {shown_name(name)}", *(line for _, line in self.lines())])
        to_name = [suffix for suffix, _count in self.others.most_common() if suffix in readers_by_suffix()]
        if to_name:
            pattern = shown_name(os.path.join(name, "**", f"*{to_name[0]}"))  # noqa: PTH118 - as the person wrote it
            return f"{text}. To caption what is in {to_name[0]} files, name them, in quotes: '{pattern}'"
        if self.others:
            if any(suffix in readers_by_suffix() for suffix in self.others):
                return text  # the line of other files has the advice
            ((suffix, _count),) = self.others.most_common(1)
            advice = NOT_READ.get(suffix)
            return f"{text}. A {suffix} file {advice}" if advice else f"{text}. Name a file itself if it is an image"
        if self.internal:
            return f"{text}. Name a file itself to take it as it is"
        return f"{text}: name a folder or a pattern that has some"


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _kinds(suffixes: Counter[str]) -> str:
    most = suffixes.most_common(_SHOWN_SUFFIXES)
    kinds = ", ".join(f"{suffix or 'no extension'} {count}" for suffix, count in most)
    return kinds if len(most) == len(suffixes) else f"{kinds}, …"
