"""Tar archives that are damaged, odd or hostile: whole samples stay rows, what is lost is one failed row."""

import gzip
import io
import logging
import os
import random
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchcap.core.errors import UsageError
from batchcap.inputs import encoded, gzip_archive
from batchcap.inputs.samples import IndexBuilder, read_samples
from batchcap.inputs.tar_headers import tar_members
from tests.inputs.archives import SHARD, SHARD_IMAGES, Archive, link, tar_bytes, written

JPG = b"x" * 600
CUT_INSIDE = "corrupt: the archive ends inside of {}: it is cut off"
CUT_HEADER = "unreadable: the archive can't be read from byte {} on: truncated header"

NOISE = random.Random(1).randbytes(5000)


@pytest.fixture(params=[True, False], ids=["points", "no points"])
def points(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the library that keeps points to begin from is there."""
    if not request.param:
        monkeypatch.setattr(gzip_archive, "indexed_gzip", None)
    return bool(request.param)


def keys(content: bytes) -> list[tuple[str, bool]]:
    """The samples of a shard, and whether each is whole."""
    members = tar_members(io.BytesIO(content), len(content), "a.tar")
    index = IndexBuilder((), is_grouped=True).build(members)
    return [(sample.key, not sample.failure) for samples in read_samples(index, 0, 99) for sample in samples]


def test_a_cut_at_every_byte() -> None:
    """Samples before it are whole, and one row tells of it, unless it is between two members."""
    content = tar_bytes({"1.jpg": b"x", "1.txt": b"a", "2.jpg": b"y"})
    for size in range(512, 3073):
        start = (size - 1) // 1024 * 1024  # of the last member
        before = [("1", True)] if start == 2048 else []
        if size - start < 512:
            wanted = [("1", True), (f"damaged at byte {start}", False)]
        else:
            key = "2" if start == 2048 else "1"
            wanted = [*before, (key, size - start > 512)]
        assert keys(content[:size]) == wanted, size


@pytest.mark.parametrize(
    ("size", "rows"),
    [
        (1000, {"1.jpg": CUT_INSIDE.format("1.jpg")}),
        (1536, {"1.jpg": JPG}),
        (1600, {"1.jpg": JPG, "damaged at byte 1536": CUT_HEADER.format(1536)}),
        (2048, {"1": CUT_INSIDE.format("1.txt")}),
        (2560, {"1": JPG}),
        (3584, {"1": JPG, "2": b"y"}),
    ],
)
def test_cut_archives(tmp_path: Path, size: int, rows: dict[str, object], caplog: pytest.LogCaptureFixture) -> None:
    content = tar_bytes({"1.jpg": JPG, "1.txt": b"a", "2.jpg": b"y", "2.txt": b"b"})
    assert Archive(written(tmp_path / "a.tar", content[:size])).read() == rows
    ends_between = not any(isinstance(end, str) for end in rows.values())
    assert ("ends without the mark of its end: it may be cut off" in caplog.text) == ends_between


def test_a_cut_packed_archive_at_every_byte(tmp_path: Path, points: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many rows as were counted, and no row of what was whole is another one."""
    monkeypatch.setenv("BATCHCAP_CACHE", os.devnull)
    members = {"1.jpg": os.urandom(300), "1.txt": b"a", "2.jpg": os.urandom(300), "2.txt": b"b"}
    content = gzip.compress(tar_bytes(members))
    whole = {"1": members["1.jpg"], "2": members["2.jpg"], "1.jpg": members["1.jpg"]}
    seen = set()
    for size in range(1, len(content), 7):
        path = written(tmp_path / "a.tgz", content[:size])
        try:
            found = Archive(path).read()
        except UsageError:
            continue
        seen.add(len(found))
        for key, image in found.items():
            assert isinstance(image, str) or whole[key] == image
        assert sum(isinstance(image, str) for image in found.values()) <= 1
    assert seen >= {1, 2}


def test_a_damaged_header_loses_what_follows(tmp_path: Path) -> None:
    content = bytearray(tar_bytes({"1.jpg": JPG, "1.txt": b"a", "2.jpg": b"y", "2.txt": b"b"}))
    content[2560] ^= 1
    found = Archive(written(tmp_path / "a.tar", bytes(content))).read()
    assert found == {
        "1": JPG,
        "damaged at byte 2560": "unreadable: the archive can't be read from byte 2560 on: bad checksum",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is no tar archive \(it is empty\): mend it or leave it out"),
        (NOISE, r"is no tar archive \((bad checksum|invalid header)\): mend it or leave it out"),
        (tar_bytes(SHARD)[:400], r"is no tar archive \(truncated header\): mend it or leave it out"),
        (gzip.compress(b"no archive at all" * 99, mtime=0), r"is no tar archive \(.*\): mend it or leave it out"),
        (
            gzip.compress(tar_bytes(SHARD), mtime=0)[:60],
            r"is no tar archive \(.*ended before.*\): mend it or leave it out",
        ),
        (b"\x1f\x8b" + NOISE, r"is no tar archive \(.*\): mend it or leave it out"),
        (b"<!DOCTYPE html><html>not found</html>", r"a\.tar is an HTML page"),
        (b"\x28\xb5\x2f\xfd" + bytes(999), r"a\.tar is packed with zstd: unpack it"),
    ],
    ids=["empty", "noise", "cut", "other content", "cut while packed", "noise that seems packed", "page", "zstd"],
)
def test_what_is_no_tar_archive(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Archive(written(tmp_path / "a.tar", content))
    assert "\n" not in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(UsageError, match="is a pipe, socket or device, not an archive"):
        Archive(tmp_path / "a.tar")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["a/" * 40 + "b.jpg", "é" * 40 + ".jpg", "n\nl.jpg", "x" * 90 + ".jpg"])
def test_names_in_every_format(tmp_path: Path, form: int, name: str) -> None:
    content = tar_bytes({name: b"1", "z.jpg": b"2"}, format=form)
    assert Archive(written(tmp_path / "a.tar", content)).read() == {name: b"1", "z.jpg": b"2"}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_other_bytes(tmp_path: Path, form: int) -> None:
    """A name that no file could have is cut; bytes that are not UTF-8 are written as they are called elsewhere."""
    names = ["d/" * 500 + "b.jpg", "gr\udcf6.jpg", "y" * 9000 + ".jpg"]
    content = tar_bytes(dict.fromkeys(names, b"1"), format=form, encoding="utf-8", errors="surrogateescape")
    found = Archive(written(tmp_path / "a.tar", content)).read()
    assert list(found)[:2] == [names[0], r"gr\xf6.jpg"]
    assert len(found) == 2, "cut, it has no extension of an image"


def test_an_archive_of_unix_version_7(tmp_path: Path) -> None:
    content = bytearray(tar_bytes({"d/": b"", "d/1.jpg": b"1", "d/2.jpg": b"2"}, format=tarfile.USTAR_FORMAT))
    for start in (0, 512, 1536):
        header = content[start : start + 512]
        header[156:157], header[257:] = b"\0", bytes(255)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        content[start : start + 512] = header
    assert Archive(written(tmp_path / "a.tar", bytes(content))).read() == {"d/1.jpg": b"1", "d/2.jpg": b"2"}


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a pipe"),
    ],
)
def test_what_is_no_file_is_not_followed(tmp_path: Path, kind: bytes, what: str) -> None:
    path = written(tmp_path / "a.tar", tar_bytes([link("1.jpg", kind), ("1.txt", b"a"), ("2.jpg", b"2")]))
    refused = f"refused: 1.jpg is {what}, which is not followed: put the file itself into the archive"
    assert Archive(path).read() == {"1": refused, "2": b"2"}
    path = written(tmp_path / "b.tar", tar_bytes([("1.jpg", b"1"), link("1.txt", kind)]))
    assert Archive(path, keep_columns=("txt",)).columns() == {"txt": [None]}


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("1.jpg")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "1000", "GNU.sparse.name": "1.jpg"}
    path = written(tmp_path / "a.tar", tar_bytes([(info, b"1"), ("2.jpg", b"2")], format=tarfile.PAX_FORMAT))
    found = Archive(path).read()
    assert found == {
        "1.jpg": "refused: 1.jpg is stored as a sparse file, which is not read: pack it without --sparse",
        "2.jpg": b"2",
    }


def test_a_header_that_would_fill_the_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    content = tar_bytes({"1.jpg": b"1"})[:1024] + info.tobuf(tarfile.GNU_FORMAT) + b"x" * 4096
    found = Archive(written(tmp_path / "a.tar", content)).read()
    assert list(found) == ["1.jpg", "damaged at byte 1024"]
    assert "its header is larger than" in str(found["damaged at byte 1024"])


def test_headers_without_an_end(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type = tarfile.GNUTYPE_LONGNAME
    content = tar_bytes({"1.jpg": b"1"})[:1024] + info.tobuf(tarfile.GNU_FORMAT) * 5000
    assert list(Archive(written(tmp_path / "a.tar", content)).read()) == ["1.jpg", "damaged at byte 1024"]


@pytest.mark.parametrize("size", [1 << 40, 1 << 62, -1])
def test_a_member_that_is_larger_than_its_archive(tmp_path: Path, size: int) -> None:
    info = tarfile.TarInfo("2.jpg")
    info.size = size
    content = tar_bytes({"1.jpg": b"1"})[:1024] + info.tobuf(tarfile.GNU_FORMAT) + b"x" * 4096
    for name, data in (("a.tar", content), ("a.tgz", gzip.compress(content))):
        found = Archive(written(tmp_path / name, data)).read()
        assert list(found) == ["1.jpg", "2.jpg" if size > 0 else "damaged at byte 1024"]


def test_joined_archives_end_with_the_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As for tarfile, but with a word about it."""
    path = written(tmp_path / "a.tar", tar_bytes({"1.jpg": b"1"}) + tar_bytes({"2.jpg": b"2"}))
    assert Archive(path).read() == {"1.jpg": b"1"}
    assert caplog.text.count("goes on after the mark of its end") == 1


def test_the_content_says_whether_it_is_packed(tmp_path: Path) -> None:
    for name, content in (("a.tar.gz", tar_bytes(SHARD)), ("b.tar", tar_bytes(SHARD, "w:gz"))):
        assert Archive(written(tmp_path / name, content)).read() == SHARD_IMAGES


def test_two_streams_of_gzip_are_one_archive(tmp_path: Path, points: bool) -> None:
    content = tar_bytes(SHARD)
    path = written(tmp_path / "gr\udcf6.tgz", gzip.compress(content[:3000]) + gzip.compress(content[3000:]))
    read = Archive(path)
    assert [row.image.data for row in read.reader.rows(read.piece(), range(3))] == list(SHARD_IMAGES.values())


@pytest.fixture
def read_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of bytes for each reading of a file, from when it is asked for."""
    read: list[int] = []

    class Counting(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            read.append(super().readinto(buffer) or 0)
            return read[-1]

    plain = Path.open

    def opened(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        return io.BufferedReader(Counting(str(path))) if mode == "rb" else plain(path, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", opened)
    return read


@pytest.fixture
def large(tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """A packed archive with several points."""
    images = {f"{row:02d}.jpg": os.urandom(400_000) for row in range(30)}
    return written(tmp_path / "a.tgz", gzip.compress(tar_bytes(images), 1)), images


def test_a_packed_archive_is_read_on_from_a_point(
    large: tuple[Path, dict[str, bytes]],
    points: bool,
    caplog: pytest.LogCaptureFixture,
    read_bytes: list[int],
) -> None:
    """Without the library from its beginning, which is told of once."""
    path, images = large
    caplog.set_level(logging.INFO)
    first = Archive(path)
    assert first.read() == images
    read_bytes.clear()
    last = Archive(path)
    assert last.read(28) == dict(list(images.items())[28:])
    assert (sum(read_bytes) < path.stat().st_size / 2) == points
    assert first.read(2, 3) == dict(list(images.items())[2:5]), "what lies before what was read last"
    assert caplog.text.count("a run that goes on unpacks it from its beginning") == (0 if points else 2)


def test_columns_of_a_packed_archive_are_read_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_bytes: list[int]
) -> None:
    """Column by column it would be unpacked from its beginning for each."""
    monkeypatch.setattr(gzip_archive, "indexed_gzip", None)
    monkeypatch.setattr("batchcap.inputs.samples.READ_SAMPLES", 5)
    members: dict[str, bytes] = {}
    for row in range(40):
        members |= {
            f"{row}.jpg": os.urandom(40_000),
            f"{row}.cls": b"%d" % row,
            f"{row}.txt": b"a",
            f"{row}.json": b"b",
        }
    path = written(tmp_path / "a.tgz", gzip.compress(tar_bytes(members), 1))
    archive = Archive(path, keep_columns=("*",))
    read_bytes.clear()
    assert archive.columns()["cls"] == list(range(40))
    assert sum(read_bytes) < 1.1 * path.stat().st_size


@pytest.mark.parametrize("points_of", [b"", b"x" * 9999])
def test_points_that_can_not_be_used(large: tuple[Path, dict[str, bytes]], points_of: bytes) -> None:
    path, images = large
    read = Archive(path)
    table = pa.table({"points": pa.array([points_of], pa.large_binary())})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gzip_archive, "_points", lambda _path: table)
        assert read.read(29) == dict(list(images.items())[29:])


def test_a_damaged_packed_archive_is_read_as_far_as_it_goes(large: tuple[Path, dict[str, bytes]], points: bool) -> None:
    path, images = large
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = os.urandom(4000)
    path.write_bytes(content)
    found = Archive(path).read()
    assert [images[name] == found[name] for name in list(images)[:10]] == [True] * 10
    assert 10 < len(found) <= 30


def test_images_of_packed_archives_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "MAX_ENCODED_MIB", 1)
    path = written(tmp_path / "a.tgz", gzip.compress(tar_bytes({"1.jpg": bytes(2 << 20), "2.jpg": b"2"})))
    assert Archive(path).read() == {"1.jpg": "too_large: the encoded image is larger than 1 MiB", "2.jpg": b"2"}
