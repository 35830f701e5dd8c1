"""Owns the rows of a part that go into a dataset: their columns, and their images, as long as these are the same."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa

from batchcap.core.errors import ErrorKind, RowError, UsageError
from batchcap.core.records import ImageRow
from batchcap.inputs.columns import RENAMED_PREFIX
from batchcap.inputs.encoded import read_image
from batchcap.inputs.raw_files import raw_suffix
from batchcap.inputs.suffix import suffix_of
from batchcap.outputs.form import FinishedPart, Written
from batchcap.outputs.lists import wanted_rows
from batchcap.remote.attempts import NetworkError
from batchcap.store.parts import column_name, output_schema

# First bytes of the formats that are captioned, and what files of them are called.
_SUFFIXES = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"GIF8", ".gif"),
    (b"II*\0", ".tiff"),
    (b"MM\0*", ".tiff"),
    (b"II+\0", ".tiff"),
    (b"MM\0+", ".tiff"),
    (b"\0\0\0\x0cjP", ".jp2"),
    (b"\xff\x4f\xff\x51", ".jp2"),
    (b"\0\0\0\x0cJXL", ".jxl"),
    (b"\xff\x0a", ".jxl"),
    (b"\0\0\1\0", ".ico"),
    (b"qoif", ".qoi"),
    (b"BM", ".bmp"),
)
_BRANDS_END = 64
_PPM = (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")


@dataclass(frozen=True, slots=True)
class Pair:
    """A row with captions and its image.

    Attributes:
        place: of the row in the table.
        row: where its image is.
        encoded: its image.
        suffix: what files of such images are called.
    """

    place: int
    row: ImageRow
    encoded: bytes
    suffix: str


class CaptionedRows:
    """The rows of a part with wanted captions.

    Attributes:
        table: the columns of the part, of these rows; unwanted captions are null.
        offsets: of each row in the part.
        captions: how many wanted captions each row has.
    """

    def __init__(self, part: FinishedPart, prompts: Sequence[str], verdicts: Sequence[str]) -> None:
        whole = part.table()
        self.table, _count = wanted_rows(whole, prompts, verdicts)
        columns = [whole[column_name("verdict", name)].to_pylist() for name in prompts]
        counts = [sum(verdict in verdicts for verdict in row) for row in zip(*columns, strict=True)]
        self.offsets = [offset for offset, count in enumerate(counts) if count]
        self.captions = [count for count in counts if count]
        self._part = part

    def pairs(self, done: Written) -> Iterator[Pair]:
        """The rows whose image is the one that was captioned, one after the other; the captions of others are counted.

        Args:
            done: where they are counted.
        """
        places = {self._part.shard.first_row + offset: place for place, offset in enumerate(self.offsets)}
        digests = self.table["image_sha256"].to_pylist()
        with suppress(UsageError):  # an input is gone, and so are the rows that are left
            for row in self._part.images() if places else ():
                place = places.get(row.index)
                if place is None:
                    continue
                try:
                    image = _image_of(row, digests[place])
                except NetworkError:
                    del places[row.index]
                    done.unreachable += self.captions[place]
                    continue
                if image is not None:
                    del places[row.index]
                    done.captions += self.captions[place]
                    yield Pair(place, row, image, image_suffix(image) or suffix_of(row.id) or ".img")
        done.changed += sum(self.captions[place] for place in places.values())


def _image_of(row: ImageRow, digest: str | None) -> bytes | None:
    """A row's image; None where it is gone or another one than was captioned.

    Raises:
        NetworkError: its server does not answer, so nobody knows.
    """
    try:
        image = read_image(row)
    except RowError as error:
        if error.kind is ErrorKind.NETWORK:
            raise NetworkError(error.message) from error
        return None
    return image.encoded if digest in (None, image.sha256) else None


def image_suffix(encoded: bytes) -> str | None:
    """What files of an image's format are called, by its first bytes; None where they are unknown."""
    if (of_raw := raw_suffix(encoded)) is not None:
        return of_raw
    for beginning, suffix in _SUFFIXES:
        if encoded.startswith(beginning):
            return suffix
    if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        return ".webp"
    if encoded[4:8] == b"ftyp":  # two formats in one kind of box: the brands tell them apart
        return ".avif" if any(brand in encoded[8:_BRANDS_END] for brand in (b"avif", b"avis")) else ".heic"
    return ".ppm" if encoded.startswith(_PPM) else None


def dataset_columns(
    table: pa.Table, prompts: Sequence[str], taken: Sequence[str], *, has_verdicts: bool = False
) -> pa.Table:
    """The columns of a part that a dataset has: the id, the captions, and those of the input.

    Args:
        table: rows of a part.
        prompts: names of the prompts.
        taken: names that a column of the input can't have; it gets `input_` before its own.
        has_verdicts: whether the verdicts are among them: where only good captions are wanted, they all say the same.
    """
    kinds = ("caption", "verdict") if has_verdicts else ("caption",)
    names = {"id": "id"} | {one: one for name in prompts for one in (column_name(kind, name) for kind in kinds)}
    own = set(output_schema(prompts).names)
    carried = [name for name in table.column_names if name not in own]
    refused = {name.lower() for name in taken}
    for name in carried:
        new = name
        while new.lower() in refused:
            new = RENAMED_PREFIX + new
            refused.update(name.lower() for name in carried)
        names[name] = new
    return table.select(list(names)).rename_columns(list(names.values()))
