"""Owns the dataset in Parquet with the images inside, as the Hugging Face hub shows it."""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from batchcap.core.atomic import atomic_file, remove_leftovers
from batchcap.outputs.card import Card
from batchcap.outputs.folders import Made, PartFolder
from batchcap.outputs.form import FinishedPart, Written
from batchcap.outputs.names import in_tree
from batchcap.outputs.pairs import CaptionedRows, Pair, dataset_columns

_IMAGE = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
# As `datasets` marks the types that Arrow has no name for.
_METADATA = {"huggingface": json.dumps({"info": {"features": {_IMAGE.name: {"_type": "Image"}}}})}
# A viewer reads a row group as a whole to show one row.
_GROUP_ROWS, _GROUP_BYTES = 100, 64 << 20


class HubParquet(PartFolder):
    """A Parquet file for each part, and a dataset card."""

    name = "hf-parquet"
    suffix = "-hf-parquet"

    def make(self, part: FinishedPart, done: Written) -> Made:
        """Write the file of a part; none where no row has a caption."""
        rows = CaptionedRows(part, self.job.prompts, self.config.verdicts)
        path = self.path / "data" / f"train-{part.shard.seq:05d}.parquet"
        pairs = rows.pairs(done)
        first = next(pairs, None)
        if first is None:
            return Made(done, ())
        has_verdicts = self.config.verdicts != ("ok",)
        columns = dataset_columns(rows.table, self.job.prompts, (_IMAGE.name,), has_verdicts=has_verdicts)
        self.make_folder(path.parent)
        remove_leftovers(path.parent)
        with atomic_file(path) as temporary, _Groups(temporary, columns) as groups:
            for pair in chain([first], pairs):
                groups.add(pair)
        done.files = 1
        name = path.relative_to(self.path).as_posix()
        return Made(done, (name,), records=groups.rows, columns=tuple(groups.columns))

    def conclude(self, parts: Sequence[FinishedPart], total: Written) -> None:
        """Write the dataset card."""
        rows, names = 0, list[str]()
        for made in map(self.made_of, parts):
            for name in () if made.columns else made.files:  # of an earlier version, which did not note them
                rows += pq.read_metadata(self.path / name).num_rows
                names = names or pq.read_schema(self.path / name).names
            rows += made.records
            names = names or list(made.columns)
        Card(self.job, self.config, parts, total).write(self.path, rows, ["data/train-*.parquet"], names)


class _Groups:
    """The row groups of a file. What is not closed by an error is no file.

    Args:
        path: the file.
        columns: of all rows, without the image.

    Attributes:
        columns: names of all columns.
        rows: how many rows were taken in.
    """

    def __init__(self, path: Path, columns: pa.Table) -> None:
        self._columns = columns
        schema = pa.schema([_IMAGE, *columns.schema], _METADATA)
        # Images and captions are all different: a dictionary of them would only take memory.
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False, write_page_index=True)
        self.columns: list[str] = schema.names
        self.rows = 0
        self._held: list[Pair] = []
        self._held_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is None:
            self._write_group()
        self._writer.close()

    def add(self, pair: Pair) -> None:
        """Take in a row."""
        self.rows += 1
        self._held.append(pair)
        self._held_bytes += len(pair.encoded)
        if len(self._held) >= _GROUP_ROWS or self._held_bytes >= _GROUP_BYTES:
            self._write_group()

    def _write_group(self) -> None:
        if not self._held:
            return
        images: list[dict[str, Any]] = [
            {"bytes": pair.encoded, "path": in_tree(pair.row.id, Path(), full_names=False).name + pair.suffix}
            for pair in self._held
        ]
        columns = self._columns.take([pair.place for pair in self._held])
        table = pa.Table.from_arrays([pa.array(images, _IMAGE.type), *columns.columns], schema=self._writer.schema)
        self._writer.write_table(table, row_group_size=len(table))
        self._held, self._held_bytes = [], 0
