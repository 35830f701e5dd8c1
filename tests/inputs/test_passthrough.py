"""Carried columns of whole jobs: one schema in all parts, tried before the work, and kept by jobs begun before."""

import datetime as dt
import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from batchcap.config import InputConfig, JobConfig, LimitConfig, PlacementConfig
from batchcap.core.errors import UsageError
from batchcap.core.records import Caption, FinishReason, ImageFacts, Outcome, Request, Verdict
from batchcap.inputs import parquet, passthrough
from batchcap.job import run as job
from batchcap.job.run import run_job
from batchcap.store.folder import JobFolder
from batchcap.store.parts import SCHEMA
from tests.fake_engine import FakeEngine, SilentProgress, fake_bundle
from tests.inputs.hostile import damage_pages

FOR_EVER = dt.datetime.fromisoformat("9999-12-31")
TENSOR = pa.fixed_shape_tensor(pa.int32(), [2, 3], permutation=[1, 0])


def end(request: Request) -> Outcome:
    row = request.row
    caption = Caption(row.index, (1,), f"of {row.id}", FinishReason.STOP, Verdict.OK, 9, 4, 3.0, 5.0)
    return Outcome(request, (caption,), ImageFacts(64, 48, hashlib.sha256(row.id.encode()).hexdigest(), 1.0, 2.0))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobConfig:
    monkeypatch.setattr(job, "load_bundle", lambda _model: fake_bundle())
    (tmp_path / "in").mkdir()
    return JobConfig(
        InputConfig((str(tmp_path / "in"),), image_column="image", keep_columns=("*",)),
        str(tmp_path / "out"),
        placement=PlacementConfig(rows_per_part=2),
    )


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., None]:
    def write(name: str, /, **columns: Any) -> None:
        images = {"image": [name.encode() + bytes([row]) for row in range(len(next(iter(columns.values()))))]}
        pq.write_table(pa.table({**images, **columns}), tmp_path / "in" / name)

    return write


def run(config: JobConfig) -> None:
    run_job(config, SilentProgress(), lambda *_arguments: FakeEngine(end=end))


def refused(config: JobConfig, match: str) -> None:
    """The run ends before an engine is there."""
    with pytest.raises(UsageError, match=match):
        run_job(config, SilentProgress(), lambda *_arguments: pytest.fail("the work has begun"))


def carried_of(config: JobConfig) -> pa.Table:
    """What all parts carry, which have one schema to the last bit and are one table for who opens them."""
    paths = JobFolder(Path(config.output)).part_paths()
    own = set(SCHEMA.names)
    schemas = [pa.schema([field for field in pq.read_schema(path) if field.name not in own]) for path in paths]
    assert all(schema.equals(schemas[0]) for schema in schemas)
    names = schemas[0].names
    return ds.dataset([str(path) for path in paths]).to_table(columns=names) if names else pa.table({})


def test_what_polars_pandas_and_pyarrow_store_differently_is_one_column(
    config: JobConfig, write: Callable[..., None]
) -> None:
    words, lists = ["x", None, "y"], [["p", None], None, []]
    structs = [{"a": "p", "b": [1]}, None, {"a": None, "b": None}]
    kinds = [
        (pa.string(), pa.list_(pa.string()), pa.struct([("a", pa.string()), ("b", pa.list_(pa.int32()))])),
        (
            pa.large_string(),
            pa.large_list(pa.large_string()),
            pa.struct([("a", pa.large_string()), ("b", pa.large_list(pa.int64()))]),
        ),
        (
            pa.dictionary(pa.uint32(), pa.string()),
            pa.list_view(pa.string()),
            pa.struct([("a", pa.string_view()), ("b", pa.list_view(pa.int64()))]),
        ),
    ]
    for number, (word, items, struct) in enumerate(kinds):
        columns = {"word": pa.array(words).cast(word), "items": pa.array(lists, items), "mixed": None}
        columns["mixed"] = pa.array(structs, struct)
        write(f"{number}.parquet", **columns)
    run(config)
    found = carried_of(config)
    assert found.schema.types == [
        kinds[0][0],
        kinds[0][1],
        pa.struct([("a", pa.string()), ("b", pa.list_(pa.int64()))]),
    ]
    assert found.to_pydict() == {"word": words * 3, "items": lists * 3, "mixed": structs * 3}


ALONE = {
    "dictionary": pa.array(["a", None, "a"]).cast(pa.dictionary(pa.int8(), pa.string())),
    "enum": pa.array(["a", None, "a"]).cast(pa.dictionary(pa.uint8(), pa.string(), ordered=True)),
    "view": pa.array(["a", None, "a"], pa.string_view()),
    "large": pa.array([["a"], None, []], pa.large_list(pa.large_string())),
    "list_view": pa.array([["a"], None, []], pa.list_view(pa.string())),
    "nothing": pa.nulls(3),
    "short": pa.array([1, None, 3], pa.int16()),
    "when": pa.array([0, None, 2**50], pa.timestamp("us", "Europe/Berlin")),
    "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"x" * 16, None, b"y" * 16], pa.binary(16))),
}


def test_columns_of_one_type_come_out_as_they_are(config: JobConfig, write: Callable[..., None]) -> None:
    write("a.parquet", **ALONE)
    write("b.parquet", **ALONE)
    buffer = io.BytesIO()
    pq.write_table(pa.table(ALONE), buffer)
    run(config)
    path = JobFolder(Path(config.output)).part_paths()[0]
    found = pq.read_schema(path)
    expected = pq.read_schema(buffer)
    assert [(field.name, field.type) for field in found][-len(ALONE) :] == [(one.name, one.type) for one in expected]
    assert carried_of(config).to_pydict() == {name: [*column.to_pylist()] * 2 for name, column in ALONE.items()}


def test_widths_are_joined_where_nothing_is_lost(config: JobConfig, write: Callable[..., None]) -> None:
    write(
        "a.parquet", n=pa.array([1], pa.int32()), f=pa.array([1.5], pa.float32()), t=pa.array([1], pa.timestamp("us"))
    )
    write("b.parquet", n=pa.array([2**40], pa.int64()), f=pa.array([0.1]), t=pa.array([1_000_001], pa.timestamp("ns")))
    run(config)
    found = carried_of(config)
    assert found.schema.types == [pa.int64(), pa.float64(), pa.timestamp("ns")]
    assert found.slice(0, 2)["n"].to_pylist() == [1, 2**40]
    assert found["f"].to_pylist() == [1.5, 0.1]
    assert found["t"].cast(pa.int64()).to_pylist() == [1000, 1_000_001]


def test_a_date_that_the_finer_unit_can_not_hold_is_told_before_the_work(
    config: JobConfig, write: Callable[..., None]
) -> None:
    write("a.parquet", until=pa.array([1], pa.timestamp("ns")))
    write("b.parquet", until=pa.array([dt.datetime.fromisoformat("2024-01-01"), FOR_EVER], pa.timestamp("us")))
    refused(config, r"'until' of .*b\.parquet has a value in row 1 that does not fit timestamp\[ns\].*--keep-columns")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (pa.array([1]), pa.array(["x"])),
        (pa.array([1]), pa.array([1.5])),
        (pa.array(["x"]), pa.array([b"x"])),
        (pa.array([{"a": 1}]), pa.array([{"b": 1}])),
    ],
    ids=lambda column: str(column.type),
)
def test_what_can_not_be_joined_is_told_before_the_work_and_after_parts(
    config: JobConfig, write: Callable[..., None], before: pa.Array, after: pa.Array
) -> None:
    write("a.parquet", c=before)
    write("b.parquet", c=after)
    refused(config, r"column 'c' is .* in .*a\.parquet and .* in .*b\.parquet: leave it out with --keep-columns")
    (Path(config.input.inputs[0]) / "b.parquet").unlink()
    run(config)
    write("b.parquet", c=after)
    refused(config, r"in the parts that this job has written and .* in .*b\.parquet: .* another --output")


def test_a_later_file_is_carried_with_the_type_of_the_parts(config: JobConfig, write: Callable[..., None]) -> None:
    write("a.parquet", n=pa.array([1], pa.int32()), word=["x"], t=pa.array([1], pa.timestamp("us")), none=pa.nulls(1))
    run(config)
    later = {"word": pa.array(["y"]).dictionary_encode(), "t": pa.array([2000], pa.timestamp("ns"))}
    write("b.parquet", n=pa.array([2], pa.int64()), **later, none=pa.array([None], pa.string()))
    run(config)
    found = carried_of(config)
    assert found.schema.types == [pa.int32(), pa.string(), pa.timestamp("us"), pa.null()]
    assert found["n"].to_pylist() == [1, 2]
    assert found["word"].to_pylist() == ["x", "y"]
    assert found["t"].cast(pa.int64()).to_pylist() == [1, 2]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (pa.array([1], pa.int32()), pa.array([2, 2**40], pa.int64())),
        (pa.array([1], pa.timestamp("ns")), pa.array([1, 2**60], pa.timestamp("us"))),
        (pa.array([1], pa.timestamp("us")), pa.array([1000, 1001], pa.timestamp("ns"))),
        (pa.nulls(1), pa.array([None, "x"])),
    ],
    ids=lambda column: str(column.type),
)
def test_a_later_file_with_a_value_that_does_not_fit_is_told(
    config: JobConfig, write: Callable[..., None], before: pa.Array, after: pa.Array
) -> None:
    """Readers would refuse parts of several types, and nobody would know why a value is another one."""
    write("a.parquet", c=before)
    run(config)
    write("b.parquet", c=after)
    for _again in range(2):
        refused(config, r"'c' of .*b\.parquet has a value in row 1 that does not fit .*another --output")
    write("b.parquet", c=after[:1])
    run(config)
    assert len(carried_of(config)) == 2


def test_a_wider_type_may_still_come_while_no_part_is_there(config: JobConfig, write: Callable[..., None]) -> None:
    write("a.parquet", n=pa.array([1], pa.int32()))
    config = replace(config, placement=replace(config.placement, rows_per_part=10))
    stopped = replace(config, limits=LimitConfig(max_runtime_s=1e-9))
    run_job(stopped, SilentProgress(), lambda *_arguments: FakeEngine(end=end))
    write("b.parquet", n=pa.array([2**40], pa.int64()))
    run(config)
    assert carried_of(config).to_pydict() == {"n": [1, 2**40]}


def test_columns_that_came_later_are_left_out_and_told(
    config: JobConfig, write: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    write("a.parquet", n=[1])
    run(config)
    write("b.parquet", n=[2], new=["x"])
    write("c.parquet", newer=["x"], n=[3])
    run(config)
    assert carried_of(config).to_pydict() == {"n": [1, 2, 3]}
    (told,) = [record.getMessage() for record in caplog.records if record.name == passthrough.__name__]
    assert "no column new, newer, as" in told
    assert "b.parquet" in told


def test_columns_of_a_file_that_is_gone_stay(config: JobConfig, write: Callable[..., None]) -> None:
    write("a.parquet", n=[1, 2], only_here=["x", "y"])
    write("b.parquet", n=[3, 4])
    run(replace(config, limits=LimitConfig(limit=2)))
    (Path(config.input.inputs[0]) / "a.parquet").unlink()
    run(config)
    assert carried_of(config).to_pydict() == {"n": [1, 2, 3, 4], "only_here": ["x", "y", None, None]}


def test_a_job_begun_with_dates_in_nanoseconds_goes_on(
    config: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All its parts keep the type of the first; what that can't hold is null with a word, and no other date."""
    days = [dt.datetime.fromisoformat(f"20{row}-01-01") for row in range(10, 16)]
    days[3] = FOR_EVER
    table = pa.table({"image": [bytes([row]) for row in range(6)], "day": pa.array(days, pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "in" / "a.parquet", use_deprecated_int96_timestamps=True)
    with monkeypatch.context() as patch:
        patch.setattr(parquet, "open_parquet", pq.ParquetFile)
        run(replace(config, limits=LimitConfig(limit=2)))
    run(config)
    found = carried_of(config)
    assert found.schema.types == [pa.timestamp("ns")]
    days[3] = None
    assert found["day"].cast(pa.timestamp("us")).to_pylist() == days
    warnings = [record.getMessage() for record in caplog.records if record.name == passthrough.__name__]
    assert len(warnings) == 1
    assert "column 'day' of" in warnings[0]
    assert "timestamp[ns]" in warnings[0]
    assert "null in 1 rows" in warnings[0]


def test_a_type_that_can_not_be_empty_is_carried(config: JobConfig, write: Callable[..., None], tmp_path: Path) -> None:
    """PyArrow writes and reads it, and can't make an empty table of it."""
    with pytest.raises(NotImplementedError):
        pa.schema([("c", TENSOR)]).empty_table()
    storage = pa.array([[1, 2, 3, 4, 5, 6], None, [7] * 6], TENSOR.storage_type)
    cells = pa.ExtensionArray.from_storage(TENSOR, storage)
    write("a.parquet", c=cells, inside=pa.StructArray.from_arrays([cells], ["x"]))
    write("b.parquet", other=[1])
    (tmp_path / "in" / "c.png").write_bytes(b"x")
    run(config)
    paths = JobFolder(tmp_path / "out").part_paths()
    rows = pa.concat_tables([pq.read_table(path, columns=["c", "inside"]) for path in paths])
    assert rows.schema.types == [TENSOR, pa.struct([("x", TENSOR)])]
    assert rows["c"].cast(TENSOR.storage_type).to_pylist() == [*storage.to_pylist(), None, None]


def test_a_struct_whose_parts_are_never_null_is_null_as_a_whole(
    config: JobConfig, write: Callable[..., None], tmp_path: Path
) -> None:
    """Where a row has no such column: Parquet files by Spark have these, and PyArrow writes none of them with nulls."""
    write("a.parquet", c=pa.array([{"a": 1}], pa.struct([pa.field("a", pa.int64(), nullable=False)])))
    (tmp_path / "in" / "b.png").write_bytes(b"x")
    run(config)
    assert carried_of(config)["c"].to_pylist() == [{"a": 1}, None]


def test_a_type_that_can_not_be_written_with_values_is_carried_plainly(
    config: JobConfig, write: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = pa.list_(pa.struct([("a", pa.string_view())]))
    with pytest.raises(pa.ArrowNotImplementedError):  # one row can be written, so there are files, but no two
        pq.write_table(pa.table({"c": pa.array([[{"a": "x"}]] * 2, kind)}), io.BytesIO())
    for name in ("a.parquet", "b.parquet"):
        write(name, c=pa.array([[{"a": name}]], kind))
    run(config)
    assert carried_of(config)["c"].to_pylist() == [[{"a": "a.parquet"}], [{"a": "b.parquet"}]]
    monkeypatch.setattr(passthrough, "writable", lambda _kind: None)
    refused(replace(config, output=f"{config.output}2"), r"'c' of .*a\.parquet is .*can't be written.*--keep-columns")


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"keep_columns": ("title",)}, "--keep-columns"),
        ({"keep_columns": ("*", "title")}, "--keep-columns"),
        ({"keep_columns": (), "image_column": "title"}, "--image-column"),
        ({"keep_columns": (), "id_column": "title"}, "--id-column"),
    ],
)
def test_columns_of_inputs_that_have_none(
    config: JobConfig, write: Callable[..., None], tmp_path: Path, settings: dict[str, Any], option: str
) -> None:
    config = replace(config, input=replace(config.input, image_column=None))
    (tmp_path / "in" / "a.png").write_bytes(b"x")
    named = replace(config, input=replace(config.input, **settings))
    for _again in range(2):
        refused(named, rf"no input has a column 'title' \({option}\): .*tables have columns, .*leave out {option}")
    write("b.parquet", name=["x"])
    refused(named, rf"b\.parquet has no column 'title' \({option}\): name one of image, name")
    (tmp_path / "in" / "b.parquet").unlink()
    run(config)


def test_a_job_begun_with_columns_that_nothing_has_goes_on(
    config: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in" / "a.png").write_bytes(b"x")
    config = replace(config, input=replace(config.input, image_column=None, keep_columns=("title",)))
    with monkeypatch.context() as patch:
        patch.setattr("batchcap.inputs.columns.column_options", lambda _config: [])
        run(config)
    (tmp_path / "in" / "b.png").write_bytes(b"y")
    run(config)
    assert len(JobFolder(tmp_path / "out").part_paths()) == 2


def test_a_damaged_struct_whose_parts_are_never_null_is_null(
    config: JobConfig, write: Callable[..., None], tmp_path: Path
) -> None:
    write("a.parquet", c=pa.array([{"a": 1}] * 3, pa.struct([pa.field("a", pa.int64(), nullable=False)])), n=[1, 2, 3])
    damage_pages(tmp_path / "in" / "a.parquet", group=0, column=1)
    run(config)
    assert carried_of(config).to_pydict() == {"c": [None] * 3, "n": [1, 2, 3]}
