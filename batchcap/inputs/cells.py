"""Owns what is said of a manifest's cell that holds no usable path: what it holds instead, and what to do."""

import re

import pyarrow as pa

from batchcap.core.text import is_address, one_line
from batchcap.inputs.content import base64_image

# No path is longer on Linux; what a column of something else holds may be.
MAX_PATH = 4096
_SHOWN_LETTERS = 200
_QUOTES = "\"'`“”\u2018\u2019«»"
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")
_VARIABLE = re.compile(r"\$\w|\$\{|%\w+%")


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
    if embedded := base64_image(address):
        return f"the cell holds {embedded}, {len(address)} characters: decode it to bytes first"
    if address.lower().startswith("file:"):
        return f"{shown_cell(address)}: is a file:// address, which is not opened: write the path itself"
    return f"{shown_cell(address)}: batchcap works offline and fetches nothing; download it first"


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
        (bare.lower().startswith("file:"), "begins with file: and only paths are opened: write the path itself"),
        (bare.startswith("~"), "begins with ~, which is not expanded in manifests: write the whole path"),
        (_VARIABLE.search(bare) is not None, "has a variable, which is not expanded: write the whole path"),
        (is_of_windows, "holds a path of Windows: write where the file is on this system"),
        ("\\" in bare and not is_of_windows, "has back-slashes: paths use / on this system"),
        (_PERCENT.search(bare) is not None, "has characters written as %20, as in an address: decode them"),
    ]


def list_value(kind: pa.DataType) -> pa.DataType | None:
    """The type of a list's values; None where it is no list."""
    is_list = (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )
    return kind.value_type if is_list else None


def list_advice(value: pa.DataType) -> str:
    """What to do with a column whose lists have values of a type."""
    while (inner := list_value(value)) is not None:
        value = inner
    if pa.types.is_integer(value) or pa.types.is_floating(value):
        return "lists of numbers are not read as an image: store the bytes of a JPEG or PNG"
    return "a list of images is not supported: give each image a row of its own (explode in pandas, unnest in DuckDB)"
