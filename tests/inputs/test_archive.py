"""Archives as inputs: samples, keys, columns, what an option may name, and how often an archive is read."""

import logging
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from batchcap.core.errors import UsageError
from batchcap.inputs import archive, tar, zip_archive
from tests.inputs.archives import SHARD, SHARD_IMAGES, Archive, tar_bytes, written, zip_bytes

FORMS = {
    "a.tar": tar_bytes,
    "a.tar.gz": lambda members: tar_bytes(members, "w:gz"),
    "stored.zip": zip_bytes,
    "deflated.zip": lambda members: zip_bytes(members, zipfile.ZIP_DEFLATED),
    "bzip2.zip": lambda members: zip_bytes(members, zipfile.ZIP_BZIP2),
    "lzma.zip": lambda members: zip_bytes(members, zipfile.ZIP_LZMA),
}


@pytest.fixture(params=list(FORMS))
def form(request: pytest.FixtureRequest) -> str:
    """Each way to pack an archive."""
    return str(request.param)


@pytest.fixture
def shard(tmp_path: Path, form: str) -> Path:
    """`SHARD` in each form."""
    return written(tmp_path / form, FORMS[form](SHARD))


def test_members_with_one_key_are_one_row(shard: Path) -> None:
    assert Archive(shard).read() == SHARD_IMAGES


def test_the_middle_of_an_archive_alone(shard: Path) -> None:
    assert Archive(shard).read(1, 1) == {"a/0002": b"two"}
    kept = Archive(shard, keep_columns=("json", "__key__"))
    assert kept.columns(2, 1) == {"json": ['{"x": 1}'], "__key__": ["a/0003"]}
    assert kept.columns(0, 1) == {"json": [None], "__key__": ["a/0001"]}, "what lies before what was read last"


def test_the_columns_are_those_of_all_samples(shard: Path) -> None:
    every = Archive(shard, keep_columns=("*",))
    assert every.columns() == {
        "__key__": ["a/0001", "a/0002", "a/0003"],
        "txt": ["first", None, None],
        "json": [None, None, '{"x": 1}'],
        "cls": [3, -4, None],
    }
    schema = every.reader.passthrough(shard).schema
    assert [str(field.type) for field in schema] == ["string", "string", "string", "int64"]
    assert pa.Table.from_batches(every.reader.values(shard, ["cls"]))["cls"].to_pylist() == [3, -4, None]


def test_the_names_of_its_folders_are_columns(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "split=train"
    folder.mkdir()
    for members in (SHARD, {"1.jpg": b"1"}):
        kept = Archive(written(folder / form, FORMS[form](members)), keep_columns=("split",))
        assert kept.columns() == {"split": ["train"] * kept.rows}


def test_a_class_that_is_no_number_makes_all_of_them_text(tmp_path: Path, form: str) -> None:
    members = {**SHARD, "a/0003.cls": b"cat"}
    path = written(tmp_path / form, FORMS[form](members))
    assert Archive(path, keep_columns=("cls",)).columns() == {"cls": ["3", "-4\n", "cat"]}


def test_an_image_that_is_named_by_its_extension(shard: Path) -> None:
    missing = "missing: the sample has no image 'right.jpg', only "
    assert Archive(shard, image_column="Right.JPG").read() == {
        "a/0001": f"{missing}jpg, txt, cls",
        "a/0002": f"{missing}png, cls",
        "a/0003": b"right",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "up.jpg"}, r"no image with the extension 'up.jpg' \(--image-column\): name one of jpg, png,"),
        ({"keep_columns": ("text",)}, r"no column 'text' \(--keep-columns\): name one of __key__, txt, json, cls"),
        ({"id_column": "url"}, r"no column 'url' \(--id-column\): its samples have a key, __key__, to use as id"),
    ],
)
def test_a_name_that_no_sample_has(shard: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Archive(shard, **options).reader.passthrough(shard)


def test_keys_as_ids(shard: Path) -> None:
    reader = Archive(shard, id_column="__key__")
    assert [row.id for row in reader.reader.rows(reader.piece(), range(3))] == list(SHARD_IMAGES)


def test_images_alone_are_a_row_each(tmp_path: Path, form: str) -> None:
    """Also two that differ in their extension, and names with dots; a text that belongs to none of them is no row."""
    names = ["b.png", "a.jpg", "a.png", "x/Screen 10.11.12.png", "x/Screen 10.11.13.png", "r.left.jpg", "r.right.jpg"]
    members = {name: name.encode() for name in names}
    path = written(tmp_path / form, FORMS[form]({**members, "README.txt": b"all mine", "x/c.npy": b"no"}))
    assert Archive(path).read() == members
    assert Archive(path).reader.passthrough(path) is None
    assert Archive(path).reader.columns(Archive(path).piece()) is None
    # What is meant for other inputs of the job is no mistake here.
    other = Archive(path, image_column="image", id_column="url", keep_columns=("title",))
    assert other.read() == members
    assert other.reader.passthrough(path) is None
    assert Archive(path, keep_columns=("title", "__key__")).columns() == {"__key__": names}
    assert Archive(path, keep_columns=("*",)).columns() == {"__key__": names}


def test_a_sample_without_an_image_fails_alone(tmp_path: Path, form: str) -> None:
    path = written(tmp_path / form, FORMS[form]({**SHARD, "a/0004.txt": b"x", "a/0004.json": b"{}", "a/0005.npy": b""}))
    assert Archive(path).read() == {**SHARD_IMAGES, "a/0004": "missing: the sample has no image, only txt, json"}


def test_what_nobody_has_put_there_is_passed_over(tmp_path: Path, form: str) -> None:
    hidden = ["__MACOSX/a/._0001.jpg", "a/._0001.jpg", "a/.DS_Store", ".cache/x.jpg", "a/.jpg", "x/__MACOSX/y.jpg"]
    path = written(tmp_path / form, FORMS[form]({**dict.fromkeys(hidden, b"no"), **SHARD}))
    assert Archive(path).read() == SHARD_IMAGES


def test_paths_that_lead_elsewhere_are_only_names(tmp_path: Path, form: str) -> None:
    members = {"/etc/a.png": b"1", "../../b.png": b"2", "./c.png": b"3", "d/../e.png": b"4", "n\nl.png": b"5"}
    path = written(tmp_path / form, FORMS[form](members))
    found = {("c.png" if name == "./c.png" else name): content for name, content in members.items()}
    assert Archive(path).read() == found


def test_text_that_can_not_be_carried_is_null(
    tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_TEXT_BYTES", 9)
    members = {"1.jpg": b"1", "1.txt": b"\xff", "2.jpg": b"2", "2.txt": b"x" * 10, "3.jpg": b"3", "3.txt": "é".encode()}
    read = Archive(written(tmp_path / form, FORMS[form](members)), keep_columns=("txt",))
    assert read.columns() == {"txt": [None, None, "é"]}
    (record,) = caplog.records
    assert "is null where it can't be read, first in sample '1': it is not UTF-8 text" in record.getMessage()


def test_a_doubled_member_fails_its_sample(tmp_path: Path) -> None:
    members = [("1.jpg", b"a"), ("1.jpg", b"b"), ("1.txt", b"t"), ("2.jpg", b"c"), ("2.txt", b"t"), ("2.txt", b"u")]
    read = Archive(written(tmp_path / "a.tar", tar_bytes(members)), keep_columns=("txt",))
    assert read.read() == {"1": "refused: 1.jpg comes several times in its sample: leave one", "2": b"c"}
    assert read.columns() == {"txt": ["t", None]}


@pytest.mark.parametrize("is_grouped", [True, False])
def test_a_key_that_comes_again_fails_with_an_id_of_its_own(tmp_path: Path, is_grouped: bool) -> None:
    """Also where the id that it would get is another one's."""
    names = ["1", "2", "1", "1#2", "1"]
    members: list[tuple[str, bytes]] = []
    for name in names:
        key = name if is_grouped else f"{name}.jpg"
        members += [(f"{name}.jpg", key.encode())] + ([(f"{name}.txt", b"")] if is_grouped else [])
    first, end = ("1", "") if is_grouped else ("1.jpg", ".jpg")
    again = f"refused: the key {first} came before in this archive: give each sample a key of its own"
    found = Archive(written(tmp_path / "a.tar", tar_bytes(members))).read()
    assert found == {
        first: first.encode(),
        f"2{end}": f"2{end}".encode(),
        ("1#3" if is_grouped else "1.jpg#2"): again,
        f"1#2{end}": f"1#2{end}".encode(),
        ("1#4" if is_grouped else "1.jpg#3"): again,
    }


def test_many_samples_come_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchcap.inputs.samples._BATCH_SAMPLES", 7)
    monkeypatch.setattr("batchcap.inputs.samples.READ_SAMPLES", 5)
    members = {f"{row}.{end}": f"{row}{end}".encode() for row in range(40) for end in ("jpg", "txt")[: 1 + row % 2]}
    for name, content in (("a.tar", tar_bytes(members)), ("a.zip", zip_bytes(members))):
        read = Archive(written(tmp_path / name, content), keep_columns=("txt",))
        assert read.read(3) == {f"{row}": f"{row}jpg".encode() for row in range(3, 40)}
        assert read.columns(3)["txt"] == [f"{row}txt" if row % 2 else None for row in range(3, 40)]


def test_headers_are_read_once(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Archive(shard).rows == 3
    for module, name in ((tar, "tar_members"), (zip_archive, "ZipDirectory")):
        monkeypatch.setattr(module, name, None)
    again = Archive(shard, keep_columns=("*",))
    assert again.read() == SHARD_IMAGES
    assert again.columns()["txt"] == ["first", None, None]


def test_an_archive_that_is_gone_or_another_one(shard: Path) -> None:
    read = Archive(shard)
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(UsageError, match=r"archive .* is missing: put it back to go on"):
        read.read()
    shard.write_bytes((zip_bytes if shard.suffix == ".zip" else tar_bytes)({"1.jpg": b"", "1.txt": b""}))
    with pytest.raises(UsageError, match="has changed while it was read"):
        read.read()
    shard.write_bytes(content)


def test_an_empty_archive_has_no_row(tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert Archive(written(tmp_path / form, FORMS[form]({}))).read() == {}
    assert not caplog.records
