"""Owns what a form of the captions is: its name, where it is written, and what was written."""

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from batchcap.config import OutputsConfig
from batchcap.core.records import CaptionRow, ImageRow, Shard, Status
from batchcap.core.row_counts import RowCounts
from batchcap.core.sources import Piece
from batchcap.outputs.ledger import Ledger
from batchcap.outputs.uploads import Uploads
from batchcap.store.folder import JobFolder
from batchcap.store.parts import part_metadata, read_part, readable_part

FAILED = "failed"
BESIDE_IMAGES = "beside the images"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the rows of a job's parts come from.

    Attributes:
        images: gives the rows of a shard, in order.
        pieces: gives the pieces of sources that make up a shard, in order.
    """

    images: Callable[[Shard], Iterator[ImageRow]]
    pieces: Callable[[Shard], list[Piece]]


class FinishedPart:
    """A part file with what may be known of its rows.

    Attributes:
        shard: the rows of the job that it holds.
        path: the file.
        counts: of its rows.
    """

    def __init__(self, shard: Shard, path: Path, counts: RowCounts, origin: Origin) -> None:
        self.shard = shard
        self.path = path
        self.counts = counts
        self._origin = origin

    @cached_property
    def rows(self) -> list[CaptionRow]:
        """Its rows, in order."""
        return read_part(self.path)

    @cached_property
    def metadata(self) -> dict[str, str]:
        """What it says of itself."""
        return part_metadata(self.path)

    def table(self) -> pa.Table:
        """All its columns, those of the input among them.

        Raises:
            StorageError: the file can't be read, or is damaged.
        """
        with readable_part(self.path):
            return pq.read_table(self.path)

    def images(self) -> Iterator[ImageRow]:
        """Where the images of its rows are, in order; it ends early where an input is gone.

        Raises:
            UsageError: an input can't be read.
        """
        return self._origin.images(self.shard)

    def pieces(self) -> list[Piece]:
        """The pieces of sources that its rows come from, in order."""
        return self._origin.pieces(self.shard)

    @property
    def stamp(self) -> str:
        """Another text for another state of the file."""
        status = self.path.stat()
        return f"{status.st_size} {status.st_mtime_ns}"


@dataclass(slots=True)
class Written:
    """What was written in one form.

    Attributes:
        form: its name.
        where: in words.
        captions: captions that are there now.
        files: files that hold them.
        left_out: captions of unwanted verdicts, by verdict, and rows that failed.
        kept: files of others that were left as they are.
        collisions: captions whose file is that of another row.
        unplaced: captions of images that are no files of their own.
        changed: captions of images that are gone or others than those that were captioned.
        kept_texts: texts of others that were left as they are, inside of files.
        uncaptioned: images of pages that have no caption.
        unreachable: captions of images whose servers did not answer.
        too_long: captions whose file would have a longer name than file systems have.
    """

    form: str
    where: str
    captions: int = 0
    files: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    collisions: int = 0
    unplaced: int = 0
    changed: int = 0
    kept_texts: int = 0
    uncaptioned: int = 0
    unreachable: int = 0
    too_long: int = 0

    def add(self, other: "Written") -> None:
        """Count what was written besides."""
        self.captions += other.captions
        self.files += other.files
        self.left_out.update(other.left_out)
        self.kept += other.kept
        self.collisions += other.collisions
        self.unplaced += other.unplaced
        self.changed += other.changed
        self.kept_texts += other.kept_texts
        self.uncaptioned += other.uncaptioned
        self.unreachable += other.unreachable
        self.too_long += other.too_long

    def to_json(self) -> str:
        """For `of_json`."""
        return json.dumps({one.name: getattr(self, one.name) for one in fields(self)})

    @classmethod
    def of_json(cls, text: str) -> "Written":
        """What `to_json` gave."""
        stored = json.loads(text)
        return cls(**{**stored, "left_out": Counter(stored["left_out"])})

    def to_text(self) -> str:
        """In a line, for people."""
        parts = [f"{self.form}: {self.captions} captions in {self.files} file{'' if self.files == 1 else 's'}"]
        parts[0] += f" {self.where}"
        if self.left_out:
            parts.append(f"left out: {', '.join(f'{count} {name}' for name, count in sorted(self.left_out.items()))}")
        hint = f": name a folder ({self.form}:FOLDER)" if self.where == BESIDE_IMAGES else ""
        for count, text in (
            (self.kept, "files kept that were there already or were changed since"),
            (self.collisions, "not written, since another row has a file of the same name"),
            (self.unplaced, f"not written, since their images are no files of their own{hint}"),
            (self.changed, "not written, since their images are gone or have changed"),
            (self.kept_texts, "texts kept that somebody else wrote"),
            (self.uncaptioned, "images of pages without a caption"),
            (self.unreachable, "not written, since the servers of their images do not answer: run it again later"),
            (self.too_long, f"not written, since file names would be too long: {self.form}:FOLDER cuts them"),
        ):
            if count:
                parts.append(f"{count} {text}")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Job:
    """What a form may know of the job.

    Attributes:
        folder: the job folder.
        prompts: names of the prompts.
        ledger: which files batchcap has written.
        kinds: of the sources that its rows come from, as readers are called.
        uploads: what is at addresses.
    """

    folder: JobFolder
    prompts: tuple[str, ...]
    ledger: Ledger
    kinds: frozenset[str]
    uploads: Uploads


class Form(ABC):
    """One form, as one job writes it to one place. `outputs.registry` lists the forms.

    Attributes:
        name: as people type it.
        is_incremental: whether it is written part by part; else it is made anew as a whole.
        needs_all_rows: whether it can only be written once all rows of the job are done.
    """

    name: ClassVar[str]
    is_incremental: ClassVar[bool] = False
    needs_all_rows: ClassVar[bool] = False

    def __init__(self, job: Job, where: Path | None, config: OutputsConfig) -> None:
        self.job = job
        self.config = config
        self.given_where = where

    @property
    def reads_inputs(self) -> bool:
        """Whether the inputs are looked into once more."""
        return False

    @classmethod
    def variant(cls, config: OutputsConfig) -> "type[Form]":  # noqa: ARG003 - for forms that have some
        """The class that writes the form with these settings."""
        return cls

    def check(self, image_ids: Callable[[], Iterable[tuple[str, Path]]]) -> None:  # noqa: B027 - most need none
        """Look for what stands in the way, before any work.

        Args:
            image_ids: gives id and path of every image file of the job, as often as it is called.

        Raises:
            UsageError: something does.
        """

    @property
    def place(self) -> Path | None:
        """The file or folder that belongs to this form alone; None where others may be written there, too."""
        return None

    @abstractmethod
    def write(self, parts: Iterable[FinishedPart], *, skips_known: bool = False) -> Written:
        """Write parts: all that are finished, or, where the form is incremental, any of them.

        Args:
            parts: in their order.
            skips_known: whether a part that is as it was when it was written is not looked at again, where the form is
                incremental.

        Raises:
            StorageError: a part can't be read, or the form can't be written.
            UsageError: something stands in the way.
        """

    def write_part(self, part: FinishedPart) -> None:
        """Write a part that was just finished, where the form is incremental; `write` is called at the end, too.

        Raises:
            StorageError, UsageError: as `write` does.
        """
        self.write([part], skips_known=True)

    def left_out(self, counts: RowCounts) -> Counter[str]:
        """The captions of a part that are not written for their verdicts, and the rows that failed."""
        found = Counter({name: count for name, count in counts.verdicts.items() if name not in self.config.verdicts})
        if counts.failed:
            found[FAILED] = counts.failed
        return found


def wanted_answers(row: CaptionRow, prompts: tuple[str, ...], verdicts: tuple[str, ...]) -> list[tuple[str, str]]:
    """Prompt name and caption of a row's captions that have one of the verdicts."""
    if row.status is not Status.OK:
        return []
    return [
        (name, answer.caption or "")
        for name, answer in zip(prompts, row.answers, strict=True)
        if answer.verdict is not None and str(answer.verdict) in verdicts
    ]
