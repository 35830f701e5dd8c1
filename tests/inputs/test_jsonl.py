"""JSONL: each value as the file has it, whatever its neighbours are, in any range; and a bad line fails alone."""

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcap.core.errors import ErrorKind, UsageError
from batchcap.core.sources import FileAt
from batchcap.inputs import index_cache, jsonl, text_groups, text_table
from batchcap.inputs.jsonl import JsonlFiles, JsonlTable
from tests.inputs.texts import job_rows, rows_in, small_steps, types_in

WHOLE = st.integers(-5, 5) | st.sampled_from([2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 10**30])
SCALARS = st.none() | st.booleans() | WHOLE | st.floats() | st.text(max_size=4) | st.just("2024-01-01")
VALUES = st.recursive(
    SCALARS,
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.sampled_from("xyz"), some, max_size=2),
    max_leaves=5,
)
# Mostly columns of one type, as files have them.
COLUMNS = st.sampled_from([WHOLE, st.floats() | WHOLE, st.text(max_size=3), st.booleans(), st.lists(WHOLE, max_size=2)])
ROWS = (
    st.lists(COLUMNS | st.just(VALUES), min_size=1, max_size=3)
    .map(lambda columns: {f"{name} é": column | st.none() for name, column in enumerate(columns)})
    .flatmap(lambda columns: st.lists(st.fixed_dictionaries({}, optional=columns), max_size=20))
)


@pytest.fixture(params=["arrow", "json"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of parsing."""
    if request.param == "json":
        monkeypatch.setattr(jsonl, "_parsed_by_arrow", lambda _block, _columns: None)


def table_of(tmp_path: Path, *lines: bytes) -> JsonlTable:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    return JsonlTable(path)


def is_same(found: Any, given: Any) -> bool:
    """Whether a value is what was written; a key that is missing is null."""
    if isinstance(found, dict):
        return given.keys() <= found.keys() and all(is_same(part, given.get(key)) for key, part in found.items())
    if isinstance(found, list):
        return len(found) == len(given) and all(map(is_same, found, given))
    if isinstance(found, float) and math.isnan(found):
        return math.isnan(given)
    return found == given and isinstance(found, bool) is isinstance(given, bool)


@pytest.mark.usefixtures("_way")
@settings(max_examples=80, deadline=None)
@given(ROWS, st.booleans(), st.sampled_from([b"\n", b"\r\n", b"\n \n"]), st.data())
def test_any_rows_in_any_ranges(rows: list[dict[str, Any]], is_ascii: bool, end: bytes, data: st.DataObject) -> None:
    lines = [json.dumps(row, ensure_ascii=is_ascii).encode() for row in rows]
    mark, last = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"])), data.draw(st.sampled_from([b"", end]))
    with tempfile.TemporaryDirectory() as name, small_steps(data.draw(st.integers(1, 9)), 50):
        path = Path(name) / "a.jsonl"
        path.write_bytes(mark + end.join(lines) + last)
        table = JsonlTable(path)
        start = data.draw(st.integers(0, len(rows)))
        columns = data.draw(
            st.lists(st.sampled_from(table.schema.names), min_size=1, unique=True)
            if table.schema.names
            else st.just([])
        )
        found = rows_in(table, start, len(rows) - start, columns)
        whole = rows_in(table)
    assert table.schema.names == list(dict.fromkeys(key for row in rows for key in row))
    assert str([{key: row[key] for key in columns} for row in whole[start:]]) == str(found)
    for row, written in zip(whole, rows, strict=True):
        for key, value in row.items():
            given = written.get(key)
            is_text = isinstance(value, str) and not isinstance(given, str)
            assert value == json.dumps(given, ensure_ascii=is_ascii) if is_text else is_same(value, given)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ("1|-2|9223372036854775807", "int64", [1, -2, 2**63 - 1]),
        ("1|2.5|NaN|-Infinity", "double", "[1.0, 2.5, nan, -inf]"),
        ("1|9223372036854775808", "string", ["1", "9223372036854775808"]),
        ("9007199254740993|1.5", "string", ["9007199254740993", "1.5"]),
        ("1e400|" + "1" * 5000, "string", ["1e400", "1" * 5000]),
        ('true|false|null', "bool", [True, False, None]),
        ('1|true|"x"|1.10|{"a": [1]}', "string", ["1", "true", "x", "1.10", '{"a": [1]}']),
        ('"2024-01-01"|"2024-01-01T00:00:00Z"', "string", ["2024-01-01", "2024-01-01T00:00:00Z"]),
        (
            '{"x":1}|{"y":[2.5]}|null',
            "struct<x: int64, y: list<item: double>>",
            [{"x": 1, "y": None}, {"x": None, "y": [2.5]}, None],
        ),
        ('[1]|[]|["a"]', "string", ["[1]", "[]", '["a"]']),
        ("{}|{}", "string", ["{}", "{}"]),
        ("[]|null", "list<item: null>", [[], None]),
        ("null|null", "null", [None, None]),
        ('"\\ud800x"|"\\\\ud800"|"\\ud83d\\ude00"', "string", ["\ufffdx", "\\ud800", "\U0001f600"]),
        ('"\\u0000"|"\u2028"', "string", ["\0", "\u2028"]),
        ("[" * 100 + "]" * 100 + "|1", "string", ["[" * 100 + "]" * 100, "1"]),
        ('{"a":' * 31 + "1" + "}" * 31, "deep", None),
    ],
)  # fmt: skip
def test_types(tmp_path: Path, values: str, kind: str, expected: Any) -> None:
    table = table_of(tmp_path, *(f'{{"v":{value}}}'.encode() for value in values.split("|")))
    if kind != "deep":
        assert types_in(table) == {"v": kind}
    found = [row["v"] for row in rows_in(table)]
    assert expected is None or str(found) == str(expected)
    assert all(isinstance(value, bool) is (kind == "bool") for value in found if value is not None)


def test_keys_that_come_late_and_twice(tmp_path: Path) -> None:
    lines = [b'{"a":1}'] * 3000 + [b'{"a":1,"b":"x","a":2}', b"{}"]
    table = table_of(tmp_path, *lines)
    assert types_in(table) == {"a": "int64", "b": "string"}
    assert rows_in(table)[2999:] == [{"a": 1, "b": None}, {"a": 2, "b": "x"}, {"a": None, "b": None}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a":', "no JSON object: Expecting value (character 6)"),
        (b'{"a":1', "no JSON object: expecting ',' (character 7)"),
        (b'{"a":1,}', "no JSON object: expecting '\"'"),
        (b'{"a":"x', "no JSON object: Unterminated string"),
        (b'{"a":1}{"a":2}', "no JSON object: it goes on after the object (character 8)"),
        (b"[1]", "no JSON object: expecting '{'"),
        (b"7", "no JSON object: expecting '{'"),
        (b"{'a':1}", "no JSON object: expecting '\"'"),
        (b'{"a":Inf}', "no JSON object: Expecting value"),
        (b'{"a":"\xff"}', "not UTF-8 (byte 0xff): save the file as UTF-8"),
        (b'{"a":"\x00"}', "no JSON object: Invalid control character"),
        (b"\0\0", "no JSON object"),
        (b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}", "nested deeper than 200 levels"),
        (b'{"a":' * 10**5, "nested deeper than 200 levels"),
    ],
)
def test_a_bad_line_fails_alone(tmp_path: Path, line: bytes, reason: str) -> None:
    table = table_of(tmp_path, b'{"image":"1"}', b"", line, b'{"image":"2"}', b"")
    found, columns = job_rows(JsonlFiles, table.path)
    assert [row.image for row in found] == [FileAt(f"{tmp_path}/1"), None, FileAt(f"{tmp_path}/2")]
    kind, said = found[1].failure or (None, "")
    assert kind is ErrorKind.UNREADABLE
    assert said.startswith(f"line 3 of {table.path} is ")
    assert reason in said
    assert columns == [{}, {}, {}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"image":"a"},{"image":"b"}]', r"holds one JSON array.*jq -c '\.\[\]'.*DuckDB"),
        (b'\xef\xbb\xbf \n[\r\n  {"image":"a"}\n]', "holds one JSON array"),
        (b'{\n"image":"a"\n}', "is no JSONL: line 1 of .* is no JSON object"),
        ('{"image":"a"}'.encode("utf-16"), "is UTF-16, and JSONL is UTF-8"),
        (b"\n".join(b'{"key %d":1}' % key for key in range(10_001)), "has more than 10000 different keys"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        table_of(tmp_path, content)


def test_a_folder_or_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it is no regular file"):
        JsonlFiles.count_records(tmp_path)
    with pytest.raises(UsageError, match="is missing: put it back"):
        JsonlFiles.count_records(tmp_path / "b.jsonl")


def test_keys_that_are_data_are_no_fields(tmp_path: Path) -> None:
    many = b",".join(b'"%d":1' % key for key in range(2000))
    table = table_of(tmp_path, b'{"scores":{%s},"image":"a"}' % many)
    assert types_in(table) == {"scores": "string", "image": "string"}


def every_cut() -> Iterator[bytes]:
    content = b'\xef\xbb\xbf{"image":"a","n":[1,{"x":"\\ud83d\\ude00\xc3\xa9"}]}\r\n\n{"image":"b","n":2.5}\n{"m":true}'
    for place in range(len(content) + 1):
        yield content[:place]
        yield content[place:]
        other = b'"\\\n{}\xff\x001,'[place % 9]
        yield content[:place] + bytes([other]) + content[place + 1 :]


def test_cuts_and_changes_everywhere_leave_the_other_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of parsing give the same rows, as many as there are lines."""
    monkeypatch.setattr(index_cache, "_place_of", lambda _digest: None)
    taken = 0
    for number, content in enumerate(every_cut()):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(content)
        try:
            table = JsonlTable(path)
        except UsageError:
            continue
        found = rows_in(table)
        lines = [line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip(b" \t\r")]
        assert len(found) == len(lines)
        with monkeypatch.context() as patch:
            patch.setattr(jsonl, "_parsed_by_arrow", lambda _block, _columns: None)
            assert str(rows_in(table)) == str(found)
            patch.setattr(text_table, "_LAST_INDEXES", {})
            assert types_in(JsonlTable(path)) == types_in(table)
        if "image" in table.schema.names and table.schema.field("image").type == pa.string():
            rows, _columns = job_rows(JsonlFiles, path)
            assert [row.failure is not None for row in rows] == [isinstance(row, str) for row in found]
        taken += 1
    assert taken > 150


def test_a_known_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(tmp_path, *(b'{"image":"%d"}' % row for row in range(5000)))
    monkeypatch.setattr(text_table, "_LAST_INDEXES", {})  # another process
    monkeypatch.setattr(text_groups, "records_in", None)
    monkeypatch.setattr(JsonlTable, "_begin", None)
    assert JsonlFiles.count_records(table.path) == 5000
    read: list[int] = []
    block_of = JsonlTable._block
    monkeypatch.setattr(JsonlTable, "_block", lambda *given: read.append(given[2].rows) or block_of(*given))
    assert rows_in(JsonlTable(table.path), 4000, 2) == [{"image": "4000"}, {"image": "4001"}]
    assert read == [1024], "one group"


@pytest.mark.parametrize("change", [b"", b"x", b'{"image":5}\n' * 9, b'{"image":"a"}\n' * 99])
def test_a_file_that_changes_while_it_is_read_is_damaged(tmp_path: Path, change: bytes) -> None:
    table = table_of(tmp_path, *[b'{"image":"a","n":1}'] * 9)
    table.path.write_bytes(change)
    found = rows_in(table)
    assert len(found) == 9
    assert all(isinstance(row, dict) or str(tmp_path) in row for row in found)


def test_a_line_that_is_too_long_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_groups, "MAX_RECORD_BYTES", 100)
    monkeypatch.setattr(text_table, "MAX_RECORD_BYTES", 100)
    with small_steps(1024, 16, 50):
        table = table_of(tmp_path, b'{"image":"a"}', b'{"image":"%s"}' % (b"x" * 200), b'{"image":"b"}')
        found = rows_in(table)
    assert [found[0], found[2]] == [{"image": "a"}, {"image": "b"}]
    assert found[1].startswith(f"line 2 of {table.path} has 213 bytes, and 100 are the most")
