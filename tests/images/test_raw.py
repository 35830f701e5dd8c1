"""Camera raw files: their preview is the image, a plain TIFF stays one, and what is damaged or hostile fails alone."""

import io
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from batchcap.config import InputConfig
from batchcap.core.errors import ErrorKind, RowError, UsageError
from batchcap.images.decode import decode
from batchcap.inputs import plugins as known
from batchcap.inputs.content import PREFIX_BYTES, not_an_image
from batchcap.inputs.discover import discover
from batchcap.inputs.raw_files import raw_suffix
from batchcap.inputs.skipped import Skipped
from batchcap.inputs.suffix import RAW_SUFFIXES
from batchcap.outputs.pairs import image_suffix
from tests.images.raws import ASCII, LONG, MAKE, SHORT, Directory, dng, jpeg_preview, mosaic, sensor, tiff
from tests.images.samples import encode, noise, scene
from tests.inputs.archives import SHARD, SHARD_IMAGES, Archive, tar_bytes, written, zip_bytes

pytest.importorskip("rawpy")
LIMIT = 10**6
THUMBNAIL = (64, 48)
PREVIEW = (640, 480)
LOSSY_LEVELS = 2  # in the mean: edges of colours are blurred


def pixels(content: bytes, limit: int = LIMIT) -> np.ndarray:
    return np.asarray(decode(content, limit).pixels, np.int16)


def are_alike(found: np.ndarray, meant: np.ndarray) -> bool:
    return found.shape == meant.shape and np.abs(found - meant).mean() < LOSSY_LEVELS


def failure(content: bytes, limit: int = LIMIT) -> RowError:
    with pytest.raises(RowError) as caught:
        decode(content, limit)
    return caught.value


def with_orientation(orientation: int, kind: str, *, is_first: bool = True) -> bytes:
    """An image that names its orientation; of a JPEG in its first segment, or behind another one."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encode(scene(*PREVIEW), kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    return data[:2] + data[20:] if is_first and data[2:4] == b"\xff\xe0" else data


def test_the_thumbnail_that_a_reader_of_tiff_takes_is_not_the_image() -> None:
    content = dng([sensor(800, 600), jpeg_preview(scene(*PREVIEW))])
    assert Image.open(io.BytesIO(content), formats=("TIFF",)).size == THUMBNAIL
    assert decode(content, LIMIT).pixels.size == PREVIEW


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_largest_preview_is_the_image(order: str) -> None:
    previews = [jpeg_preview(noise(320, 240)), jpeg_preview(scene(*PREVIEW)), jpeg_preview(noise(512, 384))]
    found = pixels(dng([*previews, sensor(800, 600, order=order)], order=order))
    assert are_alike(found, np.asarray(scene(*PREVIEW), np.int16))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_preview_that_says_nothing_is_turned_as_the_raw_image(orientation: int) -> None:
    found = pixels(dng([sensor(800, 600), jpeg_preview(scene(*PREVIEW))], orientation=orientation))
    assert are_alike(found, pixels(with_orientation(orientation, "PNG")))


@pytest.mark.parametrize("is_first", [True, False])
def test_a_preview_that_says_how_it_lies_is_turned_so(is_first: bool) -> None:
    data = with_orientation(3, "JPEG", is_first=is_first)
    assert (data[2:4] == b"\xff\xe1") is is_first
    found = pixels(dng([sensor(800, 600), jpeg_preview(scene(*PREVIEW), data)], orientation=6))
    assert are_alike(found, pixels(with_orientation(3, "PNG")))


@pytest.mark.parametrize("orientation", [1, 6, 3])
@pytest.mark.parametrize("previews", [[], [jpeg_preview(noise(160, 120))]], ids=["none", "small"])
def test_where_the_preview_is_small_the_raw_image_is_developed(previews: list[Directory], orientation: int) -> None:
    raw = sensor(1200, 800, mosaic(scene(1200, 800)))
    found = decode(dng([raw, *previews], orientation=orientation), LIMIT).pixels
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    meant = decode(encode(scene(600, 400), "PNG", exif=exif), LIMIT).pixels
    assert found.size == meant.size
    width, height = found.size
    for place in ((x * width // 4, y * height // 4) for x in (1, 3) for y in (1, 3)):
        # Colours are the camera's matter; which quarter is red, green, blue or yellow is not.
        assert [level > 100 for level in found.getpixel(place)] == [level > 100 for level in meant.getpixel(place)]


def test_a_small_raw_image_is_developed_whole() -> None:
    assert decode(dng([sensor(600, 400)]), LIMIT).pixels.size == (600, 400)
    # A preview as large as the raw image is no small one.
    assert are_alike(pixels(dng([sensor(96, 64), jpeg_preview(scene())])), np.asarray(scene(), np.int16))


def test_neither_preview_nor_raw_image() -> None:
    raw = sensor(1200, 800)
    raw.tags[257] = (LONG, (3000,))  # the file ends inside of it
    error = failure(dng([jpeg_preview(scene(320, 240)), raw]), 10**7)
    assert error.kind is ErrorKind.CORRUPT
    assert "has no JPEG preview of more than 320 x 240 pixels, and its raw image does not decode" in error.message
    assert error.message.endswith("convert it to JPEG or PNG")


def test_a_preview_larger_than_the_limit_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = dng([sensor(800, 600), jpeg_preview(scene(*PREVIEW))])
    decode(content, 640 * 480)
    monkeypatch.setattr(Image.Image, "load", lambda _self: pytest.fail("it is decoded"))
    for limit in (640 * 480 - 1, 1000):
        assert failure(content, limit).kind is ErrorKind.TOO_LARGE


@pytest.mark.parametrize("sides", [(1200, 800), (60_000, 60_000)])
def test_a_raw_image_larger_than_the_limit_is_not_unpacked(sides: tuple[int, int]) -> None:
    raw = sensor(1200, 800)
    raw.tags |= {256: (LONG, (sides[0],)), 257: (LONG, (sides[1],))}
    assert failure(dng([raw]), 1200 * 800 - 1).kind is ErrorKind.TOO_LARGE


def test_a_tile_larger_than_the_limit_is_not_unpacked() -> None:
    raw = sensor(1200, 800)
    raw.tags |= {322: (LONG, (60_000,)), 323: (LONG, (60_000,))}
    assert failure(dng([raw])).kind is ErrorKind.TOO_LARGE


def test_a_thumbnail_that_claims_more_than_it_has_is_not_read() -> None:
    """rawpy gives an array of the claimed size over the bytes that there are: `tests/fuzz/found` has a crash."""
    content = bytearray(dng([sensor(600, 400)]))
    place = content.index(b"\x00\x01\x04\x00\x01\x00\x00\x00\x40\x00") + 8
    content[place : place + 2] = b"\xff\x7f"
    assert decode(bytes(content), LIMIT).pixels.size == (600, 400)


def test_cut_anywhere(capfd: pytest.CaptureFixture[str]) -> None:
    content = dng([sensor(128, 96), jpeg_preview(scene(96, 64))], thumbnail=noise(8, 6))
    ends = {*range(8, 1200, 7), *range(1200, len(content), 997), len(content) - 1}
    ended = set()
    for end in sorted(ends):
        try:
            decode(content[:end], LIMIT)
        except RowError as error:
            ended.add(error.kind)
    assert ended >= {ErrorKind.CORRUPT, ErrorKind.NOT_AN_IMAGE}
    assert capfd.readouterr() == ("", ""), "LibRaw prints what it does not like"


CONTENTS = {
    "dng": (dng([sensor(8, 8)]), ".dng"),
    "dng, big-endian": (dng([sensor(8, 8)], order=">"), ".dng"),
    "nef": (tiff(Directory({MAKE: (ASCII, b"NIKON CORPORATION\0")}, below=[sensor(8, 8)])), ".nef"),
    "arw": (tiff(Directory({MAKE: (ASCII, b"SONY\0")}, below=[jpeg_preview(noise(8, 8)), sensor(8, 8)])), ".arw"),
    "pef": (tiff(Directory({259: (SHORT, (65535,)), MAKE: (ASCII, b"PENTAX\0")}), ">"), ".pef"),
    "another make": (tiff(Directory({}, below=[sensor(8, 8)])), ".dng"),
    "cr2": (tiff(Directory({MAKE: (ASCII, b"Canon\0")}), header=b"CR\2\0\0\0\0\0"), ".cr2"),
    "cr3": (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(100), ".cr3"),
    "crw": (b"II\x1a\0\0\0HEAPCCDR" + bytes(100), ".crw"),
    "orf": (b"IIRO\x08\0\0\0" + bytes(100), ".orf"),
    "orf of a compact camera": (b"IIRS\x08\0\0\0" + bytes(100), ".orf"),
    "rw2": (b"IIU\0\x08\0\0\0" + bytes(100), ".rw2"),
    "raf": (b"FUJIFILMCCD-RAW 0201" + bytes(100), ".raf"),
    "mrw": (b"\0MRM" + bytes(100), ".mrw"),
    "x3f": (b"FOVb" + bytes(100), ".x3f"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_each_kind_is_known_by_its_content(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content, suffix = CONTENTS[name]
    assert raw_suffix(content) == image_suffix(content) == suffix
    assert suffix in RAW_SUFFIXES
    assert raw_suffix(content[:3]) is None
    monkeypatch.setattr(known, "_is_installed", lambda _module: False)
    error = failure(content)
    assert error.kind is ErrorKind.NOT_AN_IMAGE
    assert "a camera raw file: install its reader with `pip install 'batchcap[raw]'`" in error.message


def plain_tiffs() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "NIKON CORPORATION", "NIKON D5"
    image = scene()
    packings = ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
    return {
        **{name: encode(image, "TIFF", compression=name) for name in packings},
        "of a camera": encode(image, "TIFF", exif=exif),
        "pages": encode(image, "TIFF", save_all=True, append_images=[noise(20, 20)] * 9),
        "fax": encode(image.convert("1"), "TIFF", compression="group4"),
        "big": encode(image, "TIFF", big_tiff=True),
        "grey": encode(image.convert("I;16"), "TIFF"),
    }


PLAIN = plain_tiffs()


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("is_installed", [True, False])
def test_a_plain_tiff_stays_one(name: str, is_installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "_is_installed", lambda _module: is_installed)
    assert raw_suffix(PLAIN[name]) is None
    assert image_suffix(PLAIN[name]) == ".tiff"
    assert decode(PLAIN[name], LIMIT).pixels.size == scene().size


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([CONTENTS[name][0] for name in ("dng", "dng, big-endian", "arw")]),
    st.lists(st.tuples(st.integers(0, 600), st.binary(max_size=8)), max_size=5),
    st.integers(0, 4000),
)
def test_any_directory_is_looked_at_without_fault(content: bytes, damage: list[tuple[int, bytes]], end: int) -> None:
    damaged = bytearray(content)
    for place, patch in damage:
        damaged[place : place + len(patch)] = patch
    assert raw_suffix(bytes(damaged[:end])) in {None, *RAW_SUFFIXES}


def test_directories_without_an_end_are_left() -> None:
    ring = b"II*\0\x08\0\0\0" + b"\xff\xff" + bytes(12 * 0xFFFF) + b"\x08\0\0\0"
    assert raw_suffix(ring) is None
    below = b"II*\0\x08\0\0\0\x01\0\x4a\x01\x04\0\xff\xff\xff\xff\x08\0\0\0" + bytes(4)
    assert raw_suffix(below) is None


def test_raw_files_in_a_folder_are_found(tmp_path: Path) -> None:
    for name in ("a.CR2", "b.dng", "c.nef", "volume.raw"):
        (tmp_path / name).write_bytes(dng([sensor(8, 8)]))
    assert [one.id for one in discover(InputConfig((str(tmp_path),)), tmp_path / "out")] == ["a.CR2", "b.dng", "c.nef"]


@pytest.mark.parametrize("beside", ["IMG.jpg", "IMG.HEIC", "IMG.TIF"])
def test_of_two_files_of_a_photograph_one_is_a_row(beside: str, tmp_path: Path) -> None:
    """A job that was begun before raw files were read would find two images for each of its caption files."""
    folder = tmp_path / "in/day"
    folder.mkdir(parents=True)
    for name in ("IMG.CR2", beside, "alone.dng", "text.nef", "text.txt"):
        (folder / name).touch()
    skipped = Skipped()

    def found(given: str) -> set[str]:
        return {source.path.name for source in discover(InputConfig((given,)), tmp_path / "out", skipped)}

    others = {beside, "alone.dng", "text.nef"}
    assert found(str(tmp_path / "in")) == found(f"{tmp_path}/in/**") == found(f"{folder}/*") == others
    assert skipped.raws == 3
    assert any("3 camera raw files skipped with an image of the same name" in line for _level, line in skipped.lines())
    assert found(f"{folder}/*.CR2") == found(str(folder / "IMG.CR2")) == {"IMG.CR2"}


def test_a_name_may_say_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path / "photograph", dng([sensor(8, 8)]))
    config = InputConfig((str(file),))
    assert [one.id for one in discover(config, tmp_path / "out")] == ["photograph"]
    assert not_an_image(file.read_bytes()[:PREFIX_BYTES]) is not None
    monkeypatch.setattr(known, "_is_installed", lambda _module: False)
    with pytest.raises(UsageError, match=r"is a camera raw file: install its reader with .*batchcap\[raw\]"):
        list(discover(config, tmp_path / "out"))


@pytest.fixture(params=["a.tar", "a.tar.gz", "a.zip"])
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHCAP_CACHE", str(tmp_path / "cache"))


def packed(path: Path, members: dict[str, bytes]) -> Path:
    modes = {
        ".tar": lambda: tar_bytes(members),
        ".gz": lambda: tar_bytes(members, "w:gz"),
        ".zip": lambda: zip_bytes(members),
    }
    return written(path, modes[path.suffix]())


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_an_archive_keeps_its_rows_when_raw_files_are_read(name: str, tmp_path: Path) -> None:
    """Or a job that was begun before would find another image in each row."""
    members = {"a/0000.cr2": b"before", **SHARD, "a/0002.dng": b"between"}
    assert Archive(packed(tmp_path / name, members)).read() == SHARD_IMAGES


@pytest.mark.usefixtures("_cache")
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_an_archive_of_raw_files_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = packed(tmp_path / name, {"0.dng": b"one", "0.txt": b"text", "1.cr2": b"two", "readme.md": b"none"})
    with monkeypatch.context() as without:
        without.setattr(known, "_is_installed", lambda _module: False)
        assert Archive(shard).rows == 0
    assert Archive(shard, keep_columns=("txt",)).read() == {"0": b"one", "1": b"two"}


def test_what_is_no_raw_file_behind_such_a_name() -> None:
    for content in (b"FUJIFILMCCD-RAW " + os.urandom(3000), b"IIRO\x08\0\0\0" + bytes(3000), CONTENTS["cr3"][0]):
        with suppress(RowError):
            decode(content, LIMIT)
        assert "a camera raw file that is damaged or of a kind" in failure(content).message
