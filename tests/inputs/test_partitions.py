"""Folder names of the form key=value are columns of all files below them."""

import os
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcap.core.errors import UsageError
from batchcap.inputs.partitions import _NULL, partition_values
from tests.inputs.parquets import write_table
from tests.inputs.test_parquet import carried, planned


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/data/year=2024/split=train", {"year": "2024", "split": "train"}),
        ("/a=b/data/split=a%2Fb%20c", {"split": "a/b c"}),
        ("/data/k=__HIVE_DEFAULT_PARTITION__", {"k": None}),
        ("/data/a=1/a=2", {"a": "2"}),
        ("/data/a=b=c", {"a": "b=c"}),
        ("/data/=x", {}),
        ("/data", {}),
        ("/", {}),
    ],
)
def test_keys_and_values(folder: str, expected: dict[str, str | None]) -> None:
    found = partition_values(Path(folder))
    assert found == expected
    assert list(found) == list(expected)


NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: name not in (b".", b"..") and not {0, 47} & {*name})
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(st.lists(st.tuples(TEXTS, st.none() | TEXTS), max_size=4, unique_by=lambda pair: pair[0]))
def test_any_keys_and_values(pairs: list[tuple[str, str | None]]) -> None:
    """As Hive and Spark write them."""
    parts = [f"{quote(key, safe='')}={_NULL if value is None else quote(value, safe='')}" for key, value in pairs]
    assert partition_values(Path("/data", *parts)) == dict(pairs)


@given(st.lists(NAMES | NAMES.map(lambda name: b"a" + name + b"=" + name), max_size=4))
def test_any_names_of_folders_give_text(names: list[bytes]) -> None:
    found = partition_values(Path("/data", *map(os.fsdecode, names)))
    assert pa.table({key: [value] for key, value in found.items()}).num_columns == len(found)


def test_images_in_folders_whose_names_are_no_text(tmp_path: Path) -> None:
    for name in (b"a.png", b"k=\xff/b.png", b"\xff=k/c.png"):
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    with planned(tmp_path, keep_columns=("*",)) as plan:
        found = pa.concat_tables(carried(plan)).to_pylist()
    assert sorted(found, key=str) == [
        {"k": "\\xff", "\\xff": None}, {"k": None, "\\xff": "k"}, {"k": None, "\\xff": None},
    ]  # fmt: skip


def write(path: Path, **columns: list[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, {"image": [b"x"] * len(next(iter(columns.values()), [1])), **columns}, row_group_size=2)


@pytest.mark.parametrize("keep", [("*",), ("split", "n"), ("split",)])
def test_they_can_be_kept(tmp_path: Path, keep: tuple[str, ...]) -> None:
    write(tmp_path / "split=train/a.parquet", n=[1, 2, 3])
    write(tmp_path / "split=test/a.parquet", n=[4])
    with planned(tmp_path, keep_columns=keep) as plan:
        found = pa.concat_tables(carried(plan))
    assert found["split"].to_pylist() == ["test", "train", "train", "train"]
    assert found.column_names == (["split"] if keep == ("split",) else ["n", "split"] if keep == ("*",) else list(keep))


def test_a_column_of_the_file_counts_instead(tmp_path: Path) -> None:
    write(tmp_path / "split=train/a.parquet", split=["x", "y"])
    with planned(tmp_path, keep_columns=("split",)) as plan:
        assert pa.concat_tables(carried(plan))["split"].to_pylist() == ["x", "y"]


def test_they_can_be_ids_and_what_is_in_none_is_told(tmp_path: Path) -> None:
    write(tmp_path / "split=train/a.parquet")
    with planned(tmp_path, id_column="split") as plan:
        (shard,) = plan.shards()
        assert [row.id for row in plan.shard_rows(shard)] == ["train"]
    with (
        pytest.raises(UsageError, match=r"has no column 'lang' .*name one of image, split"),
        planned(tmp_path, keep_columns=("lang",)),
    ):
        pass


def test_images_have_them_too(tmp_path: Path) -> None:
    for name in ("label=cat/a.png", "label=cat/b.png", "label=dog/c.png", "d.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    write(tmp_path / "label=x/t.parquet", n=[1])
    with planned(tmp_path, keep_columns=("label",)) as plan:
        found = pa.concat_tables(carried(plan))
        ids = [row.id for shard in plan.shards() for row in plan.shard_rows(shard)]
    assert dict(zip(ids, found["label"].to_pylist(), strict=True)) == {
        "d.png": None,
        "label=cat/a.png": "cat",
        "label=cat/b.png": "cat",
        "label=dog/c.png": "dog",
        "label=x/t.parquet:0": "x",
    }


def test_images_without_such_folders_have_no_columns(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UsageError, match="no input has a column 'label'"), planned(tmp_path, keep_columns=("label",)):
        pass
