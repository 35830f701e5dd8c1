"""Owns conditions on rows, written in SQL: what they may do, which columns they read, which rows of a batch match.

DuckDB, an extra, evaluates them. It may neither read files nor reach the network here, whatever the text says.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batchcap.core.errors import UsageError
from batchcap.core.text import one_line
from batchcap.inputs.columns import listed, quoted, shown

_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",  # or names of Python's variables would be tables
    "threads": "1",
    "lock_configuration": "true",
}
# Beside the columns; no file has one of such a name.
_NUMBER = "__batchcap_row_number"
_ALL = ("columns", "*")


class Condition:
    """A condition that rows match or not; a null is no match.

    Args:
        text: SQL, as it stands after WHERE.

    Raises:
        UsageError: DuckDB is not installed.
    """

    def __init__(self, text: str) -> None:
        try:
            import duckdb  # noqa: PLC0415 - an extra, and it takes a while
        except ImportError:
            raise UsageError("--where needs DuckDB: pip install 'batchcap[where]'") from None
        self._text = text
        self._error: type[Exception] = duckdb.Error
        self._connection = duckdb.connect(":memory:", config=_SETTINGS)
        self._known: set[tuple[tuple[str, pa.DataType], ...]] = set()

    def require(self, schema: pa.Schema, path: Path) -> list[str]:
        """Look whether the condition makes sense for a source with these columns; those that it may read.

        A column whose name does not stand in the text is not among them: it may be large, or of a type that DuckDB
        does not know.

        Raises:
            UsageError: it makes none.
        """
        text = self._text.lower()
        takes_all = any(sign in text for sign in _ALL)
        names = [name for name in schema.names if takes_all or name.lower().replace('"', '""') in text]
        fields = tuple((name, schema.field(name).type) for name in names)
        if fields not in self._known:
            arrays = [pa.nulls(0, kind) for _name, kind in fields]
            self._numbers(arrays, names, 0, schema, path)
            self._known.add(fields)
        return names

    def matching(self, batch: pa.RecordBatch, path: Path) -> Iterator[tuple[int, int]]:
        """The rows of a batch that match: the first one and how many, for those that follow each other.

        Raises:
            UsageError: a value can't be what the condition takes it for.
        """
        arrays = [_well_formed(column) for column in batch.columns]
        return _runs(self._numbers(arrays, batch.schema.names, len(batch), batch.schema, path))

    def matching_numbers(self, rows: int, path: Path) -> Iterator[tuple[int, int]]:
        """As `matching`, where the condition reads no column."""
        return _runs(self._numbers([], [], rows, pa.schema([]), path))

    def _numbers(
        self, arrays: Sequence[pa.Array], names: Sequence[str], rows: int, schema: pa.Schema, path: Path
    ) -> Any:  # noqa: ANN401 - an array of NumPy
        numbers = pa.array(np.arange(rows))
        try:
            known = [array.cast(pa.float32()) if pa.types.is_float16(array.type) else array for array in arrays]
            table = pa.table([numbers, *known], names=[_NUMBER, *names])
            found = self._connection.from_arrow(table).filter(self._text).project(_NUMBER).fetchnumpy()
        except (self._error, pa.ArrowException) as error:
            what = one_line((str(error).splitlines() or [type(error).__name__])[0])
            columns = f"; {shown(path)} has {listed(schema.names)}" if schema.names else ""
            raise UsageError(f"--where {quoted(self._text)} can't be used: {what}{columns}") from None
        return np.sort(np.asarray(found[_NUMBER]))


def _runs(numbers: Any) -> Iterator[tuple[int, int]]:  # noqa: ANN401 - an array of NumPy
    """The stretches that rising numbers make: the first one and how many."""
    if not len(numbers):
        return
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 2) != 1)
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(numbers)], strict=True):
        yield int(numbers[start]), end - start


def _well_formed(column: pa.Array) -> pa.Array:
    """A column without text that is not UTF-8, which DuckDB does not survive: null is in its place."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            return pa.nulls(len(column), column.type)
        return pa.array([_text_or_none(value) for value in column.cast(pa.large_binary()).to_pylist()], column.type)
    return column


def _text_or_none(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None
