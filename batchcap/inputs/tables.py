"""Owns the telling of folders whose Parquet files are not all of the table: those that a table format keeps."""

from pathlib import Path

_LOG_FOLDERS = {"_delta_log": "Delta Lake", ".hoodie": "Hudi"}
_ICEBERG_METADATA = "metadata/*.metadata.json"


def table_above(folder: Path) -> tuple[Path, str] | None:
    """The table that a Parquet file's folder belongs to, and the name of its format; None where it is of none.

    Partitions (`day=2024-01-01`) and Iceberg's `data` lie inside a table.
    """
    for above in (folder, *folder.parents):
        for log_folder, name in _LOG_FOLDERS.items():
            if (above / log_folder).is_dir():
                return above, name
        if next(above.glob(_ICEBERG_METADATA), None):
            return above, "Iceberg"
        if above.name != "data" and "=" not in above.name:
            break
    return None
