"""Owns what every kind of input gives to the rest of batchcap: the rows of a source, and its passthrough columns."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from batchcap.config import InputConfig
from batchcap.core.records import ImageRow
from batchcap.core.sources import Piece


@dataclass(frozen=True, slots=True)
class PassthroughColumns:
    """The columns of one source that the job carries.

    Attributes:
        path: of the source, or of what holds the values.
        schema: their names and types in the source; any may hold nulls.
        names: their names in the output.
    """

    path: Path
    schema: pa.Schema
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ColumnRun:
    """The passthrough columns of consecutive rows of a job.

    Attributes:
        path: what they are read from.
        rows: how many.
        columns: the columns; None where there are none.
    """

    path: Path
    rows: int
    columns: pa.Table | None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Rows in the place of which there is only a reason.

    Attributes:
        rows: how many.
        reason: names the file, and which part of it.
    """

    rows: int
    reason: str

    def __len__(self) -> int:
        return self.rows

    def slice(self, offset: int, length: int | None = None) -> "Unreadable":
        """Some of the rows, as `pyarrow.RecordBatch.slice` takes them."""
        rest = max(0, self.rows - offset)
        return Unreadable(rest if length is None else min(length, rest), self.reason)


class Reader(ABC):
    """One kind of input, as one job reads it. `inputs.registry` lists the kinds.

    Where an image is in a file, a row says so (`FileAt`), and the vision worker reads it. A reader may keep a file open
    for each of its methods: pieces of one source come one after the other, and their rows in order.

    Attributes:
        kind: its name in plans; a name that has been stored never changes.
        noun: what one such source is called in messages.
        suffixes: in lower case; files that are taken for such sources where they are found in a folder.
        found_in_folders: whether such files are taken where a folder is searched; else they are named, or matched by a
            pattern with their suffix.
        is_container: whether a source holds rows, and is counted, missing and changed as a whole. Else the file is the
            image.
    """

    kind: ClassVar[str]
    noun: ClassVar[str]
    suffixes: ClassVar[frozenset[str]]
    found_in_folders: ClassVar[bool] = True
    is_container: ClassVar[bool] = True

    def __init__(self, config: InputConfig, own_columns: frozenset[str] = frozenset()) -> None:
        """A reader.

        Args:
            config: how the job's inputs are read.
            own_columns: names in the output that passthrough columns can't have.
        """
        self.config = config
        self.own_columns = own_columns

    @classmethod
    def is_found(cls, path: str) -> bool:  # noqa: ARG003
        """Whether a file of this kind is taken that lies in a folder of the inputs."""
        return cls.found_in_folders

    @abstractmethod
    def count(self, path: Path) -> int:
        """Rows of a source.

        Raises:
            UsageError: it can't be read.
        """

    @staticmethod
    def warning(folder: Path) -> str | None:  # noqa: ARG004 - for kinds that need it
        """What a person should know before sources of a folder are read, said once a job; None where there is nothing.

        Asked for containers only.
        """
        return None

    @staticmethod
    def refusal(folder: Path) -> str | None:  # noqa: ARG004 - for kinds that need it
        """Why sources of a folder are not taken where a search has found them; None where they are.

        Asked for containers only, and not for files that are named or match a pattern.
        """
        return None

    @abstractmethod
    def rows(self, piece: Piece, indexes: Sequence[int]) -> Iterator[ImageRow]:
        """Some rows of a piece.

        Args:
            piece: the piece.
            indexes: of the wanted rows in the job, rising, at least one.

        Raises:
            UsageError: the source can't be read.
        """

    def passthrough(self, path: Path) -> PassthroughColumns | None:  # noqa: ARG002
        """Which columns of a source the job carries; None where it has none.

        Asked for each source that is found: a source that can't be used is told of before any work. The images in one
        folder have the same.

        Raises:
            UsageError: it can't be read, or lacks a column that was named.
        """
        return None

    def columns(self, piece: Piece) -> pa.Table | None:  # noqa: ARG002
        """The passthrough columns of a piece, types as in the source, names as in the output; None as `passthrough`.

        Raises:
            UsageError: the source can't be read.
        """
        return None

    def all_columns(self, path: Path) -> pa.Schema:  # noqa: ARG002
        """Every column of a source but the image, carried or not; asked for containers only.

        Raises:
            UsageError: it can't be read.
        """
        return pa.schema([])

    def column_runs(self, pieces: Sequence[Piece]) -> Iterator[ColumnRun]:
        """The passthrough columns of pieces that follow each other; for kinds that read those of several at once.

        Raises:
            UsageError: a source can't be read.
        """
        for piece in pieces:
            yield ColumnRun(Path(piece.path), piece.rows, self.columns(piece))

    def values(self, path: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch | Unreadable]:  # noqa: ARG002
        """All values of some of `all_columns`, in order, for a look at what is in them; names as in the source.

        Args:
            path: as `PassthroughColumns` has it.
            names: of the columns.

        Raises:
            UsageError: the source can't be read.
        """
        return iter(())
