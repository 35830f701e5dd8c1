"""Owns CSV and TSV files as inputs: a header, then a row for each record, as RFC 4180 has them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv

from batchcap.core.errors import UsageError
from batchcap.inputs.columns import quoted, shown
from batchcap.inputs.reader import Unreadable
from batchcap.inputs.text_split import REST_OF_QUOTED, Records, Rules, is_quoted_well, records_of
from batchcap.inputs.text_table import UTF8_MARK, UTF16_MARKS, Block, SchemaFinder, TextFiles, TextTable, pieces_of
from batchcap.inputs.text_types import BOOL, NOTHING, REAL, STRING, TEXT, column_type, joined, kind_of_whole

MAX_HEADER_BYTES = 1 << 20
# A few rows may be damaged. With more the whole file has another encoding, and each of its names would be wrong.
_MAX_UNDECODABLE_ROWS, _MAX_UNDECODABLE_SHARE = 10, 0.01
# Without zeros in front and without a plus: these are ids and phone numbers, which are no numbers.
_WHOLE = r"^(?:0|-?[1-9][0-9]*)$"
_REAL = r"^-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$"
_NEWLINE = b"\n"
_CONVERT = "convert it, as with `iconv -f WINDOWS-1252 -t UTF-8`"
_OTHER_SEPARATORS = {b";": "semicolons", b"\t": "tabs", b",": "commas", b"|": "bars"}


class _DelimitedTable(TextTable):
    """A file of fields between separators.

    Raises:
        UsageError: it can't be read, or has no header.
    """

    def _begin(self, file: BinaryIO) -> tuple[int, int, SchemaFinder]:
        beginning = file.read(MAX_HEADER_BYTES)
        mark = len(UTF8_MARK) if beginning.startswith(UTF8_MARK) else 0
        records = records_of(beginning[mark:], self.rules)
        if not len(records):
            raise UsageError(f"{shown(self.path)} is empty: its first line must name the columns")
        first = Records(records.starts[:1], records.ends[:1], records.newlines)
        header = Block(self.path, 1, beginning[mark:], first)
        names = _names_in(header, self.rules.separator, self.noun)
        end = int(first.ends[0])
        lines = int((records.newlines < end).sum())
        return mark + end, 1 + lines, _FieldFinder(names, self.rules.separator)

    def _parse(self, block: Block, columns: pa.Schema) -> Iterator[pa.RecordBatch | Unreadable]:
        places = [self.schema.get_field_index(name) for name in columns.names]
        wanted = {place: field.type for place, field in zip(places, columns, strict=True)}
        for piece in _parsed(block, _Form(self.rules.separator, len(self.schema)), wanted):
            yield piece if isinstance(piece, Unreadable) else piece.rename_columns(columns.names)


class CsvTable(_DelimitedTable):
    """A CSV file."""

    noun = "CSV file"
    index_name = "csv-1"
    rules = Rules(blank=b"\r\n", separator=b",")


class TsvTable(_DelimitedTable):
    """A TSV file."""

    noun = "TSV file"
    index_name = "tsv-1"
    rules = Rules(blank=b"\r\n", separator=b"\t")


class CsvFiles(TextFiles):
    """CSV files, each row of which says where its image is."""

    kind = "csv"
    noun = CsvTable.noun
    suffixes = frozenset({".csv"})
    open_table = CsvTable


class TsvFiles(TextFiles):
    """TSV files, each row of which says where its image is."""

    kind = "tsv"
    noun = TsvTable.noun
    suffixes = frozenset({".tsv"})
    open_table = TsvTable


@dataclass(frozen=True, slots=True)
class _Form:
    """How the records of one file look.

    Attributes:
        separator: between fields.
        fields: of each record.
    """

    separator: bytes
    fields: int


class _FieldFinder(SchemaFinder):
    """The types of columns whose names are known."""

    def __init__(self, names: list[str], separator: bytes) -> None:
        self._names = names
        self._form = _Form(separator, len(names))
        self._kinds: list[pa.DataType] = [NOTHING] * len(names)
        self._rows = 0
        self._undecodable = 0
        self._first_undecodable: str | None = None

    def add(self, block: Block) -> None:
        self._rows += len(block.records)
        if not block.is_utf8():
            self._count_undecodable(block)
        # Once a column is text it stays so: most are, and need no look.
        unsure = {place: STRING for place, kind in enumerate(self._kinds) if kind != TEXT}
        if not unsure:
            return
        for piece in _parsed(block, self._form, unsure):
            if isinstance(piece, pa.RecordBatch):
                for place, values in zip(unsure, piece.columns, strict=True):
                    self._kinds[place] = joined(self._kinds[place], _kind_of_fields(values))

    def _count_undecodable(self, block: Block) -> None:
        for row in range(len(block.records)):
            try:
                block.record(row).decode()
            except UnicodeDecodeError:
                self._undecodable += 1
                self._first_undecodable = self._first_undecodable or block.where(row)

    def schema(self) -> pa.Schema:
        if self._first_undecodable and self._undecodable > max(
            _MAX_UNDECODABLE_ROWS, _MAX_UNDECODABLE_SHARE * self._rows
        ):
            raise UsageError(
                f"{self._undecodable} of {self._rows} rows are not UTF-8, the first in {self._first_undecodable}: "
                f"{_CONVERT}"
            )
        return pa.schema([(name, column_type(kind)) for name, kind in zip(self._names, self._kinds, strict=True)])


def _names_in(header: Block, separator: bytes, noun: str) -> list[str]:
    """The names of the columns.

    Raises:
        UsageError: there are none, or they are not of such a file.
    """
    record, where = header.record(0), f"the header of {shown(header.path)}"
    if header.data.startswith(UTF16_MARKS) or b"\0" in record:
        raise UsageError(f"{shown(header.path)} is no UTF-8 (it may be UTF-16): save it as UTF-8")
    if len(record) >= MAX_HEADER_BYTES:
        raise UsageError(f"{where} is longer than {MAX_HEADER_BYTES} bytes: is it a {noun}?")
    fields = _fields_in(header, 0, separator)
    if isinstance(fields, str):
        raise UsageError(f"{where} can't be read: {fields}")
    try:
        names = [(field or b"").decode() for field in fields]
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not UTF-8 (byte 0x{error.object[error.start]:02x}): {_CONVERT}") from None
    if len(names) == 1:
        for other, plural in _OTHER_SEPARATORS.items():
            if other != separator and other.decode() in names[0]:
                raise UsageError(
                    f"{where} has one column, {quoted(names[0])}: {plural} separate nothing in a {noun}; save it with "
                    f"{_OTHER_SEPARATORS[separator]} in their place"
                )
    if any("\r" in name for name in names):
        raise UsageError(f"{where} has line ends of old Macs (CR without LF): convert them with `tr '\\r' '\\n'`")
    return names


def _kind_of_fields(values: pa.Array) -> pa.DataType:
    """What stands for the fields of a column."""
    there = values.drop_null()
    if not len(there):
        return NOTHING
    if _all_match(there, _WHOLE):
        return _kind_of_digits(there)
    if _all_match(there, _REAL):
        whole = there.filter(pc.match_substring_regex(there, _WHOLE))
        kind = joined(REAL, _kind_of_digits(whole) if len(whole) else NOTHING)
        return kind if pc.all(pc.is_finite(there.cast(REAL))).as_py() else TEXT
    is_flag = pc.all(pc.is_in(there, pa.array(["true", "false"]))).as_py()
    return BOOL if is_flag else TEXT


def _all_match(values: pa.Array, pattern: str) -> bool:
    # The first one nearly always tells: a regular expression over all is slow.
    return all(pc.all(pc.match_substring_regex(part, pattern)).as_py() for part in (values[:1], values))


def _kind_of_digits(values: pa.Array) -> pa.DataType:
    try:
        bounds = pc.min_max(values.cast(pa.int64())).as_py()
    except pa.ArrowInvalid:  # beyond 64 bits
        return TEXT
    return kind_of_whole(*bounds.values())


def _parsed(block: Block, form: _Form, wanted: dict[int, pa.DataType]) -> Iterator[pa.RecordBatch | Unreadable]:
    """All rows of a block: columns by their places, with their types."""
    found = _parsed_by_arrow(block, form, wanted)
    if found is not None:
        yield found
        return
    rows = (_text_of(block, row, form) for row in range(len(block.records)))
    yield from pieces_of(rows, lambda run: _batch_of(run, wanted))


def _parsed_by_arrow(block: Block, form: _Form, wanted: dict[int, pa.DataType]) -> pa.RecordBatch | None:
    """The rows as PyArrow reads them; None where it can't, or might read something else than we do."""
    # It takes a CR alone for the end of a line.
    if not wanted or not len(block.records) or not block.is_utf8():
        return None
    if b"\r" in block.data and block.data.count(b"\r") != block.data.count(b"\r\n"):
        return None
    if b'"' in block.data and not is_quoted_well(block.data, form.separator):
        return None
    # To it the last field of a file that ends without a newline is never null.
    data = block.data if block.data.endswith(b"\n") else block.data + b"\n"
    try:
        table = pv.read_csv(
            pa.BufferReader(data),
            pv.ReadOptions(
                use_threads=False, block_size=len(data) + 1, column_names=list(map(str, range(form.fields)))
            ),
            pv.ParseOptions(delimiter=form.separator.decode(), newlines_in_values=True),
            pv.ConvertOptions(
                column_types={str(place): kind for place, kind in wanted.items()},
                include_columns=list(map(str, wanted)),
                null_values=[""],
                true_values=["true"],
                false_values=["false"],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                check_utf8=False,
            ),
        )
    except pa.ArrowException:
        return None
    if len(table) != len(block.records):
        return None
    batches = table.combine_chunks().to_batches()
    return batches[0] if len(batches) == 1 else None


def _text_of(block: Block, row: int, form: _Form) -> list[str | None] | Unreadable:
    """The fields of a row as text, or why it has none."""
    fields = _fields_in(block, row, form.separator)
    if isinstance(fields, str):
        return Unreadable(1, fields)
    if len(fields) != form.fields:
        return Unreadable(1, f"{block.where(row)} has {len(fields)} fields, and the header has {form.fields}")
    try:
        return [None if field is None else field.decode() for field in fields]
    except UnicodeDecodeError as error:
        return Unreadable(1, f"{block.where(row)} is not UTF-8 (byte 0x{error.object[error.start]:02x}): {_CONVERT}")


def _fields_in(block: Block, row: int, separator: bytes) -> list[bytes | None] | str:
    """The fields of a row, None where one is empty and not quoted; or why there are none."""
    record = block.record(row).removesuffix(b"\n").removesuffix(b"\r")
    if b'"' not in record:
        return [field or None for field in record.split(separator)]
    fields: list[bytes | None] = []
    at = 0
    while True:
        if not record.startswith(b'"', at):
            end = record.find(separator, at)
            end = len(record) if end < 0 else end
            fields.append(record[at:end] or None)
        else:
            closed = REST_OF_QUOTED.match(record, at + 1)
            end = -1 if closed is None else closed.end()
            if end < 0 or (end < len(record) and not record.startswith(separator, end)):
                return _why_not_quoted(block, row, at, is_closed=end >= 0)
            fields.append(record[at + 1 : end - 1].replace(b'""', b'"'))
        if end == len(record):
            return fields
        at = end + 1


def _why_not_quoted(block: Block, row: int, at: int, *, is_closed: bool) -> str:
    """The error message for a quote at a byte of a row."""
    first, record = block.line_of(row), block.record(row)
    quote = f"the quote that begins in line {first + record.count(_NEWLINE, 0, at)} of {shown(block.path)}"
    if is_closed:
        return f"{quote} is closed before the end of its field: write a quote inside of a field twice"
    last = first + record.rstrip(_NEWLINE).count(_NEWLINE)
    return f"{quote} is never closed: all up to the end in line {last} is this row"


def _batch_of(rows: list[list[str | None]], wanted: dict[int, pa.DataType]) -> pa.RecordBatch:
    """Fields as rows, with their types."""
    columns = {}
    for place, kind in wanted.items():
        texts = pa.array([row[place] for row in rows], STRING)
        columns[str(place)] = pa.nulls(len(rows), kind) if texts.null_count == len(rows) else texts.cast(kind)
    return pa.record_batch(columns)
