"""Owns how the name of a source becomes text."""

from pathlib import Path

from batchcap.core.address import address_of, without_query
from batchcap.core.text import printable_name


def source_name(path: str) -> str:
    r"""An absolute path as text that no other path has: itself, an address, or a `file:` URI where it is not UTF-8.

    With `\xNN` in the place of a byte it would be the path of another file, whose name has these four characters.
    """
    if (address := address_of(path)) is not None:
        return without_query(address)
    return path if printable_name(path) == path else Path(path).as_uri()
