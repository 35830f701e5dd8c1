"""Owns the forms that are one file with a record for each row: JSONL, CSV, Arrow."""

import base64
import datetime as dt
import json
import math
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from batchcap.config import Existing, OutputsConfig
from batchcap.core.address import address_of
from batchcap.core.errors import UsageError
from batchcap.core.text import shown_name
from batchcap.inputs.columns import shown
from batchcap.inputs.storage import shown_path
from batchcap.outputs.form import FinishedPart, Form, Job, Written
from batchcap.outputs.owned import is_foreign, owned_file
from batchcap.outputs.staged import Staged, held
from batchcap.store.parts import column_name

# What a spreadsheet takes for a formula (OWASP, "CSV Injection").
_FORMULA = r"^([=+\-@\t\r])"

_ROWS_AT_ONCE = 1000
# A time out of Python's range, a nanosecond, text that is not UTF-8.
_NO_VALUE = (ValueError, OverflowError, pa.ArrowException)

Append = Callable[[pa.Table], None]


class OneFile(Form):
    """A form that is one file.

    Attributes:
        suffix: of the file that is written where nobody names one: beside the job folder, with its name.
    """

    suffix: ClassVar[str]

    def __init__(self, job: Job, where: Path | None, config: OutputsConfig) -> None:
        super().__init__(job, where, config)
        folder = job.folder.path.absolute()
        wanted = where or folder.with_name(folder.name + self.suffix)
        self.path = wanted if address_of(wanted) else wanted.absolute()
        self._staged = Staged.of(job, self._target, self.path.parent, config.existing)

    @property
    def _target(self) -> str:
        return json.dumps([self.name, os.fsencode(self.path).hex()])

    @property
    def place(self) -> Path | None:
        """The file."""
        return self.path

    @abstractmethod
    def opened(self, path: Path, schema: pa.Schema) -> AbstractContextManager[Append]:
        """Gives what appends the rows of a table to a new file; all tables have the schema."""

    def check(self, image_ids: Callable[[], Iterable[tuple[str, Path]]] = tuple) -> None:  # noqa: ARG002
        """Refuse a place that can't be written, and a file of somebody else there."""
        path = self.path
        if self._staged is not None:
            self._require_object(self._staged)
            return
        if path.is_dir() or not path.parent.is_dir():
            raise UsageError(f"can't write {shown_name(str(path))}: name a file in an existing folder")
        if self.config.existing is not Existing.REPLACE and is_foreign(self.job.ledger, path):
            raise UsageError(
                f"{shown_name(str(path))} is there already, and batchcap did not write it as it is now: move it away, "
                f"name another file ({self.name}:FILE), or choose --existing replace"
            )

    def write(self, parts: Iterable[FinishedPart], *, skips_known: bool = False) -> Written:  # noqa: ARG002
        """Write the file, from the first part to the last."""
        self.check()
        done = Written(self.name, f"in {shown(self.path)}", files=1)
        if self._staged is None:
            with owned_file(self.job.ledger, self.path) as temporary:
                self._write_rows(temporary, parts, done)
            return done
        with held(self.job, self._target, self.path), self._staged.opened():
            self._write_rows(self._staged.folder / self.path.name, parts, done)
            self._staged.put([self.path.name])
        return done

    def _require_object(self, staged: Staged) -> None:
        """Refuse an address that can't be written to, and an object of somebody else there."""
        staged.require_place()
        self.job.uploads.look_at([shown_path(self.path)])
        if self.config.existing is not Existing.REPLACE and staged.is_foreign(self.path.name):
            raise UsageError(
                f"{shown(self.path)} is there already, and batchcap did not put it there as it is now: move it away, "
                f"name another ({self.name}:ADDRESS), or choose --existing replace"
            )

    def _write_rows(self, path: Path, parts: Iterable[FinishedPart], done: Written) -> None:
        with ExitStack() as stack:
            append: Append | None = None
            for part in parts:
                table, captions = wanted_rows(part.table(), self.job.prompts, self.config.verdicts)
                done.captions += captions
                done.left_out += self.left_out(part.counts)
                if append is None:
                    append = stack.enter_context(self.opened(path, table.schema))
                append(table)


def wanted_rows(table: pa.Table, prompts: Iterable[str], verdicts: Iterable[str]) -> tuple[pa.Table, int]:
    """The rows of a part with a caption of one of the verdicts, and how many such captions; other captions are null."""
    any_wanted: pa.ChunkedArray | None = None
    captions = 0
    for prompt in prompts:
        verdict = table[column_name("verdict", prompt)]
        wanted = pc.is_in(verdict, pa.array(list(verdicts), pa.string()))  # null is in no list
        captions += pc.sum(wanted).as_py() or 0
        any_wanted = wanted if any_wanted is None else pc.or_(any_wanted, wanted)
        for name in (column_name("caption", prompt), column_name("thinking", prompt)):
            place = table.schema.get_field_index(name)
            if place >= 0:  # earlier versions wrote no thinking
                column = pc.if_else(wanted, table[name], pa.scalar(None, table.schema.field(name).type))
                table = table.set_column(place, table.schema.field(name), column)
    return table.filter(any_wanted), captions


class JsonLines(OneFile):
    """A JSON object in each line."""

    name = "jsonl"
    suffix = ".jsonl"

    @contextmanager
    def opened(self, path: Path, schema: pa.Schema) -> Iterator[Append]:  # noqa: ARG002
        """Lines in UTF-8."""
        with path.open("w", encoding="utf-8", errors="replace", newline="\n") as file:

            def append(table: pa.Table) -> None:
                for row in plain_rows(table):
                    file.write(json.dumps(row, ensure_ascii=False))
                    file.write("\n")

            yield append


class ArrowFile(OneFile):
    """An Arrow IPC file, which is also what Feather V2 is."""

    name = "arrow"
    suffix = ".arrow"

    @contextmanager
    def opened(self, path: Path, schema: pa.Schema) -> Iterator[Append]:
        """A record batch or more for each part."""
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            yield writer.write_table


class Csv(OneFile):
    """Comma-separated values with a header (RFC 4180)."""

    name = "csv"
    suffix = ".csv"

    @contextmanager
    def opened(self, path: Path, schema: pa.Schema) -> Iterator[Append]:
        """Columns that CSV has no way for are written as JSON text."""
        flat = pa.schema([(field.name, field.type if _is_flat(field.type) else pa.string()) for field in schema])
        with pa_csv.CSVWriter(str(path), flat) as writer:
            yield lambda table: writer.write_table(self._flat(table, flat))

    def _flat(self, table: pa.Table, schema: pa.Schema) -> pa.Table:
        columns = []
        for field, column in zip(schema, table.columns, strict=True):
            if not _is_flat(column.type):
                texts = [
                    None if one is None else json.dumps(plain(one), ensure_ascii=False) for one in column.to_pylist()
                ]
                column = pa.chunked_array([pa.array(texts, pa.string())])  # noqa: PLW2901
            if self.config.csv_safe and pa.types.is_string(field.type):
                column = pc.replace_substring_regex(column, _FORMULA, r"'\1")  # noqa: PLW2901
            columns.append(column)
        return pa.Table.from_arrays(columns, schema=schema)


def _is_flat(kind: pa.DataType) -> bool:
    return not (
        pa.types.is_nested(kind)
        or pa.types.is_dictionary(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or isinstance(kind, pa.BaseExtensionType)
    )


def plain_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a table as JSON has them."""
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        try:
            rows = batch.to_pylist()
        except _NO_VALUE:
            cells = zip(*([_value(cell) for cell in column] for column in batch.columns), strict=True)
            rows = [dict(zip(batch.schema.names, values, strict=True)) for values in cells]
        for row in rows:
            yield plain(row)


def _value(cell: pa.Scalar) -> Any:  # noqa: ANN401 - whatever a column holds
    """What a cell holds: as Arrow writes it where Python has no such value, and null where Arrow does not either."""
    with suppress(*_NO_VALUE):
        return cell.as_py()
    with suppress(*_NO_VALUE):
        return cell.cast(pa.string()).as_py()
    return None


def plain(value: Any) -> Any:  # noqa: ANN401 - whatever a column holds
    """A value as JSON has it: bytes as base64, times in ISO 8601, numbers that are none as null."""
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dt.date | dt.time):  # a datetime is a date, too
        return value.isoformat()
    return value if value is None or isinstance(value, str | int | bool) else str(value)
