"""Owns the list of the kinds of inputs: a new one is a module with a `Reader`, and its line here."""

from batchcap.config import InputConfig
from batchcap.core.errors import UsageError
from batchcap.inputs.arrow_files import ArrowFiles
from batchcap.inputs.delimited import CsvFiles, TsvFiles
from batchcap.inputs.files import ImageFiles
from batchcap.inputs.jsonl import JsonlFiles
from batchcap.inputs.parquet import ParquetFiles
from batchcap.inputs.reader import Reader
from batchcap.inputs.tar import TarFiles
from batchcap.inputs.zip_archive import ZipFiles

READERS: dict[str, type[Reader]] = {
    ImageFiles.kind: ImageFiles,
    ParquetFiles.kind: ParquetFiles,
    ArrowFiles.kind: ArrowFiles,
    JsonlFiles.kind: JsonlFiles,
    CsvFiles.kind: CsvFiles,
    TsvFiles.kind: TsvFiles,
    TarFiles.kind: TarFiles,
    ZipFiles.kind: ZipFiles,
}
# For a file that somebody named, with a suffix that no reader has.
DEFAULT_READER: type[Reader] = ImageFiles


def readers_by_suffix() -> dict[str, type[Reader]]:
    """The reader for each suffix that has one."""
    return {suffix: reader for reader in READERS.values() for suffix in reader.suffixes}


class _Readers(dict[str, Reader]):
    def __missing__(self, kind: str) -> Reader:
        raise UsageError(
            f"this job has inputs of the kind {kind!r}, which this version of batchcap does not read: use the version "
            "that the job was begun with"
        )


def open_readers(config: InputConfig, own_columns: frozenset[str] = frozenset()) -> dict[str, Reader]:
    """The readers of one job, by their kinds; see `Reader`.

    To ask for a kind that a plan has and that is not listed is a UsageError.
    """
    return _Readers((kind, reader(config, own_columns)) for kind, reader in READERS.items())
