"""Text files with rows for the tests of inputs, and all that is read of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from batchcap.config import InputConfig
from batchcap.core.records import ImageRow
from batchcap.core.sources import Piece
from batchcap.inputs import index_cache, text_groups, text_split
from batchcap.inputs.reader import Unreadable
from batchcap.inputs.table import Table
from batchcap.inputs.table_files import TableFiles
from batchcap.inputs.table_rows import RowReader


@contextmanager
def small_steps(group_rows: int, block_bytes: int, group_bytes: int = 1 << 20) -> Iterator[None]:
    """Files are read in small blocks and groups, of which a small file has many; no index is kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_groups, "MAX_GROUP_ROWS", group_rows)
        patch.setattr(text_groups, "GROUP_BYTES", group_bytes)
        patch.setattr(index_cache, "_place_of", lambda _digest: None)
        patch.setattr(text_split, "BLOCK_BYTES", block_bytes)
        yield


def rows_in(table: Table, start: int = 0, count: int | None = None, columns: list[str] | None = None) -> list[Any]:
    """Rows as dicts, and the reason in the place of one that can't be read."""
    reader = RowReader(table, table.schema.names if columns is None else columns, 3)
    found: list[Any] = []
    for piece in reader.read(start, reader.rows - start if count is None else count):
        found += [piece.reason] * piece.rows if isinstance(piece, Unreadable) else piece.to_pylist()
    return found


def types_in(table: Table) -> dict[str, str]:
    """The columns of a table and their types."""
    return {field.name: str(field.type) for field in table.schema}


def job_rows(kind: type[TableFiles], path: Path, image: str = "image") -> tuple[list[ImageRow], list[dict[str, Any]]]:
    """What a job gets of a file: its rows, and the columns that it carries."""
    reader = kind(InputConfig((str(path),), image_column=image, keep_columns=("*",)))
    rows = reader.count(path)
    assert reader.passthrough(path) is not None
    if not rows:
        return [], []
    piece = Piece(0, path.name, str(path), kind.kind, 0, rows)
    found, columns = list(reader.rows(piece, range(rows))), reader.columns(piece).to_pylist()
    assert [row.row for row in found] == list(range(rows))
    assert len(columns) == rows
    return found, columns
