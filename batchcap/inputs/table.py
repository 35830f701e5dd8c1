"""Owns what a file is that holds a table, whatever its format: a schema, and record batches group by group."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from batchcap.core.errors import UsageError
from batchcap.core.text import one_line
from batchcap.inputs.columns import shown
from batchcap.inputs.reader import Unreadable


class Table(ABC):
    """One file with rows and columns, open for reading.

    Attributes:
        path: the file.
        noun: what such a file is called in messages.
        schema: names and types of its columns.
        group_rows: rows of each group. A group is what can be read without reading what is before it, and what is lost
            together where the file is damaged.
        has_column_chunks: whether the columns of a group lie apart, so that one may be damaged and others not.
    """

    path: Path
    noun: str
    schema: pa.Schema
    group_rows: Sequence[int]
    has_column_chunks: bool = True

    @abstractmethod
    def batches(self, group: int, columns: Sequence[str], max_rows: int) -> Iterator[pa.RecordBatch | Unreadable]:
        """Some columns of a group from its first row on, in pieces of up to `max_rows` rows.

        A damaged row comes as `Unreadable`. Where the rest of the group is damaged, the last batch is followed by an
        error, or by nothing.

        Raises:
            pa.ArrowException, OSError: what follows can't be read.
        """

    def place_of(self, row: int) -> tuple[int, int | None]:
        """The row of the file that a row is made of, and which of its images it has; None: it has all."""
        return row, None

    @abstractmethod
    def group_name(self, group: int) -> str:
        """What a group is called in messages, with the file's name."""


@contextmanager
def readable(path: Path, noun: str) -> Iterator[None]:
    """What goes wrong with a table's file, as an error that says what to do.

    Raises:
        UsageError: the file can't be read.
    """
    try:
        yield
    except FileNotFoundError:
        raise UsageError(f"the {noun} {shown(path)} is missing: put it back to go on") from None
    except UnicodeEncodeError:
        raise UsageError(f"the name of the {noun} {shown(path)} is not UTF-8: rename it") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read the {noun} {shown(path)} ({reason_of(error)}): mend it or leave it out") from None


def require_names(fields: Iterable[pa.Field]) -> None:
    """Look whether the names of columns, and of parts of columns, are text.

    Raises:
        UnicodeDecodeError: one is not UTF-8.
    """
    waiting = list(fields)
    while waiting:
        field = waiting.pop()
        _ = field.name  # this fails
        waiting += [field.type.field(number) for number in range(field.type.num_fields)]


def reason_of(error: Exception) -> str:
    """What a library says is wrong with a file, in one line."""
    if isinstance(error, UnicodeDecodeError):
        return "it has a column name that is not UTF-8"
    lines = str(error).splitlines()
    return one_line(lines[0]) if lines else type(error).__name__


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
