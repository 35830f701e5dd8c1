"""Owns what the text in a manifest's cell is: a path, an address, or nothing usable, and what to do about it."""

import base64
import os
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from batchcap.core.address import PROTOCOLS, address_of, canonical, is_remote, path_of
from batchcap.core.errors import ErrorKind, UsageError
from batchcap.core.sources import Address, Bytes, FileAt, ImageRef
from batchcap.core.text import is_address, one_line, shown_name
from batchcap.inputs.columns import shown
from batchcap.inputs.content import base64_image

# No path is longer on Linux; what a column of something else holds may be.
MAX_PATH = 4096
_SHOWN_LETTERS = 200
_MAX_NAME = 255
_QUOTES = "\"'`“”\u2018\u2019«»"
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_FILE_URI = re.compile(r"(?i)file:(//(localhost)?)?(?P<path>/[^/].*)", re.DOTALL)
_URL_SAFE = str.maketrans("-_", "+/")
_FETCHED = ", ".join(f"{protocol}://" for protocol in PROTOCOLS)
_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")
_VARIABLE = re.compile(r"\$\w|\$\{|%\w+%")


@dataclass(frozen=True, slots=True)
class PathBase:
    """What the paths of a manifest start from, and where they may lead.

    Attributes:
        folder: that relative paths start from.
        allowed_root: real path, or address, of the folder that paths must not lead out of; None: they may lead
            anywhere.
        may_fetch: whether addresses are fetched.
    """

    folder: Path
    allowed_root: str | None = None
    may_fetch: bool = False


def path_base(image_root: str | None, folder: Path, *, may_fetch: bool) -> PathBase:
    """The base of a manifest's paths.

    Args:
        image_root: the `--image-root` that was given.
        folder: of the manifest.
        may_fetch: whether addresses are fetched.

    Raises:
        UsageError: `--image-root` is no folder.
    """
    if not image_root:
        return PathBase(folder, None, may_fetch)
    if not is_remote(image_root):
        root = _image_root_at(image_root)
        return PathBase(root, str(root.resolve()), may_fetch)
    address = canonical(image_root)
    root_there = path_of(address) if may_fetch else None
    if root_there is None:
        what = "has `//` or `..` in it" if may_fetch else "is an address: give --allow-remote, too"
        raise UsageError(f"--image-root {shown_name(image_root)} {what}")
    return PathBase(root_there, address, may_fetch)


def image_of_text(cell: str, base: PathBase) -> ImageRef | tuple[ErrorKind, str]:
    """The image that a cell holds as base64 text or a `data:` URI, or where it is; or why there is none.

    Args:
        cell: the text.
        base: of the manifest's paths.
    """
    if (embedded := _embedded(cell, base.folder)) is not None:
        return embedded
    if (local := _path_of_uri(cell)) is not None:
        cell = local
    elif is_address(cell):
        return _image_at(cell, base) if base.may_fetch and is_remote(cell) else Address(cell)
    if (reason := why_no_path(cell)) is not None:
        return ErrorKind.MISSING, reason
    address = address_of(base.folder)
    return _file_at(cell, base) if address is None else _image_below(address, cell, base)


def _file_at(cell: str, base: PathBase) -> FileAt | tuple[ErrorKind, str]:
    """The image at a path of this machine."""
    folder, allowed_root = base.folder, base.allowed_root
    if "\\" in cell and not _WINDOWS.match(cell) and not os.path.lexists(os.path.join(folder, cell)):  # noqa: PTH118
        cell = cell.replace("\\", "/")
    file, hint = os.path.join(folder, cell), hint_at(cell)  # noqa: PTH118 - pathlib interns each name
    if allowed_root is not None and "\0" not in cell:  # with a NUL it is no path at all, as the image stage says
        real = os.path.realpath(file)
        if os.path.commonpath([real, allowed_root]) != allowed_root:
            reason = f"{shown_cell(cell)}: leads out of --image-root {shown(folder)}"
            return ErrorKind.REFUSED, f"{reason}; {hint}" if hint else reason
    return FileAt(file, if_missing=hint)


def _why_not_here(cell: str, allowed_root: str | None) -> str:
    """Why a path of this machine is not opened for a manifest that others may have written."""
    if allowed_root is not None:
        return f"{shown_cell(cell)}: leads out of --image-root {shown_name(allowed_root)}"
    return (
        f"{shown_cell(cell)}: is a path of this machine, and the manifest is not on it: give --image-root with the "
        "folder that its paths start from"
    )


def _image_below(address: str, cell: str, base: PathBase) -> FileAt | tuple[ErrorKind, str]:
    """The image at a path that starts from an address."""
    if cell.startswith("/"):
        return ErrorKind.REFUSED, _why_not_here(cell, base.allowed_root)
    protocol, _mark, rest = f"{address}/{cell.replace(chr(92), '/')}".partition("://")
    return _image_at(f"{protocol}://{posixpath.normpath(rest)}", base)


def _image_at(address: str, base: PathBase) -> FileAt | tuple[ErrorKind, str]:
    """The image at an address."""
    root = base.allowed_root
    if root is not None and not _plain_address(address).startswith(f"{root}/"):
        return ErrorKind.REFUSED, f"{shown_cell(address)}: leads out of --image-root {shown_name(root)}"
    return FileAt(address)


def _plain_address(address: str) -> str:
    """An address with `.` and `..` followed, as the server may do."""
    protocol, _mark, rest = unquote(address).partition("://")
    return f"{protocol.lower()}://{posixpath.normpath(rest)}"


def _embedded(cell: str, folder: Path) -> Bytes | tuple[ErrorKind, str] | None:
    """The image that a cell holds itself; None where it holds none."""
    text = cell.strip()
    if text[:5].lower() == "data:":
        header, _comma, content = text.partition(",")
        if not header.lower().endswith(";base64"):
            return Bytes(unquote_to_bytes(content))
        content = unquote(content)
    elif base64_image(text) is None:
        return None
    elif len(cell) <= _MAX_NAME and address_of(folder) is None and os.path.lexists(os.path.join(folder, cell)):  # noqa: PTH118
        return None  # the name of a file, whatever it looks like
    else:
        content = text
    packed = "".join(content.split()).translate(_URL_SAFE)
    try:
        return Bytes(base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True))
    except ValueError:
        return ErrorKind.CORRUPT, f"{shown_cell(cell)}: is base64 text that does not decode: it was cut or changed"


def _path_of_uri(cell: str) -> str | None:
    """The path that a `file:` URI of this machine names (RFC 8089); None where the cell is none."""
    match = _FILE_URI.match(cell)
    return unquote(match["path"]) if match else None


def _image_root_at(name: str) -> Path:
    """The folder that `--image-root` names.

    Raises:
        UsageError: it is none.
    """
    root = Path(name).expanduser().absolute()
    if not root.is_dir():
        raise UsageError(f"--image-root {shown_name(str(root))} is no folder: name the one that the paths start from")
    return root


def shown_cell(cell: str) -> str:
    """A cell in a message: cut, and on one line."""
    return one_line(cell if len(cell) <= _SHOWN_LETTERS else f"{cell[:_SHOWN_LETTERS]}…")


def why_no_path(cell: str) -> str | None:
    """The error message for a cell that is longer than any path."""
    if len(cell) <= MAX_PATH:
        return None
    hint = hint_at(cell) or "name the column that holds images or paths with --image-column"
    return f"{shown_cell(cell)}: {len(cell)} characters are no path; {hint}"


def why_no_file(address: str) -> str:
    """The error message for an address."""
    if address.lower().startswith("file:"):
        return f"{shown_cell(address)}: is a file:// address of another machine: write where the file is on this one"
    if is_remote(address):
        return f"{shown_cell(address)}: is an address; give --allow-remote to fetch it, or download it first"
    return f"{shown_cell(address)}: is an address that batchcap can't fetch ({_FETCHED} it can); download it first"


def hint_at(cell: str) -> str:
    """What is odd about a path that leads to no file, and what to do; empty where it looks like any other.

    A file may well have such a name: look whether it is there first.
    """
    bare = cell.strip().strip(_QUOTES).strip()
    if embedded := base64_image(bare):
        return f"the cell holds {embedded}: decode it to bytes first"
    if cell.startswith(("b'", 'b"')):
        return "the cell holds bytes written as text (b'…'): store the bytes themselves"
    if cell.strip()[:1] in {"[", "{"} and cell.strip()[-1:] in {"]", "}"}:
        return "the cell holds a list or an object as text: give each image a row of its own, with its path"
    oddities = [text for is_there, text in _oddities(cell, bare) if is_there]
    return f"the cell {', '.join(oddities)}" if oddities else ""


def _oddities(cell: str, bare: str) -> list[tuple[bool, str]]:
    trimmed = cell.strip("\0 \t\r\n\v\f\ufeff\xa0")
    is_of_windows = _WINDOWS.match(bare) is not None
    return [
        (not bare, "is blank: leave it null"),
        ("\0" in cell, "has a NUL character: remove it"),
        (bool(bare) and trimmed != cell and trimmed != cell.strip("\0"), "has blanks around the path: strip them"),
        (bool(bare) and trimmed.strip(_QUOTES) != trimmed, "has quotes around the path: remove them"),
        (is_address(bare) and not is_address(cell), "holds an address: download it first"),
        (
            bare.lower().startswith("file:") and not _FILE_URI.match(cell),
            "begins with file: and is no address of a file here",
        ),
        (bare.startswith("~"), "begins with ~, which is not expanded in manifests: write the whole path"),
        (_VARIABLE.search(bare) is not None, "has a variable, which is not expanded: write the whole path"),
        (is_of_windows, "holds a path of Windows: write where the file is on this system"),
        (_PERCENT.search(bare) is not None, "has characters written as %20, as in an address: decode them"),
    ]
