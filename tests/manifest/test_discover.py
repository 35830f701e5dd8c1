"""Finding sources: order, names, what is passed over, and what is said about it."""

import logging
import os
import random
import re
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchcap.config import InputConfig
from batchcap.errors import UsageError
from batchcap.manifest.discover import discover
from batchcap.manifest.source import Source, SourceKind


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def write_parquet(path: Path, rows: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"path": [f"{row}.png" for row in range(rows)]}), path)


def found(tmp_path: Path, *inputs: object) -> list[Source]:
    return list(discover(InputConfig(tuple(str(name) for name in inputs)), tmp_path / "out"))


def ids(tmp_path: Path, *inputs: object) -> list[str]:
    return [source.id for source in found(tmp_path, *inputs)]


def test_folder_by_relative_path_in_code_point_order(tmp_path: Path) -> None:
    touch(tmp_path / "in", "b.png", "a/z.JPG", "a.png", "a/b/c.webp", "Z.png", "é.png", "a-.png")
    assert ids(tmp_path, tmp_path / "in") == ["Z.png", "a-.png", "a.png", "a/b/c.webp", "a/z.JPG", "b.png", "é.png"]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_the_order_is_that_of_the_whole_paths(tmp_path: Path, depth: int) -> None:
    """A folder's name sorts with the slash behind it: `a-/` and `a.png` come before `a/`, `a0` comes after."""
    generator = random.Random(depth)
    names = {
        "/".join("".join(generator.choices("a-.0é\U0001f600", k=2)) for _part in range(generator.randint(1, 1 + depth)))
        for _file in range(200)
    }
    touch(tmp_path / "in", *(f"x{name.replace('/', '/x')}.png" for name in names))
    found_ids = ids(tmp_path, tmp_path / "in")
    assert found_ids == sorted(found_ids, key=os.fsencode)
    assert len(found_ids) == len(names)


def test_inputs_in_the_order_given(tmp_path: Path) -> None:
    """A file that two inputs lead to comes twice: the plan knows which ones it has."""
    touch(tmp_path / "in", "a.png", "b.png")
    assert ids(tmp_path, tmp_path / "in/b.png", tmp_path / "in/../in") == ["b.png", "a.png", "b.png"]
    paths = {source.path for source in found(tmp_path, tmp_path / "in/b.png", tmp_path / "in/../in")}
    assert paths == {tmp_path / "in/a.png", tmp_path / "in/b.png"}


def test_an_input_that_is_not_there_is_told_before_the_first_source(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.png")
    with pytest.raises(UsageError, match="nowhere does not exist"):
        next(discover(InputConfig((str(tmp_path / "in"), str(tmp_path / "nowhere"))), tmp_path / "out"))


def test_no_more_is_held_than_one_folder(tmp_path: Path) -> None:
    """Or the command would take hundreds of bytes for each of a million files."""
    peaks = []
    for folders in (2, 20):
        root = tmp_path / str(folders)
        touch(
            root,
            *(
                f"{folder:02d}/a long name of a picture {number:03d}.png"
                for folder in range(folders)
                for number in range(100)
            ),
        )
        tracemalloc.start()
        assert sum(1 for _source in discover(InputConfig((str(root),)), tmp_path / "out")) == folders * 100
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.png", ".b.png", ".thumbs/c.png")
    assert ids(tmp_path, tmp_path / "in") == ["a.png"]


def test_the_jobs_own_output_is_no_input(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    write_parquet(tmp_path / "out/captions/part-00000.parquet")
    write_parquet(tmp_path / "out/stats.parquet")
    assert ids(tmp_path, tmp_path) == ["a.png"]
    assert ids(tmp_path, tmp_path / "**") == ["a.png"]
    assert ids(tmp_path, tmp_path / "*") == ["a.png"]


def test_mixed_folder_gives_pictures_and_parquet(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.png")
    write_parquet(tmp_path / "in/b.parquet", 5)
    kinds = [(source.id, source.kind, source.rows) for source in found(tmp_path, tmp_path / "in")]
    assert kinds == [("a.png", SourceKind.IMAGE, 1), ("b.parquet", SourceKind.PARQUET, 5)]


def test_a_named_file_is_taken_whatever_its_extension_is(tmp_path: Path) -> None:
    touch(tmp_path, "picture.dat", "noise")
    assert ids(tmp_path, tmp_path / "picture.dat", tmp_path / "noise") == ["picture.dat", "noise"]


def test_patterns(tmp_path: Path) -> None:
    touch(tmp_path / "in", "2024-1/a.png", "2024-1/deep/b.png", "2024-2/c.png", "2025/d.png", "notes.txt", "e.dat")
    root = tmp_path / "in"
    assert ids(tmp_path, root / "2024-*") == ["2024-1/a.png", "2024-1/deep/b.png", "2024-2/c.png"]
    assert ids(tmp_path, root / "**/*.png") == ["2024-1/a.png", "2024-1/deep/b.png", "2024-2/c.png", "2025/d.png"]
    assert ids(tmp_path, root / "**") == ids(tmp_path, root)
    assert ids(tmp_path, root / "*.dat") == ["e.dat"]


def test_a_name_with_wildcard_characters_is_a_name_first(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].png", "a1.png")
    assert ids(tmp_path, tmp_path / "a[1].png") == ["a[1].png"]


@pytest.mark.parametrize("pattern", ["", "**", "**/*.png"])
def test_links_to_folders_are_followed_but_not_in_a_circle(tmp_path: Path, pattern: str) -> None:
    touch(tmp_path, "in/a/x.png", "elsewhere/y.png")
    (tmp_path / "in/a/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/other").symlink_to(tmp_path / "elsewhere")
    assert ids(tmp_path, tmp_path / "in" / pattern) == ["a/x.png", "other/y.png"]


def test_links_to_files_are_followed_and_dead_ones_keep_their_row(tmp_path: Path) -> None:
    touch(tmp_path, "x.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/dead.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "in/live.png").symlink_to(tmp_path / "x.png")
    (tmp_path / "in/round.png").symlink_to(tmp_path / "in/round.png")
    assert ids(tmp_path, tmp_path / "in") == ["dead.png", "live.png", "round.png"]


def test_a_file_name_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    try:
        Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/caf\xe9.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    (source,) = found(tmp_path, tmp_path / "in")
    assert source.id == r"caf\xe9.png"
    assert source.path.exists()


def test_what_is_passed_over_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path / "in", "a.png", "b.heic", "c.HEIC", "README")
    with caplog.at_level(logging.WARNING):
        assert ids(tmp_path, tmp_path / "in") == ["a.png"]
    assert "3 other files passed over (.heic 2, no extension 1)" in caplog.text


def test_a_folder_without_a_picture_names_the_extensions(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.heic", "b.heic", "c.txt")
    with pytest.raises(UsageError, match=r"3 other files passed over \(\.heic 2, \.txt 1\)"):
        ids(tmp_path, tmp_path / "in")


@pytest.mark.parametrize("name", ["nothing", "nothing/*.png", "empty", "empty/**"])
def test_nothing_to_caption_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"does not exist|no picture"):
        ids(tmp_path, tmp_path / name)


def test_a_parquet_file_whose_name_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"gr\xf6.parquet")).touch()
    with pytest.raises(UsageError, match=r"gr\\xf6.parquet is not UTF-8: rename it"):
        list(discover(InputConfig((str(tmp_path),)), tmp_path / "out"))


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "in/bad.parquet")
    with pytest.raises(UsageError, match=r"can't read the Parquet file .*bad\.parquet"):
        ids(tmp_path, tmp_path / "in")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("rows.jsonl", "is a table that batchcap does not read: convert it to Parquet"),
        ("rows.CSV", "is a table that batchcap does not read: convert it to Parquet"),
        ("shard-0001.tar", "is an archive, which batchcap does not open: unpack it and give the folder"),
        ("shard.tar.gz", "is an archive, which batchcap does not open: unpack it and give the folder"),
        ("job.toml", "is a job file: give it to `batchcap run`"),
    ],
)
def test_what_holds_pictures_and_is_none_is_refused(tmp_path: Path, name: str, advice: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    suffix = Path(name).suffix
    for given in (name, f"*{suffix}", "."):
        with pytest.raises(UsageError, match=rf"(?i){re.escape(suffix)}.* {re.escape(advice)}") as caught:
            list(discover(InputConfig((str(tmp_path / given),)), tmp_path / "out"))
        assert "\n" not in str(caught.value)


def test_archives_beside_pictures_are_passed_over(tmp_path: Path) -> None:
    for name in ("a.png", "b.tar"):
        (tmp_path / name).write_bytes(b"x")
    assert [source.id for source in discover(InputConfig((str(tmp_path),)), tmp_path / "out")] == ["a.png"]


@pytest.mark.parametrize(
    "address", ["https://example.org/a.parquet", "s3://bucket/*.png", "hf://datasets/a/b", "file:///a"]
)
def test_addresses_are_refused_before_anything_is_read(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError, match=r"batchcap works offline and fetches nothing: download .*://"):
        list(discover(InputConfig((str(tmp_path / "nowhere"), address)[::-1]), tmp_path / "out"))
