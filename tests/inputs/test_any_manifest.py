"""Whatever is written as Parquet is planned and read back: each row once, in order, with its own columns."""

import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from batchcap.config import InputConfig
from batchcap.core.records import ImageRow
from batchcap.inputs.discover import discover
from batchcap.job.plan import Plan
from batchcap.store.journal import Journal
from tests.inputs.parquets import IMAGE_STRUCT, data_of

CELLS = st.lists(st.none() | st.binary(min_size=1, max_size=40), max_size=40)


@dataclass(frozen=True)
class File:
    """A Parquet file to be: its images, how they are held, and how the file is cut and packed."""

    cells: list[bytes | None]
    kind: pa.DataType
    group_rows: int
    compression: str
    page_bytes: int
    version: str

    def write(self, path: Path) -> None:
        if self.kind == IMAGE_STRUCT:
            images = pa.array([cell and {"bytes": cell, "path": "x"} for cell in self.cells], IMAGE_STRUCT)
        elif pa.types.is_dictionary(self.kind):
            images = pa.array(self.cells, pa.binary()).dictionary_encode()
        else:
            images = pa.array(self.cells, self.kind)
        keys = [f"{path.stem}/{row}" for row in range(len(self.cells))]
        pq.write_table(
            pa.table({"image": images, "key": keys, "number": pa.array(range(len(self.cells)), pa.int64())}),
            path,
            row_group_size=self.group_rows,
            compression=self.compression,
            data_page_size=self.page_bytes,
            data_page_version=self.version,
            write_page_checksum=self.page_bytes < 100,
        )


FILES = st.lists(
    st.builds(
        File,
        cells=CELLS,
        kind=st.sampled_from([pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary()), IMAGE_STRUCT]),
        group_rows=st.integers(1, 50),
        compression=st.sampled_from(["none", "snappy", "zstd"]),
        page_bytes=st.sampled_from([16, 1 << 20]),
        version=st.sampled_from(["1.0", "2.0"]),
    ),
    min_size=1,
    max_size=3,
).filter(lambda files: any(file.cells for file in files))


def read_all(plan: Plan) -> tuple[list[ImageRow], list[dict[str, object]]]:
    rows: list[ImageRow] = []
    columns: list[dict[str, object]] = []
    for shard in plan.shards():
        found, table = list(plan.shard_rows(shard)), plan.shard_columns(shard)
        assert len(found) == len(table) == shard.rows
        rows += found
        columns += table.to_pylist()
    return rows, columns


@settings(max_examples=40)
@given(FILES, st.integers(1, 30), st.lists(st.integers(1, 60), max_size=2))
def test_each_row_once_with_its_own_columns(files: list[File], rows_per_part: int, limits: list[int]) -> None:
    expected = [
        (cell, f"{number}/{row}", row) for number, file in enumerate(files) for row, cell in enumerate(file.cells)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "in"
        folder.mkdir()
        for number, file in enumerate(files):
            file.write(folder / f"{number}.parquet")
        config = InputConfig((str(folder),), id_column="key", keep_columns=("*",))
        with closing(Journal.open(Path(name) / "journal.sqlite")) as journal:
            for limit in (*limits, 0):  # a job that is extended
                plan = Plan(journal, config)
                plan.extend(discover(config, Path(name) / "out"), rows_per_part, limit)
            rows, columns = read_all(plan)
            assert [data_of(row) for row, _columns in zip(rows, columns, strict=True)] == [
                cell for cell, _, _ in expected
            ]
            assert [row.id for row in rows] == [key for _cell, key, _row in expected]
            assert [row.row for row in rows] == [row for _cell, _key, row in expected]
            assert [row.index for row in rows] == list(range(len(expected)))
            assert columns == [{"key": key, "number": row} for _cell, key, row in expected]
            assert {row.failure for row in rows} <= {None}
