"""CSV and TSV: each field as RFC 4180 has it, types of the whole file, and a bad record fails alone."""

import random
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcap.config import InputConfig
from batchcap.core.errors import ErrorKind, UsageError
from batchcap.core.sources import FileAt
from batchcap.inputs import delimited, index_cache, text_table
from batchcap.inputs.delimited import CsvFiles, CsvTable, TsvFiles, TsvTable
from tests.inputs.texts import job_rows, rows_in, small_steps, types_in

WHOLE = st.integers(-5, 5) | st.sampled_from([2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 10**30])
REAL = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.sampled_from('ab1.-, \t"\n\ré\0'), max_size=4) | st.sampled_from(["007", "true", "1e999", "+1", "-0"])
FIELDS = st.sampled_from([WHOLE.map(str), (WHOLE | REAL).map(str), st.sampled_from(["true", "false"]), TEXT])
WAYS = pytest.mark.parametrize("way", ["arrow", "python"])


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[str | None]]]:
    names = draw(
        st.lists(st.text(st.sampled_from('ab,"\té '), min_size=1, max_size=3), min_size=2, max_size=4, unique=True)
    )
    fields = [st.none() | draw(FIELDS) for _name in names]
    return names, draw(st.lists(st.tuples(*fields).map(list), max_size=20))


def written(field: str | None, separator: str, chance: random.Random) -> str:
    if field is None:
        return ""
    if field == "" or chance.random() < 0.2 or re.search(f'["\r\n{separator}]', field):
        return '"' + field.replace('"', '""') + '"'
    return field


def parse_slowly(patch: pytest.MonkeyPatch, way: str) -> None:
    if way == "python":
        patch.setattr(delimited, "_parsed_by_arrow", lambda _block, _form, _wanted: None)


@WAYS
@settings(max_examples=80, deadline=None)
@given(
    tables(), st.sampled_from([CsvTable, TsvTable]), st.sampled_from(["\n", "\r\n", "\n\n"]), st.integers(), st.data()
)
def test_any_table_in_any_ranges(
    way: str,
    table: tuple[list[str], list[list[str | None]]],
    kind: type[CsvTable],
    end: str,
    seed: int,
    data: st.DataObject,
) -> None:
    names, rows = table
    chance, separator = random.Random(seed), kind.rules.separator.decode()
    lines = [separator.join(written(field, separator, chance) for field in row) for row in [names, *rows]]
    mark, last = data.draw(st.sampled_from(["", "\ufeff"])), data.draw(st.sampled_from(["", end]))
    with (
        tempfile.TemporaryDirectory() as name,
        small_steps(data.draw(st.integers(1, 9)), 30),
        pytest.MonkeyPatch.context() as patch,
    ):
        parse_slowly(patch, way)
        path = Path(name) / "a.csv"
        path.write_bytes((mark + end.join(lines) + last).encode())
        found = kind(path)
        start = data.draw(st.integers(0, len(rows)))
        columns = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
        some, whole = rows_in(found, start, len(rows) - start, columns), rows_in(found)
    assert found.schema.names == names
    assert [{name: row[name] for name in columns} for row in whole[start:]] == some
    for place, name in enumerate(names):
        texts = [row[place] for row in rows]
        values = [row[name] for row in whole]
        assert all(is_same(value, text) for value, text in zip(values, texts, strict=True))
        if all(text in {"true", "false", None} for text in texts) and any(texts):
            assert types_in(found)[name] == "bool"


def is_same(value: Any, text: str | None) -> bool:
    """Whether a value is all that a field says."""
    if isinstance(value, bool):
        return text == str(value).lower()
    return (
        value == text if value is None or isinstance(value, str) else str(value) == text or value == float(text or "")
    )


@WAYS
@pytest.mark.parametrize(
    ("fields", "kind", "expected"),
    [
        ("1|-2|9223372036854775807||", "int64", [1, -2, 2**63 - 1, None]),
        ('1|"2"', "int64", [1, 2]),
        ("1|2.5|.5|1e3", "double", [1.0, 2.5, 0.5, 1000.0]),
        ("1|007", "string", ["1", "007"]),
        ("1|9223372036854775808", "string", ["1", "9223372036854775808"]),
        ("1.5|9007199254740993", "string", ["1.5", "9007199254740993"]),
        ("1.5|1e999", "string", ["1.5", "1e999"]),
        ("1|-0", "double", [1.0, -0.0]),
        ("1|+1", "string", ["1", "+1"]),
        ("1|1 ", "string", ["1", "1 "]),
        ("1|nan", "string", ["1", "nan"]),
        ("true|false|", "bool", [True, False, None]),
        ("true|True", "string", ["true", "True"]),
        ("true|1", "string", ["true", "1"]),
        ('1|""|', "string", ["1", "", None]),
        ("2024-01-01|2024-01-02", "string", ["2024-01-01", "2024-01-02"]),
        ("NULL|NA", "string", ["NULL", "NA"]),
        ("|", "null", [None, None]),
        ('"a""b"|"c\r\nd"|"e,f"|g"h', "string", ['a"b', "c\r\nd", "e,f", 'g"h']),
    ],
)
def test_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, fields: str, kind: str, expected: Any
) -> None:
    parse_slowly(monkeypatch, way)
    path = tmp_path / "a.csv"
    lines = fields.split("|")[: len(expected)]
    path.write_bytes("".join(f"x,{field}\r\n" for field in ["v", *lines]).encode())
    table = CsvTable(path)
    assert types_in(table)["v"] == kind
    assert str([row["v"] for row in rows_in(table)]) == str(expected)


@pytest.mark.parametrize(
    ("lines", "line", "reason"),
    [
        ("short", 3, "line 3 of PATH has 1 fields, and the header has 2"),
        ("x,long,er", 3, "line 3 of PATH has 3 fields, and the header has 2"),
        ('x,"open\ny,z', 3, "the quote that begins in line 3 of PATH is never closed: all up to the end in line "),
        ('x,"b"c', 3, "the quote that begins in line 3 of PATH is closed before the end of its field"),
        ('"m\nn","b"c', 4, "the quote that begins in line 4 of PATH is closed before the end of its field"),
        ("x,\xff", 3, "line 3 of PATH is not UTF-8 (byte 0xff): convert it, as with `iconv"),
    ],
)
def test_a_bad_record_fails_alone(tmp_path: Path, lines: str, line: int, reason: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f"image,n\na,1\n{lines}\nb,2\n".encode("latin-1"))
    rows, columns = job_rows(CsvFiles, path)
    kind, said = rows[1].failure or (None, "")
    assert kind is ErrorKind.UNREADABLE
    assert said.startswith(reason.replace("PATH", str(path)))
    good = [{"n": 1}, {"n": None}, {"n": 2}]
    if "never closed" in reason:
        assert said.endswith("line 5 is this row")
        good.pop()
    else:
        assert rows[2].image == FileAt(f"{tmp_path}/b")
    assert rows[0].image == FileAt(f"{tmp_path}/a")
    assert columns == good


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: its first line must name the columns"),
        (b"\n\r\n", "is empty: its first line must name the columns"),
        (b"image;n\na;1\n", r"has one column, 'image;n': semicolons separate nothing in a CSV file"),
        (b"image\tn\na\t1\n", r"has one column, .*: tabs separate nothing"),
        (b"im\xe4ge,n\na,1\n", r"header of .* is not UTF-8 \(byte 0xe4\): convert it, as with `iconv"),
        ("image,n\na,1\n".encode("utf-16"), "it may be UTF-16"),
        ("image,n\na,1\n".encode("utf-16-le"), "it may be UTF-16"),
        (b"image,n\ra,1\r", "line ends of old Macs"),
        (b'image,"n\na,1\n', "never closed"),
        (b"x" * (1 << 20), "is longer than 1048576 bytes: is it a CSV file"),
        (
            b"image,n\n" + b"\xe4,1\n" * 11 + b"b,2\n" * 20,
            "11 of 31 rows are not UTF-8, the first in line 2 of .*a.csv: .*iconv",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        CsvFiles.count_records(path)


def test_columns_of_one_name_are_refused_as_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b"image\tn\tn\na\t1\t2\n")
    with pytest.raises(UsageError, match="has several columns called n: rename them"):
        TsvFiles(InputConfig((str(path),))).passthrough(path)


def test_a_column_without_a_name_is_one(tmp_path: Path) -> None:
    """As pandas writes its index."""
    path = tmp_path / "a.csv"
    path.write_bytes(b",image\n0,a\n1,b\n")
    assert job_rows(CsvFiles, path)[1] == [{"": 0}, {"": 1}]


def test_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\n\nimage,n")
    assert job_rows(CsvFiles, path) == ([], [])


def expected_rows(content: bytes) -> list[tuple[str | None, ...] | None] | None:
    """What RFC 4180 says, letter by letter; None in the place of a bad record, and for a file that is refused."""
    records: list[list[tuple[bytes, bool]] | None] = []
    fields, field, state, is_bad, start = [], b"", "start", False, 0
    for place in range(len(content) + 1):
        letter = content[place : place + 1]
        if letter == b"" and place == start:
            break
        if letter == b"\r" and content[place + 1 : place + 2] in (b"\n", b"") and state != "quoted":
            continue
        if letter == b"" or (letter in (b",", b"\n") and state != "quoted"):
            fields.append((field, state == "closed"))
            is_bad |= state == "quoted" or (state == "closed" and content[place - 1 : place] not in (b'"', b"\r"))
            field, state = b"", "start"
            if letter != b",":
                if content[start:place].strip(b"\r\n"):
                    records.append(None if is_bad else fields)
                fields, is_bad, start = [], False, place + 1
        elif letter == b'"' and state in {"start", "quoted"}:
            state = "closed" if state == "quoted" else "quoted"
        elif letter == b'"' and state == "closed" and content[place - 1 : place] == b'"':
            state, field = "quoted", field + b'"'
        else:
            is_bad |= state == "closed"
            field, state = field + letter, "field" if state == "start" else state
    if not records or records[0] is None:
        return None
    width = len(records[0])
    return [
        None
        if record is None or len(record) != width or b"\xff" in b"".join(text for text, _ in record)
        else tuple(text.decode() if text or is_quoted else None for text, is_quoted in record)
        for record in records[1:]
    ]


def cuts_and_changes() -> list[bytes]:
    content = b'a,"b ""c"""\r\n"x\n1",2\n\n3,"4"\r\n,""\n5," 6,7"\n'
    places = range(len(content) + 1)
    found = [content[:place] for place in places]
    for other in b'"\n,\r\xffx':
        found += [content[:place] + bytes([other]) + content[place + 1 :] for place in places]
        found += [content[:place] + bytes([other]) + content[place:] for place in places]
    chance = random.Random(1)
    return found + [bytes(chance.choices(b'a1",\r\n', k=chance.randrange(40))) for _file in range(200)]


@pytest.mark.parametrize("part", range(4))
def test_cuts_and_changes_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    """Each record is what a reader of one letter after the other finds."""
    monkeypatch.setattr(index_cache, "_place_of", lambda _digest: None)
    monkeypatch.setattr(delimited, "_kind_of_fields", lambda _values: delimited.TEXT)
    taken = 0
    for number, content in enumerate(cuts_and_changes()[part::4]):
        path = tmp_path / f"{number}.csv"
        path.write_bytes(content)
        try:
            table = CsvTable(path)
        except UsageError:
            continue
        columns = [f"{place}" for place in range(len(table.schema))]
        table.schema = table.schema.empty_table().rename_columns(columns).schema
        found = [row if isinstance(row, str) else tuple(row.values()) for row in rows_in(table)]
        assert [None if isinstance(row, str) else row for row in found] == expected_rows(content), content
        taken += 1
    assert taken > 100


def test_a_known_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"image,n\n" + b"".join(b"%d,x\n" % row for row in range(5000)))
    assert CsvFiles.count_records(path) == 5000
    monkeypatch.setattr(text_table, "_LAST_INDEXES", {})  # another process
    monkeypatch.setattr(CsvTable, "_begin", None)
    assert CsvFiles.count_records(path) == 5000
    read: list[int] = []
    block_of = CsvTable._block
    monkeypatch.setattr(CsvTable, "_block", lambda *given: read.append(given[2].rows) or block_of(*given))
    assert rows_in(CsvTable(path), 4000, 2) == [{"image": 4000, "n": "x"}, {"image": 4001, "n": "x"}]
    assert read == [1024], "one group"


@pytest.mark.parametrize("change", [b"", b"x", b"image,n\nz,x\n" * 9, b'"' * 99])
def test_a_file_that_changes_while_it_is_read_is_damaged(tmp_path: Path, change: bytes) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"image,n\n" + b"a,1\n" * 9)
    table = CsvTable(path)
    path.write_bytes(change)
    found = rows_in(table)
    assert len(found) == 9
    assert all(isinstance(row, dict) or str(tmp_path) in row for row in found)
