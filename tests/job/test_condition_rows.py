"""A condition on the rows of files of every kind: what can be named, and which rows match."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap.config import ImagesOf, InputConfig
from batchcap.core.errors import UsageError
from batchcap.inputs.discover import discover
from batchcap.inputs.registry import open_readers
from batchcap.job.condition_rows import matching_rows
from batchcap.store.chosen_rows import PlannedSource
from tests.inputs.archives import tar_bytes, written


def found(folder: Path, text: str, *names: str, **given: Any) -> list[tuple[str, int]]:
    """The rows of files that match, as a plan asks for them."""
    config = InputConfig(tuple(str(folder / name) for name in names), **given)
    sources = list(discover(config, folder / "out"))
    planned = [
        PlannedSource(number, one.id, str(one.path).encode(), one.kind, one.rows) for number, one in enumerate(sources)
    ]
    stretches = list(matching_rows(planned, open_readers(config), text))
    for one, other in pairwise(stretches):
        assert (one.source, one.start + one.rows) < (other.source, other.start), "stretches are as long as can be"
    return [(planned[source].id, row) for source, start, rows in stretches for row in range(start, start + rows)]


def test_tables_match_by_all_their_columns_and_those_of_their_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder = tmp_path / f"split={split}"
        folder.mkdir()
        table = pa.table({"image": ["x.png"] * 3000, "n": pa.array(range(3000))})
        pq.write_table(table, folder / "a.parquet", row_group_size=700)
    assert found(tmp_path, "split = 'train' AND n % 1000 = 999", "split=*/a.parquet") == [
        ("split=train/a.parquet", row) for row in (999, 1999, 2999)
    ]
    (tmp_path / "t.jsonl").write_text('{"image": "a.png", "n": 1}\n{"image": "b.png", "n": 2}\n')
    (tmp_path / "t.csv").write_text("image,n\na.png,1\nb.png,2\n")
    assert found(tmp_path, "n > 1", "t.jsonl", "t.csv") == [("t.jsonl", 1), ("t.csv", 1)]
    with pytest.raises(UsageError, match='"image" not found'):
        found(tmp_path, "image = 'a.png'", "t.csv")


def test_image_files_match_by_id_and_the_names_of_their_folders(tmp_path: Path) -> None:
    for name in ("split=a/1.png", "split=a/2.png", "split=b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert found(tmp_path, "split = 'a' AND id LIKE '%2.png'", "") == [("split=a/2.png", 0)]
    assert found(tmp_path, "split <> 'a'", "") == [("split=b/1.png", 0)]
    with pytest.raises(UsageError, match="has id, split"):
        found(tmp_path, "n = 1", "")


def test_samples_of_archives_match_by_their_texts(tmp_path: Path) -> None:
    members = [(f"{key}.{end}", content) for key in "abc" for end, content in (("png", b"x"), ("txt", key.encode()))]
    written(tmp_path / "a.tar", tar_bytes(members))
    assert found(tmp_path, "txt <> 'b'", "a.tar") == [("a.tar", 0), ("a.tar", 2)]
    assert found(tmp_path, "__key__ = 'b'", "a.tar") == [("a.tar", 1)]


def test_damaged_rows_never_match(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"image": "a.png", "n": 1}\nbroken\n{"image": "b.png", "n": 2}\n')
    assert found(tmp_path, "n > 0 OR n IS NULL", "t.jsonl") == [("t.jsonl", 0), ("t.jsonl", 2)]
    path = tmp_path / "a.parquet"
    table = pa.table({"image": [f"{row}.png" for row in range(30)], "word": [f"w{row}" * 9 for row in range(30)]})
    pq.write_table(table, path, row_group_size=10, compression="none")
    column = pq.read_metadata(path).row_group(1).column(1)
    data = bytearray(path.read_bytes())
    start = min(column.data_page_offset, column.dictionary_page_offset or column.data_page_offset)
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    assert {row for _name, row in found(tmp_path, "word IS NULL OR word > ''", "a.parquet")} == {
        *range(10),
        *range(20, 30),
    }


def test_each_image_of_a_list_is_a_row(tmp_path: Path) -> None:
    table = pa.table({"images": [["a.png", "b.png"], ["c.png"]], "n": [1, 2]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert found(tmp_path, "n = 1", "a.parquet", images=ImagesOf.EACH) == [("a.parquet", 0), ("a.parquet", 1)]
