"""Owns what the members of an archive mean: which sample one is of, what it is in it, and what is passed over."""

from typing import NamedTuple

from batchcap.core.errors import ErrorKind
from batchcap.core.text import printable_name
from batchcap.inputs.cells import MAX_PATH
from batchcap.inputs.files import ImageFiles
from batchcap.inputs.suffix import RAW_SUFFIXES

# Members beside an image that are columns, named by their extension.
SIDECARS = ("txt", "json", "cls", "caption", "text")
CLASS = "cls"
KEY_COLUMN = "__key__"
# No class number is longer.
MAX_CLASS_BYTES = 32

RowFault = tuple[ErrorKind, str]


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        name: its path in the archive, as text that may be written.
        offset: of a tar the byte (of the unpacked archive) that its content begins with, of a zip that of its header.
        size: bytes of its content.
        fault: why it can't be read; None where nothing is known against it.
        is_cut: whether the archive ends inside of it.
        content: what is in it, if it is a class that is short enough to be a number.
        packed: bytes that it takes in a zip archive.
        method: how it is packed in a zip archive.
        crc: its checksum there.
    """

    name: str
    offset: int
    size: int
    fault: RowFault | None = None
    is_cut: bool = False
    content: bytes | None = None
    packed: int = 0
    method: int = 0
    crc: int = 0


class Damage(NamedTuple):
    """What ends the reading of an archive before its end: the last thing that is known of it.

    Attributes:
        offset: byte that it begins with.
        reason: what is wrong there.
    """

    offset: int
    reason: str


def member_name(name: str) -> str:
    r"""A member's path as text: bytes that are not UTF-8 as `\xNN`, without `./` at its beginning, and not endless."""
    text = printable_name(name)
    while text.startswith("./"):
        text = text[2:].lstrip("/")
    return text[:MAX_PATH]


def is_passed_over(name: str) -> bool:
    """Whether a member is nothing that a person has put there: hidden, or what macOS keeps beside files."""
    if not name.startswith((".", "__MACOSX/")) and "/." not in name and "/__MACOSX/" not in name:
        return False
    parts = name.split("/")
    return "__MACOSX" in parts or any(part.startswith(".") and part not in {".", ".."} for part in parts)


def key_and_extension(name: str) -> tuple[str, str]:
    """WebDataset's rule: the path up to the first dot of the base name, and what follows it, in lower case."""
    start = name.rfind("/") + 1
    dot = name.find(".", start + 1)
    return (name, "") if dot < 0 else (name[:dot], name[dot + 1 :].lower())


def is_image(extension: str, *, with_raws: bool = True) -> bool:
    """Whether an extension, or the end of a compound one (`left.jpg`), is that of an image.

    Args:
        extension: without its dot, in lower case.
        with_raws: whether a camera raw file is one, where its reader is there.
    """
    suffix = f".{extension.rpartition('.')[2]}"
    return suffix in ImageFiles.suffixes and (with_raws or suffix not in RAW_SUFFIXES)
