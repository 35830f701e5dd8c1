"""Small archives of anything, and what a reader makes of them."""

import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from batchcap.config import InputConfig
from batchcap.core.errors import RowError
from batchcap.core.sources import Piece
from batchcap.inputs.archive import ArchiveFiles
from batchcap.inputs.encoded import read_encoded
from batchcap.inputs.tar import TarFiles
from batchcap.inputs.zip_archive import ZipFiles

Members = Mapping[str, bytes] | Iterable[tuple[str | tarfile.TarInfo, bytes]]
# WebDataset's usual form.
SHARD = {
    "a/0001.jpg": b"one",
    "a/0001.txt": b"first",
    "a/0001.cls": b"3",
    "a/0002.png": b"two",
    "a/0002.cls": b"-4\n",
    "a/0003.left.jpg": b"left",
    "a/0003.right.jpg": b"right",
    "a/0003.json": b'{"x": 1}',
}
SHARD_IMAGES = {"a/0001": b"one", "a/0002": b"two", "a/0003": b"left"}


def pairs(members: Members) -> list[tuple[Any, bytes]]:
    return list(members.items() if isinstance(members, Mapping) else members)


def tar_bytes(members: Members, mode: str = "w", **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as archive:  # type: ignore[call-overload]
        for name, content in pairs(members):
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_bytes(members: Members, method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in pairs(members):
            archive.writestr(name, content)
    return buffer.getvalue()


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def link(name: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info, b""


class Archive:
    """An archive through its reader, as a job that keeps some columns reads it."""

    def __init__(self, path: Path, **options: Any) -> None:
        kind: type[ArchiveFiles] = ZipFiles if path.suffix == ".zip" else TarFiles
        self.path = path
        self.reader = kind(InputConfig((str(path),), **options))
        self.rows = self.reader.count(path)

    def piece(self, start: int = 0, rows: int | None = None) -> Piece:
        return Piece(start, "s", str(self.path), self.reader.kind, start, self.rows - start if rows is None else rows)

    def read(self, start: int = 0, rows: int | None = None) -> dict[str, bytes | str]:
        """The image of each row by its id without the source's, or the kind and the message of its failure."""
        found: dict[str, bytes | str] = {}
        piece = self.piece(start, rows)
        indexes = range(piece.first_row, piece.first_row + piece.rows)
        for index, row in zip(indexes, self.reader.rows(piece, indexes) if indexes else (), strict=True):
            assert (row.index, row.row, row.source) == (index, index, str(self.path))
            assert row.id.startswith("s:")
            try:
                found[row.id[2:]] = read_encoded(row)
            except RowError as error:
                found[row.id[2:]] = f"{error.kind}: {error.message}"
        assert len(found) == len(indexes), "ids are unique"
        return found

    def columns(self, start: int = 0, rows: int | None = None) -> dict[str, list[Any]]:
        columns = self.reader.columns(self.piece(start, rows))
        assert columns is not None
        found: dict[str, list[Any]] = columns.to_pydict()
        return found
