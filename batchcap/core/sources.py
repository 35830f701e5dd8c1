"""Owns what rows come from: a source, the stretch of it that is planned together, and where one image lies."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Bytes:
    """An encoded image that is here already."""

    data: bytes


@dataclass(frozen=True, slots=True)
class FileAt:
    """An encoded image in a file: all of it, or a range of its bytes.

    Attributes:
        path: the file.
        offset: byte of the file that the image begins with.
        size: bytes of the image; None: all from `offset` to the end of the file.
        if_missing: what the error message says besides, if there is no such file.
        version: of a file at an address, which may have another one by the time that it is read; empty: any.
    """

    path: str
    offset: int = 0
    size: int | None = None
    if_missing: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class Address:
    """An image that would have to be fetched, which the job is not to do, or can't: reading it is refused."""

    url: str


ImageRef = Bytes | FileAt | Address


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the inputs.

    Attributes:
        id: its name in the output; valid text whatever the file's name is.
        path: absolute path.
        kind: the name of the reader that it has, as plans store it.
        rows: how many it has; 1 for an image file.
        size_bytes: its size when it was found; 0 where it could not be looked at.
        mtime_ns: time of its last change then; 0 where it could not be looked at.
        is_metadata: whether it describes images beside it, and counts only where a plan has it already.
    """

    id: str
    path: Path
    kind: str
    rows: int
    size_bytes: int = 0
    mtime_ns: int = 0
    is_metadata: bool = False


class Piece(NamedTuple):
    """Consecutive rows of the job that are of one source.

    Attributes:
        first_row: in the job.
        source_id: the source's id.
        path: of the source.
        kind: of the source.
        start: the first of the rows inside the source.
        rows: how many.
    """

    first_row: int
    source_id: str
    path: str
    kind: str
    start: int
    rows: int
