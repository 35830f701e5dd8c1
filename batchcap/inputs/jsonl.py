"""Owns JSONL files as inputs: a row is a line with a JSON object, a column a key."""

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.json as pj

from batchcap.core.errors import UsageError
from batchcap.core.text import one_line
from batchcap.inputs.columns import shown
from batchcap.inputs.reader import Unreadable
from batchcap.inputs.text_split import Rules
from batchcap.inputs.text_table import UTF8_MARK, UTF16_MARKS, Block, SchemaFinder, TextFiles, TextTable, pieces_of
from batchcap.inputs.text_types import (
    HUGE,
    MAX_DEPTH,
    MAX_FIELDS,
    NOTHING,
    NotCertainError,
    column_type,
    joined,
    kind_of_array,
    kind_of_value,
)

MAX_COLUMNS = 10_000
# Python's own reader of JSON takes less than a thousand, and how many depends on who calls it.
_MAX_LINE_DEPTH = 200
_MAX_WHOLE_DIGITS = 19
# In a line; with more it is worth a look how many of them differ.
_MAX_USUAL_KEYS = 64
_BEGINNING_BYTES = 4096
_OPENING, _CLOSING = b"{[", b"}]"
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"')
_KEY = re.compile(rb'"([^"\\]*)"\s*:')
_BLANK = re.compile(r"[ \t\r\n]*")
# PyArrow takes it for a number, `json` doesn't.
_SHORT_INFINITY = re.compile(rb"Inf(?!inity)(?=[\s,}\]])")
# Half of a character of UTF-16 without its other half; a doubled backslash and whole characters are passed over.
_ESCAPE = re.compile(r"(?i)\\(?:ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}|(ud[89a-f][0-9a-f]{2})|.)")


class _Value(NamedTuple):
    """A value of an object, and how it is written."""

    value: Any
    text: str


class JsonlTable(TextTable):
    """A JSONL file.

    Raises:
        UsageError: it can't be read, or is other JSON.
    """

    noun = "JSONL file"
    index_name = "jsonl-1"
    rules = Rules(blank=b" \t\r\n")

    def _begin(self, file: BinaryIO) -> tuple[int, int, SchemaFinder]:
        beginning = file.read(_BEGINNING_BYTES)
        if beginning.startswith(UTF16_MARKS):
            raise UsageError(f"{shown(self.path)} is UTF-16, and JSONL is UTF-8: convert it, with iconv for example")
        mark = len(UTF8_MARK) if beginning.startswith(UTF8_MARK) else 0
        if re.match(rb"\s*\[\s*(?:\{|\Z|\r?\n)", beginning[mark:]):
            raise UsageError(
                f"{shown(self.path)} holds one JSON array, and JSONL has an object in each line: convert it with "
                "`jq -c '.[]' FILE > FILE.jsonl`, or in DuckDB with COPY (FROM 'FILE') TO 'FILE.jsonl'"
            )
        return mark, 1, _KeyFinder()

    def _parse(self, block: Block, columns: pa.Schema) -> Iterator[pa.RecordBatch | Unreadable]:
        found = _parsed_by_arrow(block, columns)
        if found is not None:
            yield found
            return
        rows = (_object_in(block, row) for row in range(len(block.records)))
        yield from pieces_of(rows, lambda run: _batch_of(run, columns))


class JsonlFiles(TextFiles):
    """JSONL files, each row of which says where its image is."""

    kind = "jsonl"
    noun = JsonlTable.noun
    suffixes = frozenset({".jsonl", ".ndjson"})
    open_table = JsonlTable


class _KeyFinder(SchemaFinder):
    """Columns in the order in which their keys are seen first."""

    def __init__(self) -> None:
        self._kinds: dict[str, pa.DataType] = {}
        self._fault: str | None = None

    def add(self, block: Block) -> None:
        batch = _parsed_by_arrow(block, None)
        kinds = None if batch is None else _kinds_in(batch)
        for name, kind in (self._kinds_by_value(block) if kinds is None else kinds).items():
            self._kinds[name] = joined(self._kinds.get(name, NOTHING), kind)
        if len(self._kinds) > MAX_COLUMNS:
            raise UsageError(
                f"{shown(block.path)} has more than {MAX_COLUMNS} different keys: a key is a column, so use the same "
                "ones in each line"
            )

    def _kinds_by_value(self, block: Block) -> dict[str, pa.DataType]:
        kinds: dict[str, pa.DataType] = {}
        for row in range(len(block.records)):
            found = _object_in(block, row)
            if isinstance(found, Unreadable):
                self._fault = self._fault or f"{shown(block.path)} is no JSONL: {found.reason}"
                continue
            for name, one in found.items():
                kinds[name] = joined(kinds.get(name, NOTHING), kind_of_value(one.value))
        return kinds

    def schema(self) -> pa.Schema:
        if self._fault is not None and not self._kinds:
            raise UsageError(self._fault)
        return pa.schema([(name, column_type(kind)) for name, kind in self._kinds.items()])


def _kinds_in(batch: pa.RecordBatch) -> dict[str, pa.DataType] | None:
    """What stands for each column; None where the values are not certain."""
    try:
        return {name: kind_of_array(batch[name]) for name in batch.schema.names}
    except NotCertainError:
        return None


def _parsed_by_arrow(block: Block, columns: pa.Schema | None) -> pa.RecordBatch | None:
    """The rows as PyArrow reads them; None where it can't, or might read something else than `json` does."""
    # PyArrow makes broken lists where all their values are null.
    has_nulls = columns is not None and any(_has_nulls_inside(kind) for kind in columns.types)
    if has_nulls or not _is_plain(block):
        return None
    options = pj.ParseOptions(columns, unexpected_field_behavior="infer" if columns is None else "ignore")
    try:
        table = pj.read_json(
            pa.BufferReader(block.data),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(block.data) + 1),
            parse_options=options,
        )
    except pa.ArrowException:
        return None
    if len(table) != len(block.records) or (columns is not None and table.schema != columns):
        return None
    batches = table.combine_chunks().to_batches()
    return batches[0] if len(batches) == 1 else None


def _has_nulls_inside(kind: pa.DataType) -> bool:
    return any(
        pa.types.is_null(part.type) or _has_nulls_inside(part.type)
        for part in (kind.field(index) for index in range(kind.num_fields))
    )


def _is_plain(block: Block) -> bool:
    """Whether each line may be an object, alone, and not too deep for PyArrow."""
    data, records = block.data, block.records
    if not len(records):
        return False
    letters = np.frombuffer(data, np.uint8)
    last = records.ends - 1
    for blank in b"\n\r":
        last = last - (letters[last] == blank)
    if not ((letters[records.starts] == ord("{")) & (letters[last] == ord("}"))).all():
        return False
    if data.count(b"{") + data.count(b"[") - len(records) >= MAX_DEPTH and _depth(data) > MAX_DEPTH:
        return False
    if data.count(b'":') > _MAX_USUAL_KEYS * len(records) and len(set(_KEY.findall(data))) > MAX_FIELDS:
        return False  # a column for each would take a lot of memory
    return block.is_utf8() and not (b"Inf" in data and _SHORT_INFINITY.search(data))


def _depth(data: bytes) -> int:
    """How deep objects and lists are nested."""
    brackets = np.frombuffer(_STRING.sub(b"", data), np.uint8)
    steps = np.isin(brackets, list(_OPENING)).astype(np.int64) - np.isin(brackets, list(_CLOSING))
    return int(np.cumsum(steps).max(initial=0))


def _object_in(block: Block, row: int) -> dict[str, _Value] | Unreadable:
    """The object in a line, or why there is none."""
    line = block.record(row).rstrip(b"\r\n")
    if line.count(b"{") + line.count(b"[") > _MAX_LINE_DEPTH and _depth(line) > _MAX_LINE_DEPTH:
        return Unreadable(1, f"{block.where(row)} is nested deeper than {_MAX_LINE_DEPTH} levels")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return Unreadable(
            1, f"{block.where(row)} is not UTF-8 (byte 0x{line[error.start]:02x}): save the file as UTF-8"
        )
    if "\\u" in text:
        text = _ESCAPE.sub(_whole_characters, text)
    try:
        return _parsed(text)
    except json.JSONDecodeError as error:
        return Unreadable(1, f"{block.where(row)} is no JSON object: {one_line(error.msg)} (character {error.pos + 1})")


def _whole_characters(escape: re.Match[str]) -> str:
    return escape[0] if escape[1] is None else "\\ufffd"


def _whole(digits: str) -> object:
    return int(digits) if len(digits.lstrip("-")) <= _MAX_WHOLE_DIGITS else HUGE


_DECODER = json.JSONDecoder(parse_int=_whole)


def _parsed(text: str) -> dict[str, _Value]:
    """The values of a JSON object; of a doubled key the last one.

    Raises:
        json.JSONDecodeError: it is none.
    """
    found: dict[str, _Value] = {}
    at = _after_blank(text, _expect(text, 0, "{"))
    while text[at : at + 1] != "}":
        if found:
            at = _expect(text, at, ",")
        name, at = _DECODER.raw_decode(text, _expect(text, at, '"') - 1)
        start = _after_blank(text, _expect(text, at, ":"))
        value, end = _DECODER.raw_decode(text, start)
        found[name] = _Value(value, text[start:end])
        at = _after_blank(text, end)
    end = _after_blank(text, at + 1)
    if end != len(text):
        raise json.JSONDecodeError("it goes on after the object", text, end)
    return found


def _expect(text: str, at: int, letter: str) -> int:
    at = _after_blank(text, at)
    if text[at : at + 1] != letter:
        raise json.JSONDecodeError(f"expecting {letter!r}", text, at)
    return at + 1


def _after_blank(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return at if found is None else found.end()


def _batch_of(rows: list[dict[str, _Value]], columns: pa.Schema) -> pa.RecordBatch:
    """Objects as rows; a string stands for itself in a column of text, anything else for how it is written."""
    try:
        arrays = [pa.array([_cell(row.get(field.name), field.type) for row in rows], field.type) for field in columns]
    except OverflowError as error:
        raise pa.ArrowInvalid(str(error)) from None
    return pa.RecordBatch.from_arrays(arrays, schema=columns)


def _cell(one: _Value | None, kind: pa.DataType) -> Any:  # noqa: ANN401 - whatever JSON has
    if one is None or one.value is None:
        return None
    return one.text if kind == pa.string() and not isinstance(one.value, str) else one.value
