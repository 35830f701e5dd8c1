"""Zip archives that are damaged, odd or hostile; sizes and places in them are written by others."""

import io
import os
import random
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import pytest

from batchcap.core.errors import UsageError
from batchcap.core.sources import Bytes, FileAt
from batchcap.inputs import encoded
from tests.inputs.archives import SHARD, SHARD_IMAGES, Archive, written, zip_bytes

# Where numbers lie in an entry of the directory.
FLAGS, METHOD, CRC, PACKED, SIZE, EXTERNAL, OFFSET = 8, 10, 16, 20, 24, 38, 42


def changed(content: bytes, name: bytes, at: int, number: int, form: str = "<L") -> bytes:
    """An archive whose directory says something else of a member."""
    start = content.rindex(name) - 46
    assert content[start : start + 4] == b"PK\1\2"
    found = bytearray(content)
    struct.pack_into(form, found, start + at, number)
    return bytes(found)


def read(tmp_path: Path, content: bytes) -> dict[str, bytes | str]:
    return Archive(written(tmp_path / "a.zip", content)).read()


def test_members_of_one_sample_lie_anywhere(tmp_path: Path) -> None:
    """Who makes a zip archive of a folder has them in any order."""
    names = sorted(SHARD, key=lambda name: (name[::-1], name))
    path = written(tmp_path / "a.zip", zip_bytes([(name, SHARD[name]) for name in names]))
    found = Archive(path, keep_columns=("*",))
    assert {key: found.read()[key] for key in ("a/0001", "a/0002")} == {"a/0001": b"one", "a/0002": b"two"}
    columns = found.columns()
    assert dict(zip(columns["__key__"], columns["cls"], strict=True)) == {"a/0001": 3, "a/0002": -4, "a/0003": None}


def test_what_is_stored_is_read_by_the_worker(tmp_path: Path) -> None:
    for method, kind in ((zipfile.ZIP_STORED, FileAt), (zipfile.ZIP_DEFLATED, Bytes)):
        archive = Archive(written(tmp_path / "a.zip", zip_bytes(SHARD, method)))
        assert {type(row.image) for row in archive.reader.rows(archive.piece(), range(3))} == {kind}


@pytest.mark.parametrize(
    ("at", "number", "form", "end"),
    [
        (FLAGS, 1, "<H", "refused: 1.jpg is encrypted: unpack the archive with its password and give the folder"),
        (METHOD, 9, "<H", "unreadable: 1.jpg is packed with deflate64 (method 9), which is not read: pack it with"),
        (
            METHOD,
            93,
            "<H",
            "unreadable: 1.jpg is packed with zstd (method 93), which is not read: pack it with deflate",
        ),
        (METHOD, 77, "<H", "unreadable: 1.jpg is packed with an unknown method (method 77), which is not read"),
        (METHOD, 0, "<H", "corrupt: 1.jpg is stored with"),
        (METHOD, 12, "<H", "corrupt: it can't be unpacked: Invalid data stream"),
        (METHOD, 14, "<H", "corrupt: it can't be unpacked: "),
        (CRC, 7, "<L", "corrupt: its checksum or size is not what the archive says: it is damaged"),
        (SIZE, 5, "<L", "corrupt: its checksum or size is not what the archive says: it is damaged"),
        (SIZE, 0xFFFFFFFE, "<L", "too_large: the encoded image is larger than 1024 MiB"),
        (PACKED, 0xFFFFFFFE, "<L", "too_large: what it is packed into is larger than 1024 MiB"),
        (PACKED, 9999, "<L", "corrupt: the archive ends inside of it: it is cut off, or another one"),
        (OFFSET, 3, "<L", "corrupt: the archive has no member at byte 3: it is damaged"),
        (OFFSET, 0xFFFFFF, "<L", "corrupt: the archive has no member at byte 16777215: it is damaged"),
        (EXTERNAL, 0o120777 << 16, "<L", "refused: 1.jpg is a symbolic link, which is not followed: put the file"),
        (EXTERNAL, 0o010777 << 16, "<L", "refused: 1.jpg is a device or a pipe, which is not followed"),
    ],
)
def test_a_member_that_can_not_be_read_fails_alone(tmp_path: Path, at: int, number: int, form: str, end: str) -> None:
    content = zip_bytes({"1.jpg": b"x" * 999, "2.jpg": b"2"}, zipfile.ZIP_DEFLATED)
    found = read(tmp_path, changed(content, b"1.jpg", at, number, form))
    assert str(found["1.jpg"]).startswith(end)
    assert found["2.jpg"] == b"2"


def test_a_stored_member_that_leads_out_of_the_archive(tmp_path: Path) -> None:
    content = zip_bytes({"1.jpg": b"1", "2.jpg": b"2"})
    for at in (PACKED, SIZE):
        content = changed(content, b"1.jpg", at, 5000)
    assert str(read(tmp_path, content)["1.jpg"]).startswith("corrupt: ")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_bomb_is_not_unpacked(tmp_path: Path, method: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it says how large it is, or not."""
    monkeypatch.setattr(encoded, "MAX_ENCODED_MIB", 1)
    content = zip_bytes({"1.jpg": bytes(4 << 20)}, method)
    assert read(tmp_path, content) == {"1.jpg": "too_large: the encoded image is larger than 1 MiB"}
    lying = changed(content, b"1.jpg", SIZE, 100)
    assert read(tmp_path, lying)["1.jpg"] == "corrupt: its checksum or size is not what the archive says: it is damaged"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_cuts_and_flips(tmp_path: Path, method: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never another error, and as many rows as were counted."""
    monkeypatch.setenv("BATCHCAP_CACHE", os.devnull)
    content = zip_bytes({"1.jpg": b"one", "1.txt": b"t", "2.jpg": b"two"}, method)
    for size in range(len(content)):
        with pytest.raises(UsageError, match="is no zip archive that can be read"):
            read(tmp_path, content[:size])
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 0x41
        try:
            assert len(read(tmp_path, bytes(damaged))) <= 4
        except UsageError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_a_directory_that_is_damaged_in_the_middle(tmp_path: Path) -> None:
    content = bytearray(zip_bytes({"1.jpg": b"1", "2.jpg": b"2"}))
    start = content.rindex(b"PK\1\2")
    content[start] = 0
    reason = f"unreadable: the archive's directory is damaged at byte {start}, after 1 entries"
    assert read(tmp_path, bytes(content)) == {"1.jpg": b"1", f"damaged at byte {start}": reason}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is no zip archive that can be read \(it has no directory at its end: it is cut off, or none at all\)"),
        (random.Random(1).randbytes(5000), "is no zip archive that can be read"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(99), r"a\.zip is a 7z archive: unpack it"),
        (b"<!DOCTYPE html><html>not found</html>", r"a\.zip is an HTML page"),
        (zip_bytes(SHARD)[:-22] + b"PK\5\6" + b"\1\0" * 9, "is a part of a split archive: join the parts first"),
    ],
)
def test_what_is_no_zip_archive(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(tmp_path, content)


def test_what_lies_before_an_archive_and_after_it(tmp_path: Path) -> None:
    """As in one that unpacks itself, and one with a comment."""
    content = bytearray(zip_bytes(SHARD))
    content[-2:] = b"\7\0"
    assert read(tmp_path, b"#!program" * 99 + bytes(content) + b"comment") == SHARD_IMAGES


def test_names_of_other_character_sets(tmp_path: Path) -> None:
    content = zip_bytes({"é.jpg": b"1", "x.jpg": b"2"})
    assert read(tmp_path, content) == {"é.jpg": b"1", "x.jpg": b"2"}
    old = changed(content, "é.jpg".encode(), FLAGS, 0, "<H")
    assert read(tmp_path, old) == {"├⌐.jpg": b"1", "x.jpg": b"2"}, "as zipfile has it"
    wrong = content.replace("é".encode(), b"\xe9\xe9")
    assert list(read(tmp_path, wrong)) == [r"\xe9\xe9.jpg", "x.jpg"]


def test_doubled_names(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = zip_bytes([("1.jpg", b"1"), ("2.jpg", b"2"), ("1.jpg", b"3")])
    again = "refused: the key 1.jpg came before in this archive: give each sample a key of its own"
    assert read(tmp_path, content) == {"1.jpg": b"1", "2.jpg": b"2", "1.jpg#2": again}


def test_numbers_of_64_bits(tmp_path: Path) -> None:
    """As in archives of more than 4 GiB, whose end, sizes and places are written twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, archive.open("1.jpg", "w", force_zip64=True) as member:
        member.write(b"one")
    small = buffer.getvalue()
    start, end = small.rindex(b"PK\1\2"), small.rindex(b"PK\5\6")
    entry = bytearray(small[start:end])
    numbers = (3, 3, 0)
    for at in (PACKED, SIZE, OFFSET):
        struct.pack_into("<L", entry, at, 0xFFFFFFFF)
    name = small[start + 46 : start + 46 + 5]
    struct.pack_into("<H", entry, 30, 28)
    entry = entry[:46] + name + struct.pack("<HH3Q", 1, 24, *numbers)
    end_64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(entry), start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, start + len(entry), 1)
    last = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    content = small[:start] + bytes(entry) + end_64 + locator + last
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.read("1.jpg") == b"one"
    assert read(tmp_path, content) == {"1.jpg": b"one"}
    assert zlib.crc32(b"one") == struct.unpack_from("<L", entry, CRC)[0]
