"""Owns Arrow IPC files as inputs: the file format (also called Feather V2) and streams, as Hugging Face stores them."""

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchcap.core.address import address_of
from batchcap.inputs.columns import shown
from batchcap.inputs.index_cache import index_of
from batchcap.inputs.storage import open_binary
from batchcap.inputs.table import Table, readable, require_names
from batchcap.inputs.table_files import TableFiles

_FILE_MAGIC = b"ARROW1"
_FEATHER_V1_MAGIC = b"FEA1"
# What Hugging Face `datasets` writes beside the files of `save_to_disk`, with their names in order.
_DATASET_STATE = "state.json"
_DATASET_FILES = "_data_files"


class ArrowTable(Table):
    """An Arrow IPC file or stream, of which each record batch is a group. It is mapped, not read.

    Raises:
        UsageError: it can't be read.
    """

    noun = "Arrow file"

    def __init__(self, path: Path) -> None:
        self.path = path
        with readable(path, self.noun):
            self._mapped = _opened(path)
            magic = self._mapped.read(len(_FILE_MAGIC))
            if magic.startswith(_FEATHER_V1_MAGIC):
                raise pa.ArrowInvalid("it has the old Feather format, version 1: write it again with version 2")
            self._reader = pa.ipc.open_file(self._mapped) if magic == _FILE_MAGIC else None
            if self._reader is not None:
                self.schema = self._reader.schema
            else:
                self._mapped.seek(0)
                self.schema = pa.ipc.open_stream(self._mapped).schema
            require_names(self.schema)
            index = index_of(path, "arrow-1", self._index)
            self.group_rows: list[int] = index["rows"].to_pylist()
            self._offsets: list[int] = index["offset"].to_pylist()

    def batches(self, group: int, columns: Sequence[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        """Some columns of a record batch."""
        batch = self._batch(group).select(list(columns))
        # Offsets of a damaged file lead out of its memory: without this look, reading a cell could end the process.
        batch.validate(full=True)
        for start in range(0, len(batch), max_rows):
            yield batch.slice(start, max_rows)

    def group_name(self, group: int) -> str:
        """A record batch."""
        return f"record batch {group} of {shown(self.path)}"

    def _batch(self, group: int) -> pa.RecordBatch:
        if self._reader is not None:
            return self._reader.get_batch(group)
        self._mapped.seek(self._offsets[group])
        return pa.ipc.read_record_batch(pa.ipc.read_message(self._mapped), self.schema)

    def _index(self) -> pa.Table:
        """Rows of each batch, and where it begins in a stream."""
        rows, offsets = list[int](), list[int]()
        if self._reader is not None:
            for number in range(self._reader.num_record_batches):
                rows.append(self._reader.get_batch(number).num_rows)
                offsets.append(0)
        else:
            for offset, count in self._stream():
                rows.append(count)
                offsets.append(offset)
        return pa.table({"rows": pa.array(rows, pa.int64()), "offset": pa.array(offsets, pa.int64())})

    def _stream(self) -> Iterator[tuple[int, int]]:
        """Offset and rows of each record batch of a stream; it ends with a mark, or with the file."""
        size = self._mapped.size()
        self._mapped.seek(0)
        pa.ipc.read_message(self._mapped)  # the schema
        while (offset := self._mapped.tell()) < size:
            try:
                message = pa.ipc.read_message(self._mapped)
            except EOFError:
                return
            if message.type != "record batch":
                raise pa.ArrowInvalid("it is a stream with dictionaries: write it again as an Arrow file or as Parquet")
            yield offset, pa.ipc.read_record_batch(message, self.schema).num_rows


def _opened(path: Path) -> pa.NativeFile:
    return pa.memory_map(str(path)) if address_of(path) is None else pa.PythonFile(open_binary(path), mode="r")


class ArrowFiles(TableFiles):
    """Arrow files, each row of which has an image or says where it is."""

    kind = "arrow"
    noun = ArrowTable.noun
    suffixes = frozenset({".arrow", ".feather", ".ipc"})
    found_in_folders = False

    @classmethod
    def is_found(cls, path: str) -> bool:
        """Those of a dataset that `save_to_disk` has written."""
        return Path(path).name in (files_of_dataset(Path(path).parent) or ())

    @staticmethod
    def open_table(path: Path) -> ArrowTable:
        """The file."""
        return ArrowTable(path)


@lru_cache(1024)
def files_of_dataset(folder: Path) -> frozenset[str] | None:
    """Names of the data files of a dataset that `save_to_disk` has written to a folder; None where there is none.

    Other Arrow files there are caches of `datasets`.
    """
    try:
        with open_binary(folder / _DATASET_STATE) as file:
            state: Any = json.loads(file.read().decode())
        return frozenset(str(one["filename"]) for one in state[_DATASET_FILES])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
