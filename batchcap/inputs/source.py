"""Owns how the name of a source becomes text."""

from pathlib import Path

from batchcap.core.text import printable_name


def source_name(path: str) -> str:
    r"""An absolute path as text that no other path has: itself, or a `file:` URI where it is not UTF-8.

    With `\xNN` in the place of a byte it would be the path of another file, whose name has these four characters.
    """
    return path if printable_name(path) == path else Path(path).as_uri()
