"""Owns the telling of folders whose Parquet files are not all of the table: those that a table format keeps."""

from dataclasses import dataclass
from pathlib import Path

from batchcap.inputs.columns import shown
from batchcap.inputs.storage import matches_in


@dataclass(frozen=True, slots=True)
class TableFormat:
    """A format of tables that lie in a folder with a log.

    Attributes:
        name: of it, with its article.
        log: what lies in such a folder, as a pattern.
        export: how the current version is written as Parquet, with `{path}` for the folder.
    """

    name: str
    log: str
    export: str


_FORMATS = (
    TableFormat(
        "a Delta Lake",
        "_delta_log",
        "in Python, after `pip install deltalake`, with "
        "pyarrow.parquet.write_table(DeltaTable('{path}').to_pyarrow_table(), 'current.parquet'), or in DuckDB with "
        "COPY (FROM delta_scan('{path}')) TO 'current.parquet'",
    ),
    TableFormat(
        "a Hudi", ".hoodie", "in Spark with spark.read.format('hudi').load('{path}').write.parquet('current-version')"
    ),
    TableFormat(
        "an Iceberg",
        "metadata/*.metadata.json",
        "in Python, with pyiceberg, with pyarrow.parquet.write_table(catalog.load_table(NAME).scan().to_arrow(), "
        "'current.parquet'), or in DuckDB with COPY (FROM iceberg_scan('{path}')) TO 'current.parquet'",
    ),
)


@dataclass(frozen=True, slots=True)
class FormatTable:
    """A table that a table format keeps.

    Attributes:
        path: its folder.
        format: which format.
    """

    path: Path
    format: TableFormat

    @property
    def warning(self) -> str:
        """What to say where its files are read."""
        return (
            f"{self._beginning}, and these are read, too. Export the current version of the table to Parquet and "
            "caption that."
        )

    @property
    def refusal(self) -> str:
        """What to say where its folder is searched."""
        path = shown(self.path)
        return (
            f"{self._beginning}. Export the current version of the table to Parquet and caption that: "
            f"{self.format.export.format(path=path)}. To caption all rows of its files, deleted ones too, name the "
            f"files, in quotes: '{path}/**/*.parquet'"
        )

    @property
    def _beginning(self) -> str:
        return (
            f"{shown(self.path)} is {self.format.name} table: its folder also holds the files of "
            "deleted rows and old versions"
        )


def table_above(folder: Path) -> FormatTable | None:
    """The table that a Parquet file's folder belongs to; None where it is of none.

    Partitions (`day=2024-01-01`) and Iceberg's `data` lie inside a table.
    """
    for above in (folder, *folder.parents):
        for one in _FORMATS:
            if next(matches_in(above, one.log), None):
                return FormatTable(above, one)
        if above.name != "data" and "=" not in above.name:
            break
    return None
