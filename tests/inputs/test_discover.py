"""Finding sources: order, names, what is skipped, and what is said about it."""

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
from batchcap.core.errors import UsageError
from batchcap.core.sources import Source
from batchcap.inputs.discover import discover
from batchcap.inputs.files import ImageFiles
from batchcap.inputs.parquet import ParquetFiles
from batchcap.inputs.skipped import Skipped
from tests.images.samples import encode, scene
from tests.inputs.archives import tar_bytes, zip_bytes


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
                f"{folder:02d}/a long name of an image {number:03d}.png"
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


def test_mixed_folder_gives_images_and_parquet(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.png")
    write_parquet(tmp_path / "in/b.parquet", 5)
    kinds = [(source.id, source.kind, source.rows) for source in found(tmp_path, tmp_path / "in")]
    assert kinds == [("a.png", ImageFiles.kind, 1), ("b.parquet", ParquetFiles.kind, 5)]


def test_a_named_image_is_taken_whatever_its_extension_is(tmp_path: Path) -> None:
    for name in ("picture.dat", "noise"):
        (tmp_path / name).write_bytes(encode(scene()))
    assert ids(tmp_path, tmp_path / "picture.dat", tmp_path / "noise") == ["picture.dat", "noise"]


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("notes.txt", b"milk, bread", r"text \('milk, bread'\): give the image itself"),
        ("page", b"<!doctype html>", "an HTML page, probably what a server sent in place of the image"),
        ("film.mp4", b"\0\0\0\x20ftypisom", "a video: take single frames out of it"),
        ("noise.dat", bytes(range(200)), r"no image in a known format \(JPEG"),
        ("nothing", b"", "empty"),
    ],
)
def test_a_named_file_of_something_else_is_told_before_the_first_source(
    tmp_path: Path, name: str, content: bytes, what: str
) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=rf"the input .*{name} is {what}"):
        next(discover(InputConfig((str(tmp_path / "a.png"), str(tmp_path / name))), tmp_path / "out"))


def test_a_named_file_with_an_image_suffix_or_that_cannot_be_read_keeps_its_row(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.HEIC")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    names = ["a.png", "b.HEIC", "pipe", "dangling"]
    assert ids(tmp_path, *(tmp_path / name for name in names)) == names


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


def test_other_files_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path / "in", "a.png", "b.txt", "c.TXT", "README")
    with caplog.at_level(logging.WARNING):
        assert ids(tmp_path, tmp_path / "in") == ["a.png"]
    assert "3 other files skipped (.txt 2, no extension 1)" in caplog.text


def test_images_of_types_that_cannot_be_read_are_told_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also with --quiet, or a phone's photographs would never be captioned and nobody would know."""
    touch(tmp_path / "in", "a.png", "b.svg", "c.SVG", "d/e.EPS", "_f/_g.pdf", "film.mp4")
    touch(tmp_path / "more", "h.png", "i.svg")
    skipped = Skipped()
    inputs = InputConfig((str(tmp_path / "in"), str(tmp_path / "more/**")))
    with caplog.at_level(logging.WARNING):
        assert [source.id for source in discover(inputs, tmp_path / "out", skipped)] == ["a.png", "h.png"]
    assert skipped.images == {".svg": 3, ".eps": 1, ".pdf": 1}
    assert skipped.others == {".mp4": 1}
    assert "in: 4 images skipped of types that can't be read (.svg 2, " in caplog.text
    assert "more/**: 1 image skipped of types that can't be read (.svg 1): convert to JPEG or PNG" in caplog.text


def test_a_folder_without_an_image_names_the_extensions(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.svg", "b.svg", "c.txt")
    with pytest.raises(
        UsageError, match=r"2 images skipped .*\(\.svg 2\): convert .*; 1 other file skipped \(\.txt 1\)"
    ):
        ids(tmp_path, tmp_path / "in")


LAYOUTS = [
    ("captions/part-00000.parquet", "stats.parquet", "summary.json", "_batchcap/job.json"),
    ("part-00000.parquet", "_batchcap/stats.parquet", "_batchcap/job.json"),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pattern", ["", "*", "**", "**/*.p*", "*/*", "*/*/*.p*"])
def test_job_folders_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, layout: tuple[str, ...], pattern: str
) -> None:
    root = tmp_path / "in"
    for job in ("sub/day-1", "sub/day-2", "last"):
        for name in layout:
            write_parquet(root / job / name)
    touch(root, "sub/a.png", "sub/sub/b.png")
    with caplog.at_level(logging.INFO):
        assert set(ids(tmp_path, root / pattern)) <= {"sub/a.png", "sub/sub/b.png"}
    if pattern in ("", "*", "**", "**/*.p*"):
        assert "3 job folders of batchcap skipped" in caplog.text
    assert len([record for record in caplog.records if record.levelno > logging.INFO]) == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("given", ["job", "job/", "job/*.parquet", "link"])
def test_a_named_job_folder_is_refused(tmp_path: Path, layout: tuple[str, ...], given: str) -> None:
    for name in layout:
        write_parquet(tmp_path / "job" / name)
    (tmp_path / "link").symlink_to(tmp_path / "job")
    with pytest.raises(UsageError, match=r"is a job folder of batchcap.*part-\*\.parquet"):
        ids(tmp_path, tmp_path / given)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_of_jobs_can_be_asked_for(tmp_path: Path, layout: tuple[str, ...]) -> None:
    for name in layout:
        write_parquet(tmp_path / "jobs/1" / name)
    part = layout[0]
    assert ids(tmp_path, tmp_path / "jobs/1" / part) == ["part-00000.parquet"]
    assert ids(tmp_path, (tmp_path / "jobs/1" / part).with_name("part-*.parquet")) == ["part-00000.parquet"]
    assert ids(tmp_path, tmp_path / "jobs/**/part-*.parquet") == [f"1/{part}"]


def test_a_pattern_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "job/_batchcap/x.parquet")
    touch(tmp_path, "job/a.png", "sub/b.png", "c.png", "_d.png")
    monkeypatch.chdir(tmp_path)
    assert ids(tmp_path, "**/*.png") == ["_d.png", "c.png", "sub/b.png"]
    assert ids(tmp_path, "./**/*.png") == ["_d.png", "c.png", "sub/b.png"]


WRITERS_FILES = (
    "_temporary/0/part-0.parquet",
    "_temporary/0/a.png",
    "day=1/_temporary/0/part-0.parquet",
    "_staging/x.parquet",
    "sub/_x.parquet",
)
BOOKKEEPING = ("_SUCCESS", "_metadata", "_common_metadata", "_committed_123", "_started_123")


@pytest.mark.parametrize("pattern", ["", "*", "**"])
def test_what_parquet_writers_leave_or_use_inside_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pattern: str
) -> None:
    """As Spark, Hive and pyarrow do; images in folders that begin with `_` are images."""
    root = tmp_path / "in"
    for name in (*WRITERS_FILES, "_day=1/y.parquet", "sub/z_.parquet"):
        write_parquet(root / name)
    touch(root, *BOOKKEEPING, "_mine/_a.png")
    with caplog.at_level(logging.INFO):
        assert set(ids(tmp_path, root / pattern)) == {"_day=1/y.parquet", "_mine/_a.png", "sub/z_.parquet"}
    assert f"{len(WRITERS_FILES) + len(BOOKKEEPING)} files skipped that writers of tables leave" in caplog.text
    assert "other file" not in caplog.text


def test_what_begins_with_an_underscore_can_be_asked_for(tmp_path: Path) -> None:
    for name in WRITERS_FILES:
        write_parquet(tmp_path / "in" / name)
    assert ids(tmp_path, tmp_path / "in/sub/_x.parquet") == ["_x.parquet"]
    assert ids(tmp_path, tmp_path / "in/_staging") == ["x.parquet"]
    assert ids(tmp_path, tmp_path / "in/_s*/*.parquet") == ["_staging/x.parquet"]
    assert ids(tmp_path, tmp_path / "in/**/_x*.parquet") == ["sub/_x.parquet"]
    with pytest.raises(UsageError, match=r"1 file skipped that writers of tables leave.* Name a file itself"):
        ids(tmp_path, tmp_path / "in/sub")


TABLE_FORMATS = (
    ("_delta_log/00000.json", "a Delta Lake", r"pip install deltalake.*to_pyarrow_table.*delta_scan\('{path}'\)"),
    (".hoodie/hoodie.properties", "a Hudi", r"Spark .*load\('{path}'\)"),
    ("metadata/v1.metadata.json", "an Iceberg", r"pyiceberg.*iceberg_scan\('{path}'\)"),
)


def write_format_table(folder: Path, log_file: str) -> Path:
    touch(folder, log_file)
    for name in ("data/day=1/a.parquet", "data/day=1/b.parquet", "data/day=2/c.parquet"):
        write_parquet(folder / name)
    return folder


@pytest.mark.parametrize(("log_file", "table_format", "_advice"), TABLE_FORMATS)
@pytest.mark.parametrize("given", ["**/*.parquet", "data/day=1/a.parquet", "data/*/?.parquet"])
def test_named_files_of_a_table_with_old_files_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, log_file: str, table_format: str, given: str, _advice: str
) -> None:
    table = write_format_table(tmp_path / "table", log_file)
    assert found(tmp_path, table / given)
    assert table_warnings(caplog) == [table_format]


@pytest.mark.parametrize(("log_file", "table_format", "advice"), TABLE_FORMATS)
@pytest.mark.parametrize("given", ["table", "table/data", "table/data/day=1", ".", "t*", "table/data/*"])
def test_a_folder_search_that_meets_a_table_with_old_files_is_refused(
    tmp_path: Path, log_file: str, table_format: str, advice: str, given: str
) -> None:
    table = write_format_table(tmp_path / "in/table", log_file)
    wanted = f"^{table} is {table_format} table: .*{advice.format(path=table)}.*'{table}/[*][*]/[*].parquet'$"
    with pytest.raises(UsageError, match=wanted):
        found(tmp_path, tmp_path / "in" / given)


@pytest.mark.parametrize(("log_file", "table_format", "_advice"), TABLE_FORMATS)
def test_a_job_that_was_begun_with_such_a_table_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, log_file: str, table_format: str, _advice: str
) -> None:
    table = write_format_table(tmp_path / "table", log_file)
    (tmp_path / "out/__batchcap").mkdir(parents=True)
    assert len(list(discover(InputConfig((str(table),)), tmp_path / "out"))) == 3
    assert table_warnings(caplog) == [table_format]


def test_a_job_that_begins_is_not_taken_for_one_that_was_begun(tmp_path: Path) -> None:
    """Its folder is made once the first source is found."""
    (tmp_path / "in").mkdir()
    touch(tmp_path / "in", "a.png")
    write_format_table(tmp_path / "in/table", "_delta_log/00000.json")
    sources = discover(InputConfig((str(tmp_path / "in"),)), tmp_path / "out")
    assert next(sources).id == "a.png"
    (tmp_path / "out/__batchcap").mkdir(parents=True)
    with pytest.raises(UsageError, match="is a Delta Lake table"):
        list(sources)


def test_images_beside_what_looks_like_a_log_are_found(tmp_path: Path) -> None:
    touch(tmp_path, "in/metadata/a.metadata.json")
    touch(tmp_path, "in/a.png")
    assert ids(tmp_path, tmp_path / "in") == ["a.png"]


def table_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The formats that warnings tell of."""
    told = [record.getMessage() for record in caplog.records if "table: its folder" in record.getMessage()]
    assert all("Export the current version of the table to Parquet" in one for one in told)
    return [one.partition(" is ")[2].partition(" table: ")[0] for one in told]


@pytest.mark.parametrize("name", ["nothing", "nothing/*.png", "empty", "empty/**"])
def test_nothing_to_caption_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"does not exist|no image"):
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
        ("rows.avro", "is a table that batchcap does not read: convert it to Parquet"),
        ("rows.ORC", "is a table that batchcap does not read: convert it to Parquet"),
        ("rows.json", "is JSON, of which batchcap reads JSONL, an object in each line: convert it"),
        ("shard-0001.7z", "is an archive, which batchcap does not open: unpack it and give the folder"),
        ("shard.tar.zst", "is an archive, which batchcap does not open: unpack it and give the folder"),
        ("job.toml", "is a job file: give it to `batchcap run`"),
    ],
)
def test_what_holds_images_and_is_none_is_refused(tmp_path: Path, name: str, advice: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    suffix = Path(name).suffix
    for given in (name, f"*{suffix}", "."):
        with pytest.raises(UsageError, match=rf"(?i){re.escape(suffix)}.* {re.escape(advice)}") as caught:
            list(discover(InputConfig((str(tmp_path / given),)), tmp_path / "out"))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["b.tar", "b.tar.gz", "b.tgz", "b.zip", "b.7z"])
@pytest.mark.parametrize("given", [".", "*", "**"])
def test_archives_beside_images_are_passed_over(tmp_path: Path, name: str, given: str) -> None:
    """Whoever keeps a copy of a folder in it has the same job as before archives were read."""
    touch(tmp_path, "in/a.png", f"in/{name}")
    assert ids(tmp_path, tmp_path / "in" / given) == ["a.png"]


def test_archives_are_found_by_name(tmp_path: Path) -> None:
    for name in ("a.tar", "x/b.TAR", "c.tar.gz", "x/d.tgz", "e.zip"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes((zip_bytes if name == "e.zip" else tar_bytes)({"1.jpg": b"1"}))
    assert ids(tmp_path, tmp_path / "in/a.tar") == ["a.tar"]
    for pattern, name in (
        ("*.tar", "a.tar"),
        ("**/*.TAR", "x/b.TAR"),
        ("*.tar.gz", "c.tar.gz"),
        ("x/*.tgz", "d.tgz"),
        ("*.zip", "e.zip"),
    ):
        assert ids(tmp_path, tmp_path / "in" / pattern) == [name]
    assert [(one.kind, one.rows) for one in found(tmp_path, tmp_path / "in/c.tar.gz", tmp_path / "in/e.zip")] == [
        ("tar", 1),
        ("zip", 1),
    ]


def test_a_folder_of_nothing_but_archives_says_how_to_name_them(tmp_path: Path) -> None:
    touch(tmp_path / "in", "x/0.tar.gz", "x/1.tar.gz", "2.zip", "a.csv")
    pattern = re.escape(f"name them, in quotes: '{tmp_path}/in/**/*.tar.gz'")
    with pytest.raises(
        UsageError, match=rf"no image and no Parquet file in .*To caption what is in \.tar\.gz.*{pattern}"
    ):
        ids(tmp_path, tmp_path / "in")


def test_ranges_of_numbers(tmp_path: Path) -> None:
    """Ids are relative to the folder above the first one, as for a pattern."""
    touch(tmp_path / "in", *(f"{part}/{number:02d}.png" for part in range(3) for number in range(8, 12)))
    assert ids(tmp_path, tmp_path / "in/1/{08..10}.png") == ["08.png", "09.png", "10.png"]
    assert ids(tmp_path, tmp_path / "in/{1..2}/{11..10}.png") == ["1/11.png", "1/10.png", "2/11.png", "2/10.png"]
    assert ids(tmp_path, tmp_path / "in/{0..2}/*8.png") == ["0/08.png", "1/08.png", "2/08.png"]
    assert ids(tmp_path, tmp_path / "in/*/{08..09}.png") == [
        f"{part}/{n}.png" for n in ("08", "09") for part in range(3)
    ]
    assert len(ids(tmp_path, tmp_path / "in/{0..2}")) == 12
    with pytest.raises(UsageError, match=r"in/1/12\.png does not exist"):
        ids(tmp_path, tmp_path / "in/1/{08..12}.png")


def test_what_has_braces_in_its_name_is_itself(tmp_path: Path) -> None:
    touch(tmp_path, "in/a{1..2}.png", "in/a1.png", "in{1..2}/b.png", "in1/c.png", "in2/d.png")
    assert ids(tmp_path, tmp_path / "in/a{1..2}.png") == ["a{1..2}.png"]
    assert ids(tmp_path, tmp_path / "in{1..2}") == ["b.png"]
    assert ids(tmp_path, tmp_path / "in{1..2}/*.png") == ["b.png"]


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("https://example.org/a.parquet", r"https://.*fetches nothing unless .* give --allow-remote"),
        ("s3://bucket/*.png", r"s3://.*fetches nothing unless .* give --allow-remote"),
        ("hf://datasets/a/b", r"hf://.*fetches nothing unless .* give --allow-remote"),
        ("ftp://host/a.png", "ftp://host/a.png is an address that batchcap can't fetch"),
        ("file:///a", "file:///a is an address: give the path of the file or folder itself"),
    ],
)
def test_addresses_are_refused_before_anything_is_read(tmp_path: Path, address: str, advice: str) -> None:
    with pytest.raises(UsageError, match=advice):
        list(discover(InputConfig((str(tmp_path / "nowhere"), address)[::-1]), tmp_path / "out"))
