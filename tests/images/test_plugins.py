"""HEIC and JPEG XL: decoded like any other image where their packages are there, and named where they are not."""

import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from batchcap.config import InputConfig
from batchcap.core.errors import ErrorKind, RowError
from batchcap.images import jxl, plugins
from batchcap.images.decode import decode
from batchcap.inputs import plugins as known
from batchcap.inputs.content import not_an_image
from batchcap.inputs.discover import discover
from batchcap.inputs.skipped import Skipped

pillow_heif = pytest.importorskip("pillow_heif")
pytest.importorskip("pillow_jxl")
LIMIT = 10**6
# Written without loss, but for HEIC's own colours.
LOSSLESS: dict[str, dict[str, Any]] = {"HEIF": {"quality": -1, "chroma": 444}, "JXL": {"lossless": True}}
MAX_DIFFERENCE = 3


@pytest.fixture(scope="module", autouse=True)
def _writers() -> None:
    for plugin in known.PLUGINS:
        assert plugins._is_registered(plugin)


def smooth(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Colours that change from side to side."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([across, down, 255 - across], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, name: str, **options: Any) -> bytes:
    """An image as a file of a format."""
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def failure(content: bytes, limit: int = LIMIT) -> RowError:
    with pytest.raises(RowError) as caught:
        decode(content, limit)
    return caught.value


@pytest.mark.parametrize("name", ["HEIF", "JXL"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("size", [(64, 48), (33, 17), (1, 1)])
def test_decoded_as_they_were(name: str, mode: str, size: tuple[int, int]) -> None:
    image = smooth(*size, mode=mode)
    pixels = decode(encoded(image, name, **LOSSLESS[name]), LIMIT).pixels
    assert (pixels.mode, pixels.size) == ("RGB", size)
    difference = np.abs(np.asarray(pixels, np.int16) - np.asarray(image.convert("RGB"), np.int16))
    assert difference.max() <= MAX_DIFFERENCE


@pytest.mark.parametrize("name", ["HEIF", "JXL"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_upright(name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    png = decode(encoded(smooth(64, 32), "PNG", exif=exif), LIMIT).pixels
    found = decode(encoded(smooth(64, 32), name, exif=exif.tobytes(), **LOSSLESS[name]), LIMIT).pixels
    assert found.size == png.size
    assert np.abs(np.asarray(found, np.int16) - np.asarray(png, np.int16)).max() <= MAX_DIFFERENCE


@pytest.mark.parametrize("name", ["HEIF", "JXL"])
def test_larger_than_the_limit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(smooth(300, 200), name)
    decode(content, 60_000)
    monkeypatch.setattr(Image.Image, "load", lambda _self: pytest.fail("it is decoded"))
    assert failure(content, 7000).kind is ErrorKind.TOO_LARGE


@pytest.mark.parametrize("name", ["HEIF", "JXL"])
def test_cut_and_damaged(name: str) -> None:
    content = encoded(smooth(64, 48), name)
    for end in range(12, len(content) - 1, 7):
        with suppress(RowError):
            decode(content[:end], LIMIT)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["HEIF", "JXL"]), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=4))))
def test_any_damage(name: str, damage: list[tuple[float, bytes]]) -> None:
    content = bytearray(encoded(smooth(40, 30), name))
    for share, patch in damage:
        place = int(share * len(content))
        content[place : place + len(patch)] = patch
    with suppress(RowError):
        decode(bytes(content), LIMIT)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from(["RGB", "RGBA", "L"]), st.booleans())
def test_samples_of_jpeg_xl_are_known_from_its_header(width: int, height: int, mode: str, with_exif: bool) -> None:
    options = {"exif": Image.Exif().tobytes()} if with_exif else {}  # with it the image is in a container
    content = encoded(Image.new(mode, (width, height)), "JXL", **options)
    channels = 4 if mode == "RGBA" else 3
    assert jxl.samples(content) == width * height * channels


def test_an_absurd_header_of_jpeg_xl_is_refused_unread() -> None:
    bits, place = 0, 0
    for value, count in ((0, 1), (3, 2), (2**30 - 1, 30), (0, 3), (3, 2), (2**30 - 1, 30), (1, 1)):
        bits |= value << place
        place += count
    content = b"\xff\x0a" + bits.to_bytes(20, "little")
    assert jxl.samples(content) == 3 * 2**60
    assert failure(content).kind is ErrorKind.TOO_LARGE


@pytest.fixture
def _not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "_is_installed", lambda _module: False)


@pytest.mark.usefixtures("_not_installed")
@pytest.mark.parametrize(("name", "extra"), [("HEIF", "heif"), ("JXL", "jxl")])
def test_without_the_package_the_failure_names_it(name: str, extra: str) -> None:
    error = failure(encoded(smooth(20, 20), name))
    assert error.kind is ErrorKind.NOT_AN_IMAGE
    assert f"pip install 'batchcap[{extra}]'" in error.message


@pytest.mark.usefixtures("_not_installed")
def test_without_the_package_a_folder_says_what_helps() -> None:
    skipped = Skipped()
    skipped.images.update({".heic": 3, ".jxl": 1, ".svg": 1})
    ((_level, line),) = skipped.lines()
    assert "5 images skipped" in line
    assert "pip install 'batchcap[heif]'" in line
    assert "pip install 'batchcap[jxl]'" in line


def test_photographs_of_phones_in_a_folder_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.HEIC").write_bytes(encoded(smooth(20, 20), "HEIF"))
    (tmp_path / "b.jxl").write_bytes(encoded(smooth(20, 20), "JXL"))
    found = [source.id for source in discover(InputConfig((str(tmp_path),)), tmp_path / "out")]
    assert found == ["a.HEIC", "b.jxl"]


def test_an_avif_is_read_by_pillow() -> None:
    content = encoded(smooth(20, 20), "AVIF")
    assert not_an_image(content) is None
    assert decode(content, LIMIT).pixels.size == (20, 20)


def test_a_video_of_the_same_family_is_none() -> None:
    assert "a video" in (not_an_image(b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + os.urandom(50)) or "")
