"""Owns the source: one file that rows come from, and how its name becomes text."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from batchcap.core.text import printable_name


class SourceKind(StrEnum):
    """What a source is."""

    IMAGE = "image"
    PARQUET = "parquet"


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the inputs.

    Attributes:
        id: its name in the output; valid text whatever the file's name is.
        path: absolute path.
        kind: an image, or a Parquet file of images.
        rows: 1, or the rows of the Parquet file.
        size_bytes: its size when it was found; 0 where it could not be looked at.
        mtime_ns: time of its last change then; 0 where it could not be looked at.
    """

    id: str
    path: Path
    kind: SourceKind
    rows: int
    size_bytes: int = 0
    mtime_ns: int = 0


def source_name(path: str) -> str:
    r"""An absolute path as text that no other path has: itself, or a `file:` URI where it is not UTF-8.

    With `\xNN` in the place of a byte it would be the path of another file, whose name has these four characters.
    """
    return path if printable_name(path) == path else Path(path).as_uri()
