"""A third kind of input, as small as one can be: offsets and sizes, one a line, into the file beside it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from batchcap.core.records import ImageRow
from batchcap.core.sources import FileAt, Piece
from batchcap.inputs.reader import Reader
from batchcap.inputs.source import source_name


class BlobLists(Reader):
    """`a.offsets` says which bytes of `a.blob` are images."""

    kind = "blob"
    noun = "blob list"
    suffixes = frozenset({".offsets"})

    def count(self, path: Path) -> int:
        return len(path.read_text().splitlines())

    def rows(self, piece: Piece, indexes: Sequence[int]) -> Iterator[ImageRow]:
        path = Path(piece.path)
        lines = path.read_text().splitlines()
        for index in indexes:
            row = piece.start + index - piece.first_row
            offset, size = map(int, lines[row].split())
            image = FileAt(str(path.with_suffix(".blob")), offset, size)
            yield ImageRow(index, f"{piece.source_id}:{row}", source_name(piece.path), row, image)


def write_blobs(path: Path, images: Sequence[bytes]) -> Path:
    """A list at `path`, and its images in one file, the last one first."""
    lines, content = list[str](), b"\0" * 7
    for image in reversed(images):
        lines.append(f"{len(content)} {len(image)}")
        content += image
    path.with_suffix(".blob").write_bytes(content)
    path.write_text("\n".join(reversed(lines)))
    return path
