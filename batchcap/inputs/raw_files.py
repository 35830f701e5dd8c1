"""Owns how a camera raw file is told from other bytes: by its first ones, or as a TIFF that holds a sensor's samples.

Most cameras write a TIFF whose first image is a thumbnail. Read as a TIFF, a photograph would be that thumbnail.
"""

from collections.abc import Iterator

from batchcap.inputs.tiff_tags import TIFF, TiffEntry, TiffFile

# What files with such a beginning are called.
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"FUJIFILMCCD-RAW", ".raf"),
    (b"II\x1a\0\0\0HEAPCCDR", ".crw"),
    (b"IIRO", ".orf"),
    (b"IIRS", ".orf"),
    (b"MMOR", ".orf"),
    (b"IIU\0", ".rw2"),
    (b"\0MRM", ".mrw"),
    (b"FOVb", ".x3f"),
)
# After the eight bytes of a TIFF's header.
_MARKS = ((b"CR", ".cr2"), (b"IIII", ".iiq"))
_COMPRESSION, _PHOTOMETRIC, _MAKE, _SUB_DIRECTORIES, _DNG_VERSION = 259, 262, 271, 330, 50706
# Values of a colour filter array and of an unpacked one; packings of Sony, Nikon, Samsung, Kodak and Pentax.
_SENSOR = frozenset({32803, 34892})
_PACKED = frozenset({32767, 34713, 32770, 65000, 65535})
_MAKERS = (
    (b"nikon", ".nef"),
    (b"sony", ".arw"),
    (b"pentax", ".pef"),
    (b"ricoh", ".pef"),
    (b"samsung", ".srw"),
    (b"hasselblad", ".3fr"),
    (b"seiko epson", ".erf"),
    (b"eastman kodak", ".dcr"),
    (b"mamiya", ".mef"),
    (b"leaf", ".mos"),
)
_MAX_MAKE_BYTES = 16
# Of directories one after the other, below the first one, and of entries: sound files have a tenth of them.
_MAX_CHAIN, _MAX_BELOW, _MAX_ENTRIES = 8, 16, 1024


def raw_suffix(encoded: bytes) -> str | None:
    """What a camera raw file with these bytes is called, as in `.cr2`; None where they are no such file.

    Args:
        encoded: a file's bytes, or the first of them: directories of a TIFF may lie behind these.
    """
    if encoded[4:12] == b"ftypcrx ":
        return ".cr3"
    for signature, suffix in _SIGNATURES:
        if encoded.startswith(signature):
            return suffix
    if not encoded.startswith(TIFF):
        return None
    marked = next((suffix for mark, suffix in _MARKS if encoded[8:].startswith(mark)), None)
    return marked or _tiff_suffix(encoded)


def _tiff_suffix(encoded: bytes) -> str | None:
    file = TiffFile(encoded)
    first = list(file.entries(file.first, _MAX_ENTRIES))
    if any(entry.tag == _DNG_VERSION and entry.value for entry in first):
        return ".dng"
    others = (list(file.entries(place, _MAX_ENTRIES)) for place in other_directories(file))
    if not _is_of_a_sensor(first) and not any(map(_is_of_a_sensor, others)):
        return None
    make = next((entry for entry in first if entry.tag == _MAKE), None)
    name = b"" if make is None else encoded[make.offset : make.offset + _MAX_MAKE_BYTES].lower()
    return next((suffix for maker, suffix in _MAKERS if name.startswith(maker)), ".dng")


def other_directories(file: TiffFile) -> Iterator[int]:
    """Where the directories begin that follow the first one, or lie below it; not more than sound files have."""
    for entry in file.entries(file.first, _MAX_ENTRIES):
        if entry.tag == _SUB_DIRECTORIES:
            yield from file.values(entry, _MAX_BELOW)
    place = file.first
    for _directory in range(_MAX_CHAIN):
        place = file.following(place)
        if not place:
            return
        yield place


def _is_of_a_sensor(entries: list[TiffEntry]) -> bool:
    return any(
        (entry.tag == _PHOTOMETRIC and entry.value in _SENSOR) or (entry.tag == _COMPRESSION and entry.value in _PACKED)
        for entry in entries
    )
