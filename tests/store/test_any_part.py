"""Whatever a model, a file name or an input table may hold comes back out of a part file as it was."""

import dataclasses
import tempfile
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcap.core.records import CaptionRow, Shard, Status
from batchcap.store.journal import Journal
from batchcap.store.parts import SCHEMA, output_schema, part_is_complete, read_row, write_part
from tests.store.records import caption_row
from tests.store.test_journal import FURTHER, ROW

ANY_TEXT = st.text(max_size=30) | st.sampled_from(["\0", "\r\n", "\x1b[31m", "\ufeff", "\udce9.png", "e\u0301" * 99])
NAMES = ("plain", "short", "long")


def answered(row: CaptionRow, further: list) -> CaptionRow:
    """A failed row has no further answers, any other one has all."""
    return dataclasses.replace(row, extra_prompts=tuple(further) if row.status is Status.OK else ())


ROWS = st.lists(st.builds(answered, ROW, st.lists(FURTHER, min_size=2, max_size=2)), min_size=1, max_size=5)
KINDS: dict[pa.DataType, st.SearchStrategy] = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint8(): st.integers(0, 255),
    pa.float64(): st.floats(allow_nan=False),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(st.characters(exclude_categories=["Cs"])),
    pa.large_string(): st.text(st.characters(exclude_categories=["Cs"])),
    pa.binary(): st.binary(),
    pa.binary(3): st.binary(min_size=3, max_size=3),
    pa.timestamp("us", "UTC"): st.integers(-(2**62), 2**62),
    pa.date32(): st.integers(-(2**31), 2**31 - 1),
    pa.list_(pa.int8()): st.lists(st.integers(-128, 127)),
    pa.struct([("a", pa.int8()), ("b", pa.string())]): st.fixed_dictionaries({"a": st.none(), "b": st.just("x")}),
    pa.null(): st.none(),
}


@st.composite
def carried(draw: st.DrawFn, rows: int) -> dict[str, pa.Array]:
    """Columns of any kind and name, as long as the part."""
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    names = draw(st.lists(text, unique=True, min_size=1, max_size=3))
    columns = {}
    for name in names:
        kind = draw(st.sampled_from(list(KINDS)))
        values = draw(st.lists(st.none() | KINDS[kind], min_size=rows, max_size=rows))
        columns[f"input {name}"] = pa.array(values, kind)
    return columns


@settings(max_examples=40)
@given(st.data(), ROWS)
def test_rows_and_columns_come_back(data: st.DataObject, rows: list[CaptionRow]) -> None:
    columns = pa.table(data.draw(carried(len(rows))))
    shard = Shard(3, 17, len(rows))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "part-00003.parquet"
        write_part(path, shard, rows, columns, {}, NAMES)
        assert part_is_complete(path, shard)
        table = pq.read_table(path)
        assert [read_row(path, place) for place in range(len(rows))] == rows
    assert table.select(columns.column_names).equals(columns)
    assert table.column_names == [*output_schema(NAMES).names, *columns.column_names]


@settings(max_examples=40)
@given(st.lists(st.tuples(ANY_TEXT, ANY_TEXT, ANY_TEXT), min_size=1, max_size=4))
def test_any_text_goes_through_journal_and_part(texts: list[tuple[str, str, str]]) -> None:
    r"""What is no UTF-8 (a file name) is written as `\udcNN`, and ends no job."""
    rows = [dataclasses.replace(caption_row(0), id=one, caption=two, error_message=three) for one, two, three in texts]
    shard = Shard(0, 0, len(rows))
    with tempfile.TemporaryDirectory() as name:
        with closing(Journal.open(Path(name) / "j")) as journal:
            journal.add(list(enumerate(rows)))
            found = [row for _index, row in journal.rows(shard)]
        write_part(Path(name) / "p", shard, found, None, {})
        table = pq.read_table(Path(name) / "p").select(SCHEMA.names).to_pylist()
    for row, texts_of_row in zip(table, texts, strict=True):
        expected = [text.encode(errors="backslashreplace").decode() for text in texts_of_row]
        assert [row["id"], row["caption"], row["error_message"]] == expected
