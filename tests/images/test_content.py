"""Bytes that are no image are named, and what to do is said."""

import base64
import io
import tarfile

import pytest

from batchcap.core.errors import ErrorKind, RowError
from batchcap.images.decode import decode
from batchcap.inputs.content import FORMATS, base64_image, not_an_image
from tests.images.samples import encode, scene

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def brand(major: bytes, *others: bytes) -> bytes:
    brands = b"".join(others)
    return (16 + len(brands)).to_bytes(4) + b"ftyp" + major + bytes(4) + brands + bytes(200)


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    return buffer.getvalue()


CONTENTS: dict[str, tuple[bytes, str]] = {
    "lfs": (LFS, "a Git LFS pointer, not the image itself: run `git lfs pull`"),
    "annex": (b"/annex/objects/SHA256E-s31390--f50d.jpg\n", "a git-annex pointer"),
    "html": (b"\n <!DOCTYPE html><title>404</title>", "an HTML page, probably what a server sent"),
    "html with svg": (b"<html><svg></svg></html>", "an HTML page"),
    "xhtml": (b"\xef\xbb\xbf<?xml version='1.0'?><html xmlns='x'>", "an HTML page"),
    "svg": (b"<?xml version='1.0'?>\n<!-- made by hand -->\n<svg xmlns='x'/>", "an SVG drawing: convert it"),
    "store": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML or HTML text, perhaps an error"),
    "json": (b'{"error": "not found"}', "JSON text, perhaps an error"),
    "text": ("größer als 1\n".encode(), "text ('größer als 1'): give the image itself"),
    "cut text": ("ä".encode() * 5000, "text ('ääää"),
    "utf-16": ("words".encode("utf-16"), "text ('words')"),
    "steering": (b"words\x1b[2J", "no image in a known format (JPEG, PNG"),
    "bytes": (bytes(range(1, 200)), "no image in a known format (JPEG, PNG"),
    "zeros": (bytes(9000), "nothing but zero bytes"),
    "empty": (b"", "empty"),
    "heic": (brand(b"heic", b"mif1", b"heic"), "an HEIC image that is damaged"),
    "heif": (brand(b"mif1", b"mif1", b"heic"), "an HEIC image"),
    "cr3": (brand(b"crx "), "a camera raw file that is damaged"),
    "mp4": (brand(b"isom", b"isom", b"avc1"), "a video: take single frames"),
    "mov": (brand(b"qt  "), "a video"),
    "avi": (b"RIFF\x24\0\0\0AVI LIST", "an AVI video"),
    "wav": (b"RIFF\x24\0\0\0WAVEfmt ", "a sound file"),
    "pdf": (b"%PDF-1.7\n", "a PDF document: convert its pages"),
    "psd": (b"8BPS\0\1", "a Photoshop image"),
    "zip": (b"PK\x03\x04" + bytes(40), "a zip archive or an Office document: unpack it"),
    "gzip": (b"\x1f\x8b\x08\0", "packed with gzip: unpack it"),
    "tar": (tar(), "a tar archive: unpack it"),
    "parquet": (b"PAR1\x15\x04", "a Parquet file: give it as an input of its own"),
    "base64": (base64.encodebytes(encode(scene(), "JPEG")), "base64 text of a JPEG: decode it to bytes first"),
    "data": (b"data:image/png;base64," + base64.b64encode(encode(scene())), "a data: URI of image/png: decode"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_is_no_image_is_named(name: str) -> None:
    data, text = CONTENTS[name]
    if data:
        with pytest.raises(RowError) as caught:
            decode(data, 1_000_000)
        assert caught.value.kind is ErrorKind.NOT_AN_IMAGE
        assert caught.value.message.startswith(f"the content is {text}")
        assert len(caught.value.message) < 200
        assert caught.value.message.isprintable()
    what = not_an_image(data)
    assert what
    assert what.startswith(text)


@pytest.mark.parametrize("kind", [name for name in FORMATS if name != "QOI"])
def test_images_are_images(kind: str) -> None:
    data = encode(scene(), kind)
    assert not_an_image(data) is None
    assert not_an_image(data[:100]) is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"])
@pytest.mark.parametrize("pack", [base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes])
def test_base64_of_an_image_is_known(kind: str, pack: type[bytes]) -> None:
    found = base64_image(pack(encode(scene(), kind)).decode())
    assert found
    assert kind.lower() in found.lower()


@pytest.mark.parametrize(
    "text", ["", "a/b.png", "iVBORw0KGgo", "x" * 40, "photos/2024/01/01/a_long_name_of_a_photo", "é" * 99]
)
def test_paths_are_no_base64(text: str) -> None:
    assert base64_image(text) is None
