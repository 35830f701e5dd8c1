"""The input's tables with captions: every row beside its own caption, and all else as it was."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap.config import GenerationConfig, ImagesOf, InputConfig, JobConfig, LimitConfig, OutputsConfig
from batchcap.core.errors import UsageError, WorkerError
from batchcap.outputs import input_tables
from batchcap.outputs.convert import convert
from batchcap.outputs.form import Written
from batchcap.store.folder import JobFolder
from tests.images.samples import encode, noise
from tests.outputs.conftest import Run, with_outputs

ROWS = 7
FIELDS = pa.schema(
    [
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]), metadata={"of": "an image"}),
        pa.field("number", pa.int32(), nullable=False, metadata={"unit": "m"}),
        pa.field("kind", pa.dictionary(pa.int8(), pa.string())),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("Caption", pa.string()),
        pa.field("name", pa.string()),
    ],
    {"owner": "somebody"},
)


def row(number: int, name: str) -> dict[str, Any]:
    """A row of an input."""
    image = {"bytes": encode(noise(20, 10)), "path": None}
    kind, tags = ["a", "b", None][number % 3], [[], None, ["x"]][number % 3]
    return dict(zip(FIELDS.names, (image, number, kind, tags, f"older {number}", name), strict=True))


@pytest.fixture
def tables(config: JobConfig, tmp_path: Path) -> JobConfig:
    """A job of two Parquet files of 7 and 4 rows, in row groups of 3, two rows to a part."""
    for place, rows in (("a.parquet", ROWS), ("sub/b.pq", 4)):
        path = tmp_path / "tables" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        names = [f"{place}-{'bad' if number == 1 else 'cut' if number == 2 else number}" for number in range(rows)]
        table = pa.Table.from_pylist([row(number, name) for number, name in enumerate(names)], FIELDS)
        pq.write_table(table, path, row_group_size=3)
    return replace(config, input=InputConfig((str(tmp_path / "tables"),), id_column="name"))


def converted(config: JobConfig, form: str = "dataset", **settings: Any) -> Written:
    """What was written in a form."""
    (written,) = convert(Path(config.output), [form], OutputsConfig(**settings))
    return written


def test_the_same_tables_with_two_more_columns(tables: JobConfig, run: Run, tmp_path: Path) -> None:
    run(tables)
    written = converted(tables)
    assert written.to_text() == (
        f"dataset: 7 captions in 2 files in {tmp_path / 'out-dataset'}; left out: 2 failed, 2 truncated"
    )
    for name, rows in (("a.parquet", ROWS), ("sub/b.pq", 4)):
        before, after = (pq.ParquetFile(tmp_path / folder / name) for folder in ("tables", "out-dataset"))
        sizes = [
            [file.metadata.row_group(one).num_rows for one in range(file.num_row_groups)] for file in (before, after)
        ]
        assert sizes[0] == sizes[1]
        assert after.schema_arrow.names == [*FIELDS.names, "batchcap_caption", "verdict"]
        for field in before.schema_arrow:
            assert after.schema_arrow.field(field.name).equals(field, check_metadata=True)
        assert after.schema_arrow.metadata[b"owner"] == b"somebody"
        new = after.read()
        assert new.select(FIELDS.names).equals(before.read())
        expected = [f"Caption of {one}." for one in new["name"].to_pylist()]
        expected[1:3] = [None, None]
        assert new["batchcap_caption"].to_pylist() == expected
        assert new["verdict"].to_pylist() == ["ok", None, "truncated", *["ok"] * (rows - 3)]


def test_two_prompts_and_the_verdicts_asked_for(tables: JobConfig, run: Run, tmp_path: Path) -> None:
    config = replace(tables, generation=GenerationConfig(prompt={"short": "Short?", "long": "Long?"}))
    run(config)
    converted(config, verdicts=("truncated",))
    table = pq.read_table(tmp_path / "out-dataset/a.parquet")
    assert table.column_names[-4:] == ["caption_short", "verdict_short", "caption_long", "verdict_long"]
    assert table["caption_long"].to_pylist() == [None, None, "long of a.parquet-cut.", *[None] * 4]


def test_files_that_are_there_are_not_made_again(tables: JobConfig, run: Run, tmp_path: Path) -> None:
    run(tables)
    first = converted(tables)
    paths = [tmp_path / "out-dataset/a.parquet", tmp_path / "out-dataset/sub/b.pq"]
    before = [path.stat().st_mtime_ns for path in paths]
    assert converted(tables) == first
    assert [path.stat().st_mtime_ns for path in paths] == before
    paths[1].unlink()
    assert converted(tables) == first
    assert paths[0].stat().st_mtime_ns == before[0]
    assert paths[1].exists()


def test_of_a_job_that_is_not_complete(tables: JobConfig, run: Run, tmp_path: Path) -> None:
    asked = with_outputs(tables, also=("dataset",))
    with pytest.raises(WorkerError):
        run(asked, dies_after=5)
    with pytest.raises(UsageError, match=r"written once all rows are done, and 6 of .* are left"):
        converted(tables)
    assert not (tmp_path / "out-dataset").exists()
    assert "dataset: 7 captions in 2 files" in run(asked).message


def test_of_a_job_with_a_limit(tables: JobConfig, run: Run) -> None:
    config = replace(tables, limits=LimitConfig(limit=5))
    run(config)
    with pytest.raises(
        UsageError, match=r"a\.parquet has 7 rows, and this job has only 5 of them \(--limit, --where, "
    ):
        converted(config)


@pytest.mark.parametrize(
    "choice", [{"sample": 5}, {"shard": "1/2"}, {"where": "number < 3"}, {"where": "name LIKE 'a%'"}]
)
def test_of_some_rows(tables: JobConfig, run: Run, tmp_path: Path, choice: dict[str, Any]) -> None:
    """Refused before any work."""
    asked = with_outputs(replace(tables, input=replace(tables.input, **choice)), also=("dataset",))
    with pytest.raises(UsageError, match=r"rows, and this job has only \d of them"):
        run(asked)
    assert not list((tmp_path / "out").glob("part-*"))


def test_a_condition_that_all_rows_match(tables: JobConfig, run: Run) -> None:
    config = replace(tables, input=replace(tables.input, where="number >= 0"))
    assert "dataset: 7 captions in 2 files" in run(with_outputs(config, also=("dataset",))).message


def test_a_run_with_a_limit_is_refused_before_any_work(tables: JobConfig, run: Run) -> None:
    config = replace(with_outputs(tables, also=("dataset",)), limits=LimitConfig(limit=5))
    with pytest.raises(UsageError, match=r"a\.parquet has 7 rows, and this job has only 5 of them"):
        run(config)
    assert not JobFolder(Path(config.output)).part_paths()


def test_a_table_that_has_changed(tables: JobConfig, run: Run, tmp_path: Path) -> None:
    """Captions would stand beside the rows of others."""
    run(tables)
    path = tmp_path / "tables/a.parquet"
    pq.write_table(pq.read_table(path).sort_by([("number", "descending")]), path, row_group_size=3)
    with pytest.raises(UsageError, match=r"a\.parquet has changed since it was captioned"):
        converted(tables)
    path.unlink()
    with pytest.raises(UsageError, match="is missing: put it back"):
        converted(tables)


def test_image_files_have_no_table(config: JobConfig, run: Run) -> None:
    asked = with_outputs(config, also=("dataset",))
    with pytest.raises(UsageError, match=r"inputs without a table .*: choose imagefolder"):
        run(asked, dies_after=0)
    run(config)
    with pytest.raises(UsageError, match="inputs without a table"):
        converted(config)


def test_a_kill_before_a_file_is_whole(
    tables: JobConfig, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tables)

    def killed(*_anything: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(input_tables._Stream, "take", killed)
        with pytest.raises(KeyboardInterrupt):
            converted(tables)
    assert not list((tmp_path / "out-dataset").rglob("*.p*q*"))
    assert converted(tables).files == 2


def test_large_row_groups_are_cut(tables: JobConfig, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays that of one piece, whatever the input's row groups hold."""
    run(tables)
    monkeypatch.setattr(input_tables, "_ROWS_AT_ONCE", 2)
    monkeypatch.setattr(input_tables, "_MAX_GROUP_BYTES", 1)
    converted(tables)
    file = pq.ParquetFile(tmp_path / "out-dataset/a.parquet")
    assert [file.metadata.row_group(one).num_rows for one in range(file.num_row_groups)] == [2, 1, 2, 1, 1]
    assert file.read()["number"].to_pylist() == list(range(ROWS))


def test_a_damaged_column_is_null(tables: JobConfig, run: Run, tmp_path: Path) -> None:
    """As it is in the parts: the row is there, and what can be read of it."""
    path = tmp_path / "tables/a.parquet"
    column = pq.read_metadata(path).row_group(1).column(FIELDS.names.index("name") + 1)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)
    run(replace(tables, input=replace(tables.input, id_column=None)))
    converted(tables)
    table = pq.read_table(tmp_path / "out-dataset/a.parquet")
    names = table["name"].to_pylist()
    assert (names[2], names[3:6], names[6]) == ("a.parquet-cut", [None] * 3, "a.parquet-6")
    assert table["number"].to_pylist() == list(range(ROWS))
    assert table["batchcap_caption"].to_pylist()[4] == "Caption of a.parquet:4."


def test_files_of_one_name_do_not_overwrite_each_other(tables: JobConfig, run: Run, tmp_path: Path) -> None:
    other = tmp_path / "more/a.parquet"
    other.parent.mkdir()
    other.write_bytes((tmp_path / "tables/a.parquet").read_bytes())
    inputs = (str(tmp_path / "tables/a.parquet"), str(other))
    config = replace(tables, input=InputConfig(inputs, id_column="name"))
    run(config)
    assert converted(config).files == 2
    found = list((tmp_path / "out-dataset").rglob("*.parquet"))
    assert [pq.read_metadata(path).num_rows for path in found] == [ROWS, ROWS]
    assert all(os.fspath(path).startswith(os.fspath(tmp_path / "out-dataset")) for path in found)


def test_rows_with_several_captions_of_one_prompt(tables: JobConfig, run: Run) -> None:
    config = replace(tables, input=replace(tables.input, images=ImagesOf.EACH))
    run(config)
    with pytest.raises(UsageError, match=r"one for each image of a row \(--images each\): choose jsonl or hf-parquet"):
        converted(config)


def test_other_tables_become_parquet(config: JobConfig, run: Run, tmp_path: Path) -> None:
    lines = [{"image": name, "number": number} for number, name in enumerate(("a.png", "sub/b.jpg", "bad.png"))]
    path = tmp_path / "in/list.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = replace(config, input=InputConfig((str(path),), id_column="image"))
    run(config)
    assert converted(config).captions == 2
    table = pq.read_table(tmp_path / "out-dataset/list.jsonl.parquet")
    assert table.column_names == ["image", "number", "caption", "verdict"]
    assert table["number"].to_pylist() == [0, 1, 2]
    assert table["caption"].to_pylist() == ["Caption of a.png.", "Caption of sub/b.jpg.", None]
