"""Owns the text that lies beside an image: `a.txt` and `a.json` beside `a.jpg`, as trainers of LoRA models keep it."""

from collections.abc import Container
from pathlib import Path

from batchcap.core.errors import ErrorKind, RowError
from batchcap.inputs.storage import is_regular, names_in, open_binary

# Of one cell of a carried column; a part holds a thousand rows of them.
MAX_TEXT_BYTES = 1 << 20
# Extensions of such files, which are the names of their columns.
EXTENSIONS = ("txt", "json")


def extensions_in(folder: Path, wanted: Container[str]) -> list[str]:
    """Those of the wanted extensions that some file in a folder has."""
    asked = [name for name in EXTENSIONS if name in wanted]
    if not asked:
        return []
    try:
        found = {name.rpartition(".")[2] for name in names_in(folder)}
    except OSError:  # its images fail, and tell why
        return []
    return [name for name in asked if name in found]


def text_beside(image: Path, extension: str) -> str | None:
    """The text beside an image; None where there is no such file.

    Raises:
        RowError: it can't be read, is too large or no text.
    """
    path = image.with_suffix(f".{extension}")
    if path == image:
        return None
    try:
        if not is_regular(path):
            return None
        with open_binary(path) as file:
            content = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise RowError(ErrorKind.UNREADABLE, error.strerror or type(error).__name__) from None
    if len(content) > MAX_TEXT_BYTES:
        raise RowError(ErrorKind.TOO_LARGE, f"it has more than {MAX_TEXT_BYTES} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise RowError(ErrorKind.UNREADABLE, "it is not UTF-8 text") from None
