"""Owns the columns of inputs by their names: those that were asked for, their names in the output and in messages."""

from collections.abc import Collection, Iterable
from pathlib import Path, PurePath

from batchcap.config import InputConfig
from batchcap.core.errors import UsageError
from batchcap.core.text import one_line, shown_name
from batchcap.inputs.storage import shown_path

# How much of other people's column names a message shows.
_SHOWN_NAMES, _SHOWN_LETTERS = 8, 40
ALL_COLUMNS = "*"
KEEP = "--keep-columns"
RENAMED_PREFIX = "input_"


def column_options(config: InputConfig) -> list[tuple[str, str]]:
    """The columns that were asked for by name: option and name."""
    kept = ((KEEP, name) for name in config.keep_columns if name != ALL_COLUMNS)
    pairs = (("--image-column", config.image_column), ("--id-column", config.id_column), *kept)
    return [(option, name) for option, name in pairs if name is not None]


def require_columns(config: InputConfig, found: Collection[str], *, has_tables: bool) -> None:
    """Refuse columns that were asked for where no input has them.

    Args:
        config: what was asked for.
        found: the columns to carry that some input has.
        has_tables: whether some input is a table or an archive with columns.

    Raises:
        UsageError: some are missing.
    """
    for option, name in column_options(config):
        missing = f"no input has a column {quoted(name)} ({option})"
        if option != KEEP and not has_tables:
            raise UsageError(f"{missing}: only tables have columns, and here is none; leave out {option}")
        if option == KEEP and name not in found:
            if found:
                raise UsageError(f"{missing}, only {listed(found)}: correct the name, or leave it out")
            raise UsageError(
                f"{missing}: tables have columns, and images that a metadata.jsonl, .csv or .parquet describes; "
                f"correct the name, or leave out {option}"
            )


def shown(path: str | PurePath) -> str:
    """A file's name in a message."""
    return shown_name(shown_path(path))


def cut(text: str) -> str:
    """Text of others in a message: not too long, and on one line."""
    return one_line(text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}…")


def quoted(name: str) -> str:
    """The name of a column in a message."""
    return f"'{cut(name)}'"


def listed(names: Iterable[str]) -> str:
    """Names of columns, as many as fit into a line."""
    every = list(names)
    more = len(every) - _SHOWN_NAMES
    return ", ".join(map(cut, every[:_SHOWN_NAMES])) + (f", … and {more} more" if more > 0 else "")


def output_names(path: Path, wanted: list[str], own_columns: frozenset[str]) -> tuple[str, ...]:
    """The names of carried columns in the output: `input_` before one that is called like a column of ours."""
    # Names that differ in case only are the same for DuckDB and other readers.
    own, taken = ({name.lower() for name in names} for names in (own_columns, wanted))
    names = [RENAMED_PREFIX + name if name.lower() in own else name for name in wanted]
    for name, new in zip(wanted, names, strict=True):
        if new != name and new.lower() in taken:
            raise UsageError(
                f"{shown(path)} has columns {quoted(name)} and {quoted(new)}, and the first would get the name of "
                "the second in the output: rename one, or keep one with --keep-columns"
            )
    return tuple(names)
