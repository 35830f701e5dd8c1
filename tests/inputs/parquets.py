"""Parquet files for the tests of the manifest."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

IMAGE_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_table(path: Path, columns: dict[str, Any], row_group_size: int = 100) -> Path:
    """Columns of Python values or Arrow arrays as a Parquet file."""
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path
