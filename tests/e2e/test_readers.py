"""Parquet in every form goes in, streamed; and what comes out opens in every reader, with every column as it was."""

import datetime as dt
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from batchcap.core.atomic import TEMPORARY_SUFFIX
from batchcap.model.bundle import Bundle
from batchcap.store.folder import JobFolder
from batchcap.store.parts import SCHEMA
from tests.e2e.command import ONNX, batchcap, read_rows

pytestmark = pytest.mark.slow

ROWS, ROWS_PER_PART = 12, 5
MIB = 1 << 20
KEPT = pa.schema(
    [
        ("number", pa.int64()),
        ("price", pa.decimal128(9, 2)),
        ("when", pa.timestamp("us", "UTC")),
        ("kind", pa.dictionary(pa.int32(), pa.string())),
        ("tags", pa.list_(pa.string())),
        ("box", pa.struct([("x", pa.int32()), ("name", pa.string())])),
        ("raw", pa.binary()),
        ("nothing", pa.string()),
        ("caption", pa.string()),
    ]
)


def image(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40 + number, 40), (20 * number % 256, 90, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def kept_row(number: int) -> dict[str, Any]:
    if number == 3:
        return dict.fromkeys(KEPT.names)
    return {
        "number": number,
        "price": None if number == 4 else pa.scalar(number * 100 + 1, pa.int64()).cast(pa.decimal128(21, 2)).as_py(),
        "when": dt.datetime(2026, 1, 1 + number, 12, 30, 0, number, tzinfo=dt.UTC),
        "kind": ["cat", "dog"][number % 2],
        "tags": [[], ["a"], ["b", None]][number % 3],
        "box": {"x": number, "name": None if number % 2 else "n"},
        "raw": bytes([0, number]),
        "nothing": None,
        "caption": f"an older caption {number}",
    }


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_bundle_int4: Bundle) -> tuple[Path, pa.Table]:
    """A finished job whose rows of the second part have all failed, and the table it was made from."""
    folder = tmp_path_factory.mktemp("readers")
    failing = range(ROWS_PER_PART, 2 * ROWS_PER_PART)
    images = [b"no image" if number in failing else image(number) for number in range(ROWS)]
    kept = pa.Table.from_pylist([kept_row(number) for number in range(ROWS)], KEPT)
    table = kept.add_column(0, "image", pa.array(images, pa.binary()))
    pq.write_table(table, folder / "in.parquet", row_group_size=4)
    options = (
        "--image-column",
        "image",
        "--keep-columns",
        "*",
        "--rows-per-part",
        ROWS_PER_PART,
        "--max-new-tokens",
        4,
    )
    command = ("caption", folder / "in.parquet", "-o", folder / "out", "-m", tiny_bundle_int4.folder, *ONNX, *options)
    done = batchcap(*command)
    assert done.returncode == 0, done.stderr
    done = batchcap("report", folder / "out")  # its page must not be in the readers' way, nor what a killed run leaves
    assert done.returncode == 0, done.stderr
    (folder / "out" / f".part-00000.parquet.1{TEMPORARY_SUFFIX}").write_bytes(b"half a part")
    return folder / "out", kept


def expected_ids() -> list[str]:
    return [f"in.parquet:{number}" for number in range(ROWS)]


def expected_status() -> list[str]:
    return ["failed" if number // ROWS_PER_PART == 1 else "ok" for number in range(ROWS)]


def test_all_parts_have_one_schema_also_where_all_rows_failed(job: tuple[Path, pa.Table]) -> None:
    paths = JobFolder(job[0]).part_paths()
    schemas = [pq.read_schema(path).remove_metadata() for path in paths]
    assert [pq.read_metadata(path).num_rows for path in paths] == [5, 5, 2]
    assert schemas[0] == schemas[1] == schemas[2]
    assert schemas[0].names[: len(SCHEMA)] == SCHEMA.names
    assert pq.read_table(paths[1])["caption"].null_count == ROWS_PER_PART


def test_carried_columns_are_as_they_were(job: tuple[Path, pa.Table]) -> None:
    folder, kept = job
    table = pa.concat_tables([pq.read_table(path) for path in JobFolder(folder).part_paths()]).unify_dictionaries()
    for name in KEPT.names:
        found = table["input_caption" if name == "caption" else name]
        assert found.type == KEPT.field(name).type
        assert found.to_pylist() == kept[name].to_pylist()


def test_every_part_says_how_it_was_made(job: tuple[Path, pa.Table]) -> None:
    for path in JobFolder(job[0]).part_paths():
        names = set(pq.read_metadata(path).metadata)
        wanted = {"version", "bundle", "settings", "prompt_sha256", "format_version", "rows", "tally"}
        assert {f"batchcap.{name}".encode() for name in wanted} <= names


def test_pyarrow_opens_the_folder(job: tuple[Path, pa.Table]) -> None:
    table = ds.dataset(job[0]).to_table()
    assert table["id"].to_pylist() == expected_ids()
    assert table["status"].to_pylist() == expected_status()


def test_pandas_opens_the_folder(job: tuple[Path, pa.Table]) -> None:
    frame = pd.read_parquet(job[0])
    assert frame["id"].tolist() == expected_ids()
    assert frame["status"].tolist() == expected_status()
    assert frame["caption"].isna().tolist() == [status == "failed" for status in expected_status()]
    assert frame["row"].dtype == np.int64
    assert str(frame["when"].dt.tz) == "UTC"
    assert frame["kind"].astype(object)[0] == "cat"


def test_duckdb_opens_the_parts(job: tuple[Path, pa.Table]) -> None:
    with duckdb.connect() as database:
        found = database.execute(
            'SELECT id, status, "row", number, box.x, len(tags) FROM read_parquet(?) ORDER BY "row"',
            [str(job[0] / "*.parquet")],
        ).fetchall()
        failed = database.execute(
            "SELECT error_kind, count(*) FROM read_parquet(?) WHERE status = 'failed' GROUP BY 1",
            [str(job[0] / "*.parquet")],
        ).fetchall()
    assert [row[:3] for row in found] == list(zip(expected_ids(), expected_status(), range(ROWS), strict=True))
    assert found[2][3:] == (2, 2, 2)
    assert found[3][3:] == (None, None, None)
    assert failed == [("not_an_image", ROWS_PER_PART)]


def test_polars_opens_the_parts(job: tuple[Path, pa.Table]) -> None:
    frame = pl.read_parquet(job[0] / "*.parquet")
    assert frame["id"].to_list() == expected_ids()
    assert frame["status"].to_list() == expected_status()
    assert frame.schema["when"] == pl.Datetime("us", "UTC")
    assert frame.schema["tags"] == pl.List(pl.String)
    assert frame["raw"].to_list() == job[1]["raw"].to_pylist()


def test_spark_would_see_the_parts_and_nothing_else(job: tuple[Path, pa.Table]) -> None:
    """Spark and Hadoop skip files and folders whose names begin with `_` or `.`, and read all others."""
    seen = [path for path in job[0].rglob("*") if not any(part[0] in "_." for part in path.relative_to(job[0]).parts)]
    assert sorted(seen) == JobFolder(job[0]).part_paths()


DATASETS = """
import sys
from datasets import load_dataset
data = load_dataset(sys.argv[1], cache_dir=sys.argv[2])
assert list(data) == ["train"], data
data = data["train"]
print(*data["id"], sep="\\n")
print(*(f"{name}={feature}" for name, feature in data.features.items() if name in ("caption", "width")), sep="\\n")
"""


def test_datasets_opens_the_folder(job: tuple[Path, pa.Table], tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", DATASETS, str(job[0]), str(tmp_path)],
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *ids, caption, width = done.stdout.splitlines()
    assert ids == expected_ids()
    assert (caption, width) == ("caption=Value('string')", "width=Value('int32')")


def test_every_form_of_input_gives_the_same_captions(tmp_path: Path, tiny_bundle_int4: Bundle) -> None:
    numbers = range(4)
    for number in numbers:
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / f"{number}.png").write_bytes(image(number))
    paths = [f"files/{number}.png" for number in numbers]
    structs = [{"bytes": image(number), "path": None} for number in numbers]
    forms = {
        "paths.parquet": pa.array(paths),
        "bytes.parquet": pa.array([image(number) for number in numbers], pa.binary()),
        "large.parquet": pa.array([image(number) for number in numbers], pa.large_binary()),
        "struct.parquet": pa.array(structs, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "parts/a/1.parquet": pa.array([image(0), image(1)], pa.binary()),
        "parts/b/2.parquet": pa.array([image(2), image(3)], pa.binary()),
    }
    for name, images in forms.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": images}), tmp_path / name, row_group_size=1)
    inputs = [
        "files",
        "paths.parquet",
        "bytes.parquet",
        "large.parquet",
        "struct.parquet",
        "parts",
        "parts/*/*.parquet",
    ]
    command = ("caption", *inputs, "-o", "out", "-m", tiny_bundle_int4.folder, *ONNX, "--max-new-tokens", 8)
    done = batchcap(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "out")
    assert len(rows) == 6 * len(numbers), "what two inputs name is captioned once"
    for number in numbers:
        same = rows[number :: len(numbers)]
        assert {row["image_sha256"] for row in same} == {rows[number]["image_sha256"]}
        assert {row["caption"] for row in same} == {rows[number]["caption"]}
    assert len({row["id"] for row in rows}) == len(rows)


PEAK = """
import os, subprocess, sys
process = subprocess.Popen([sys.executable, "-m", "batchcap.cli", *sys.argv[1:]], stdout=subprocess.DEVNULL)
_pid, status, usage = os.wait4(process.pid, 0)
assert os.waitstatus_to_exitcode(status) in (0, 3)  # 3: nothing was captioned
print(usage.ru_maxrss / 1024)
"""


def peak_mib(*arguments: object) -> float:
    """Most memory that any process of a command held."""
    command = [sys.executable, "-c", PEAK, *map(str, arguments)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_memory_does_not_grow_with_the_file(tmp_path: Path, tiny_bundle_int4: Bundle) -> None:
    # One MiB a row that does not compress and that no decoder takes: all the work is reading.
    generator, path = np.random.default_rng(0), tmp_path / "large.parquet"
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for _group in range(50):
            cells = [generator.bytes(MIB) for _row in range(8)]
            writer.write_table(pa.table({"image": cells}, schema=schema))
    try:
        assert path.stat().st_size > 400 * MIB
        command = ("caption", path, "-m", tiny_bundle_int4.folder, *ONNX, "-o")
        few = peak_mib(*command, tmp_path / "few", "--limit", 16)
        all_rows = peak_mib(*command, tmp_path / "all")
    finally:
        path.unlink()
    assert len(read_rows(tmp_path / "all")) == 400
    assert all_rows < few + 150, f"{all_rows:.0f} MiB for 400 MiB of images, {few:.0f} MiB for 16 MiB"
