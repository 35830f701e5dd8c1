"""Parquet files for the tests of the manifest."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchcap.config import InputConfig
from batchcap.core.records import ImageRow
from batchcap.core.sources import Bytes, FileAt
from batchcap.inputs.parquet import ParquetTable
from batchcap.inputs.table_layout import TableLayout, layout_of

IMAGE_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_table(path: Path, columns: dict[str, Any], row_group_size: int = 100) -> Path:
    """Columns of Python values or Arrow arrays as a Parquet file."""
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def read_layout(path: Path, config: InputConfig, own_columns: frozenset[str] = frozenset()) -> TableLayout:
    """What the columns of a Parquet file are used for."""
    return layout_of(path, ParquetTable(path).schema, config, own_columns)


def data_of(row: ImageRow) -> bytes | None:
    """The image that a row holds itself."""
    return row.image.data if isinstance(row.image, Bytes) else None


def path_of(row: ImageRow) -> str | None:
    """The file that a row's image is in."""
    return row.image.path if isinstance(row.image, FileAt) else None
