"""Owns the naming of bytes that are no image batchcap reads: what they are by their beginning, and what to do."""

import base64
import binascii
import codecs
import re

from PIL import Image

from batchcap.core.text import one_line
from batchcap.inputs.plugins import HEIF, JXL, RAW, Plugin
from batchcap.inputs.raw_files import raw_suffix

# What people keep images in. Pillow knows more, among them formats without a signature, which would take any text
# file for an image, and ones that start other programs (EPS); none of them gets at untrusted bytes.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "QOI")
PREFIX_BYTES = 4096
_SIGNATURE_BYTES = 16
_SHOWN_LETTERS = 40

_CONVERT = "convert it to JPEG or PNG"
_UNPACK = "unpack it"
_VIDEO = "take single frames out of it as JPEG or PNG"
_PARQUET = "give it as an input of its own, with a name that ends in .parquet"
_FETCH = "download it again"

# First bytes that none of the formats that are read has; the longer ones of a common beginning first.
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs.github.com/", "a Git LFS pointer, not the image itself", "run `git lfs pull`"),
    (b"version https://hawser.github.com/", "a Git LFS pointer, not the image itself", "run `git lfs pull`"),
    (b"/annex/objects/", "a git-annex pointer, not the image itself", "run `git annex get`"),
    (b"# xet version", "a Xet pointer, not the image itself", _FETCH),
    (b"II\xbc\x01", "a JPEG XR image", _CONVERT),
    (b"8BPS", "a Photoshop image", _CONVERT),
    (b"gimp xcf", "a GIMP image", _CONVERT),
    (b"v/1\x01", "an OpenEXR image", _CONVERT),
    (b"#?RADIANCE", "a Radiance HDR image", _CONVERT),
    (b"DDS ", "a DDS texture", _CONVERT),
    (b"AT&TFORM", "a DjVu document", _CONVERT),
    (b"icns", "an Apple icon", _CONVERT),
    (b"/* XPM */", "an XPM image", _CONVERT),
    (b"%PDF", "a PDF document", "convert its pages to JPEG or PNG"),
    (b"%!PS", "a PostScript document", "convert its pages to JPEG or PNG"),
    (b"PK\x03\x04", "a zip archive or an Office document", _UNPACK),
    (b"\x1f\x8b", "packed with gzip", _UNPACK),
    (b"BZh", "packed with bzip2", _UNPACK),
    (b"\xfd7zXZ\0", "packed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video", _VIDEO),
    (b"\0\0\1\xba", "an MPEG video", _VIDEO),
    (b"\0\0\1\xb3", "an MPEG video", _VIDEO),
    (b"\x30\x26\xb2\x75", "a Windows Media video", _VIDEO),
    (b"FLV\1", "a Flash video", _VIDEO),
    (b"PAR1", "a Parquet file", _PARQUET),
    (b"\0\5\x16\7", "what macOS keeps beside a file on other disks (AppleDouble)", "leave it out"),
    (b"\x7fELF", "a program", "leave it out"),
    (b"MZ\x90\0", "a program", "leave it out"),
)
_JXL = (b"\0\0\0\x0cJXL ", b"\xff\x0a")
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_AVIF = frozenset({b"avif", b"avis"})
# Only for what base64 text turns out to be.
_IMAGES = (
    (b"\xff\xd8\xff", "a JPEG"),
    (b"\x89PNG", "a PNG"),
    (b"GIF8", "a GIF"),
    (b"RIFF", "a WebP"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"BM", "a BMP"),
)
_BASE64 = re.compile(rb"[A-Za-z0-9+/_\-\s]+={0,2}\s*")
_LEAST_BASE64 = 32


def not_an_image(encoded: bytes) -> str | None:
    """What bytes are instead of an image in a known format, and what to do; None where they begin as such an image.

    Args:
        encoded: a file's bytes, or the first `PREFIX_BYTES` of them.
    """
    what = other_format(encoded)
    if what is None and not _has_known_signature(encoded):
        what = plain_content(encoded) or f"no image in a known format ({', '.join(FORMATS)})"
    return what


def _has_known_signature(encoded: bytes) -> bool:
    Image.init()
    prefix = encoded[:_SIGNATURE_BYTES]
    checks = (Image.OPEN[name][1] for name in FORMATS if name in Image.OPEN)
    return any(accepts(prefix) for accepts in checks if accepts is not None)


def other_format(encoded: bytes) -> str | None:
    """What bytes are that begin as no image that is read, and what to do; None where the beginning says nothing."""
    prefix = encoded[:PREFIX_BYTES]
    if (plugin := plugin_for(encoded)) is not None:
        damaged = f"that is damaged or of a kind that its reader does not know: {_CONVERT}"
        return f"{plugin.noun} {damaged}" if plugin.is_installed else f"{plugin.noun}: {plugin.advice}"
    for signature, name, advice in _SIGNATURES:
        if prefix.startswith(signature):
            return f"{name}: {advice}"
    if prefix[257:262] == b"ustar":
        return f"a tar archive: {_UNPACK}"
    if prefix[4:8] == b"ftyp":
        return _media(prefix)
    if prefix.startswith(b"RIFF") and prefix[8:12] in (b"AVI ", b"WAVE"):
        return f"an AVI video: {_VIDEO}" if prefix[8:12] == b"AVI " else "a sound file: leave it out"
    return _markup(prefix)


def plugin_for(encoded: bytes) -> Plugin | None:
    """The package that reads such images; None where Pillow reads them itself, or nothing does.

    Args:
        encoded: a file's bytes, or the first `PREFIX_BYTES` of them.
    """
    prefix = encoded[:PREFIX_BYTES]
    if prefix.startswith(_JXL):
        return JXL
    if raw_suffix(encoded) is not None:
        return RAW
    if prefix[4:8] != b"ftyp":
        return None
    major, brands = _brands(prefix)
    if major in _AVIF or (major in (b"mif1", b"msf1") and brands & _AVIF):
        return None
    return HEIF if major in _HEIC or major in (b"mif1", b"msf1") else None


def _brands(prefix: bytes) -> tuple[bytes, set[bytes]]:
    size = int.from_bytes(prefix[:4])
    return prefix[8:12], {prefix[start : start + 4] for start in range(16, min(size, len(prefix)), 4)}


def _media(prefix: bytes) -> str | None:
    """Of the family of MP4, by its brands."""
    major, brands = _brands(prefix)
    if major in _AVIF or (major in (b"mif1", b"msf1") and brands & _AVIF):
        return None
    return "a sound file: leave it out" if major.startswith(b"M4A") else f"a video: {_VIDEO}"


def _markup(prefix: bytes) -> str | None:
    text = prefix.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if not text.startswith(b"<"):
        return None
    if b"<html" in text or b"<!doctype html" in text:
        return f"an HTML page, probably what a server sent in place of the image: {_FETCH}"
    if b"<svg" in text:
        return f"an SVG drawing: {_CONVERT}"
    return f"XML or HTML text, perhaps an error that a server sent in place of the image: {_FETCH}"


def plain_content(encoded: bytes) -> str | None:
    """What bytes without a signature are, and what to do; None where nobody knows."""
    prefix = encoded[:PREFIX_BYTES]
    if not prefix:
        return "empty: copy or download it again"
    if not prefix.strip(b"\0"):
        return "nothing but zero bytes, as a copy or download that broke off leaves them: copy or download it again"
    text = text_of(prefix)
    if text is None:
        return None
    if encoded_image := base64_image(text):
        return f"{encoded_image}: decode it to bytes first"
    if text.lstrip().startswith(("{", "[")):
        return f"JSON text, perhaps an error that a server sent in place of the image: {_FETCH}"
    shown = text.strip()
    cut = f"{shown[:_SHOWN_LETTERS]}…" if len(shown) > _SHOWN_LETTERS else shown
    return f"text ({one_line(cut)!r}): give the image itself"


def text_of(prefix: bytes) -> str | None:
    """The beginning of a file as text; None where it is none."""
    for mark, name in ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"), (b"", "utf-8-sig")):
        if prefix.startswith(mark):
            try:
                text = codecs.getincrementaldecoder(name)().decode(prefix)  # its last character may be cut
            except UnicodeDecodeError:
                return None
            return text if all(one.isprintable() or one.isspace() for one in text) else None
    return None


def base64_image(text: str) -> str | None:
    """Which image text is when it is decoded, as in "base64 text of a JPEG", or a `data:` URI; else None."""
    if re.match(r"(?i)data:[a-z]", text):
        media = one_line(re.split("[;,]", text[5:40])[0])
        return f"a data: URI of {media}"
    start = text[:PREFIX_BYTES].encode(errors="replace")
    if len(start) < _LEAST_BASE64 or not _BASE64.fullmatch(start):
        return None
    packed = b"".join(start.split()).translate(bytes.maketrans(b"-_", b"+/"))[:_LEAST_BASE64]
    try:
        decoded = base64.b64decode(packed[: len(packed) // 4 * 4])
    except binascii.Error:
        return None
    if decoded[4:8] == b"ftyp":
        return "base64 text of an AVIF or HEIC"
    return next((f"base64 text of {name}" for signature, name in _IMAGES if decoded.startswith(signature)), None)
