"""What is remembered of inputs: used while the file is as it was, made again else, never in the way."""

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from batchcap.inputs import index_cache
from batchcap.inputs.index_cache import index_of

INDEX = pa.table({"offset": [0, 7]})


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An input; the cache folder is empty."""
    monkeypatch.setenv("BATCHCAP_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.tar"
    path.write_bytes(b"x" * 9)
    return path


@pytest.fixture
def built() -> list[str]:
    """Gets a word for each time that an index is made."""
    return []


@pytest.fixture
def index(file: Path, built: list[str]) -> Callable[..., pa.Table]:
    """`index_of` the file; by name."""

    def build() -> pa.Table:
        built.append("")
        return INDEX

    return lambda name="tar-1": index_of(file, name, build)


def test_it_is_made_once(index: Callable[..., pa.Table], built: list[str], tmp_path: Path) -> None:
    assert index() == index() == INDEX
    assert len(built) == 1
    assert len(list((tmp_path / "cache/indexes").iterdir())) == 1, "no temporary file is left"


@pytest.mark.parametrize("change", ["size", "time", "name"])
def test_another_file_or_purpose_has_another_index(
    index: Callable[..., pa.Table], built: list[str], file: Path, change: str
) -> None:
    index()
    if change == "size":
        status = file.stat()
        file.write_bytes(b"x" * 10)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "time":
        os.utime(file, (5, 5))
    index("tar-2" if change == "name" else "tar-1")
    assert len(built) == 2


@pytest.mark.parametrize("damage", [b"", b"ARROW1\0\0", b"x" * 999])
def test_a_damaged_one_is_made_again(
    index: Callable[..., pa.Table], built: list[str], tmp_path: Path, damage: bytes
) -> None:
    index()
    (place,) = (tmp_path / "cache/indexes").iterdir()
    place.write_bytes(damage)
    assert index() == index() == INDEX
    assert len(built) == 2


def test_one_that_nobody_used_for_months_is_deleted(index: Callable[..., pa.Table], tmp_path: Path) -> None:
    index()
    (old,) = (tmp_path / "cache/indexes").iterdir()
    os.utime(old, (5, 5))
    index_cache._remove_old.cache_clear()  # another run
    index("tar-2")
    assert not old.exists()
    assert index("tar-1") == INDEX


def test_a_cache_that_can_not_be_written_is_not_in_the_way(
    index: Callable[..., pa.Table], built: list[str], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("no folder")
    assert index() == index() == INDEX
    assert len(built) == 2
