"""Owns the plan of a job: which rows there are, in which order and in which shard; `store.plan_tables` keeps it.

What is planned once never moves: sources that appear later get rows and shards after all others. So a part file that
is there stays right, whatever is added to the inputs.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa

from batchcap.config import InputConfig
from batchcap.core.errors import ChangedInputError, UsageError
from batchcap.core.records import ImageRow, Shard
from batchcap.core.text import shown_name
from batchcap.inputs.parquet import ParquetLayout, column_options, quoted, read_layout
from batchcap.inputs.parquet_rows import (
    RowReader,
    carried_reader,
    image_reader,
    image_row,
    read_columns,
    read_rows,
)
from batchcap.inputs.passthrough import fitted_columns, passthrough_schema, require_values_fit
from batchcap.inputs.source import Source, SourceKind, source_name
from batchcap.store.journal import Journal
from batchcap.store.parts import SCHEMA, UNNAMED, output_schema
from batchcap.store.plan_tables import ChangedSource, KnownSource, PlanChange, PlanTables

# Sources looked up and kept with one statement.
_SOURCES_AT_ONCE = 1000


class Plan:
    """The rows of a job.

    Args:
        journal: where the plan is kept.
        config: how the inputs are read.
        prompts: names of the prompts, whose columns the carried ones must not take.
        written: the carried columns of the parts that are there, which all others must have, too; None: no part is.
    """

    def __init__(
        self,
        journal: Journal,
        config: InputConfig,
        prompts: Sequence[str] = UNNAMED,
        written: pa.Schema | None = None,
    ) -> None:
        self._journal = journal
        self._tables = PlanTables(journal)
        self._config = config
        self._written = written
        # Also the plain names: a carried `caption` beside `caption_short` would be taken for ours.
        self._own_columns = frozenset((*SCHEMA.names, *output_schema(prompts).names))
        self._layouts: dict[Path, ParquetLayout] = {}
        self._passthrough: pa.Schema | None = None
        # One file open for each purpose: a job may have thousands.
        self._images: RowReader | None = None
        self._columns: RowReader | None = None

    @property
    def total_rows(self) -> int:
        """Rows of the job."""
        return self._tables.total_rows

    def shards(self) -> list[Shard]:
        """All shards in order."""
        return self._journal.shards()

    def extend(self, sources: Iterable[Source], rows_per_part: int, limit: int) -> int:
        """Take in what was found; gives the number of rows that are new.

        Known sources keep their rows; new ones come after all others, in new shards. A file that comes twice counts
        once, and where an id is taken the whole path is used. What has changed or vanished keeps its rows; `changed`
        tells of it. Everything is planned together or not at all, and nothing is held for each source.

        Args:
            sources: the sources found now.
            rows_per_part: rows of a new shard.
            limit: plan no more than so many rows in all; 0: no limit.

        Raises:
            ChangedInputError: a known Parquet file has another number of rows.
            UsageError: a Parquet file's columns don't fit, or not together with those of another.
        """
        is_begun = self.total_rows > 0
        with self._tables.change() as change:
            new = self._take_in(change, sources)
            self._settle_columns(new, is_begun=is_begun)
            return change.plan_rows(rows_per_part, limit)

    def _take_in(self, change: PlanChange, sources: Iterable[Source]) -> set[Path]:
        """Keep sources; gives the Parquet files that are new."""
        new_files: set[Path] = set()
        unread = iter(sources)
        while batch := list(islice(unread, _SOURCES_AT_ONCE)):
            new: dict[bytes, Source] = {}
            paths = [os.fsencode(source.path) for source in batch]
            known = change.known(paths)
            for path, source in zip(paths, batch, strict=True):
                if source.kind is SourceKind.PARQUET:
                    self._layout(source.path)  # columns that don't fit are told before any work
                if path in known:
                    _compare(change, known[path], source)
                else:
                    new.setdefault(path, source)
            change.add(new)
            new_files.update(source.path for source in new.values() if source.kind is SourceKind.PARQUET)
        return new_files

    def vanished(self) -> frozenset[str]:
        """Parquet files of the plan that are gone, as the rows' `source` has them."""
        return frozenset(source_name(str(file)) for file in self._tables.parquet_files() if not file.exists())

    def changed(self) -> Iterator[ChangedSource]:
        """The sources that `extend` found to look otherwise than before, in the order of their rows."""
        return self._tables.changed()

    def accept(self, changed: Sequence[ChangedSource]) -> None:
        """What these sources look like now is how they are to look at the next run."""
        self._tables.accept(changed)

    def shard_rows(self, shard: Shard, wanted: Collection[int] | None = None) -> Iterator[ImageRow]:
        """The rows of a shard, in order.

        Args:
            shard: the shard.
            wanted: indexes of the rows that are given; None: all. Files without any are not opened.

        Raises:
            UsageError: a Parquet file can't be read.
        """
        wanted = range(*shard.span) if wanted is None else wanted
        for first_row, name, path, kind, start, count in self._tables.pieces(shard):
            inside = [index for index in range(first_row, first_row + count) if index in wanted]
            if not inside:
                continue
            if kind == SourceKind.IMAGE:
                text = os.fsdecode(path)
                yield ImageRow(first_row, name, source_name(text), 0, path=text)
                continue
            file = Path(os.fsdecode(path))
            layout = self._layout(file)
            if self._images is None or self._images.path != file:
                self._images = image_reader(file, layout)
            skip = inside[0] - first_row
            for offset, values in enumerate(read_rows(self._images, start + skip, 1 + inside[-1] - inside[0]), skip):
                if first_row + offset in wanted:
                    yield image_row(values, layout, (first_row + offset, name, file, start + offset))

    def shard_columns(self, shard: Shard) -> pa.Table | None:
        """The carried columns of a shard, one row for each of its rows; None where none are carried.

        Every shard has the same columns: null for an image file, and where a Parquet file lacks a column that another
        one has.

        Raises:
            UsageError: a Parquet file can't be read, or the columns of two files don't fit together.
        """
        if self._passthrough is None:
            self._passthrough = self._carried_schema()
        schema = self._passthrough
        if not schema.names:
            return None
        tables = []
        for _first_row, _name, path, kind, start, count in self._tables.pieces(shard):
            file = Path(os.fsdecode(path))
            if kind == SourceKind.IMAGE:
                columns = pa.table([pa.nulls(count)], [""]).select([])
            else:
                layout = self._layout(file)
                if self._columns is None or self._columns.path != file:
                    self._columns = carried_reader(file, layout)
                columns = read_columns(self._columns, layout, start, count)
            tables.append(fitted_columns(columns, schema, file))
        return pa.concat_tables(tables)

    def _settle_columns(self, new: Collection[Path], *, is_begun: bool) -> None:
        """Decide what is carried, and tell what can't be before any work.

        Args:
            new: the Parquet files that are new.
            is_begun: whether there were rows before.
        """
        if not is_begun and not any(True for _file in self._tables.parquet_files()):
            self._require_no_columns()
        self._passthrough = self._carried_schema()
        for file, layout in self._parquet_layouts() if self._passthrough.names else ():
            if self._written is None or file in new:
                require_values_fit(file, layout, self._passthrough, is_written=self._written is not None)

    def _carried_schema(self) -> pa.Schema:
        """The carried columns of all Parquet files of the job."""
        return (
            passthrough_schema(self._parquet_layouts(), self._written) if self._config.keep_columns else pa.schema([])
        )

    def _parquet_layouts(self) -> Iterator[tuple[Path, ParquetLayout]]:
        """The Parquet files of the job in the order they were planned, without those that are gone.

        What is gone is captioned already, or reported when its rows are read.
        """
        for file in list(self._tables.parquet_files()):
            if file.exists():
                yield file, self._layout(file)

    def _require_no_columns(self) -> None:
        """Refuse columns of inputs that have none; a job that was begun with such goes on."""
        options = column_options(self._config)
        if options:
            option, name = options[0]
            raise UsageError(
                f"no input has a column {quoted(name)} ({option}): only Parquet inputs have columns, and these are all "
                f"image files; leave out {option}"
            )

    def _layout(self, path: Path) -> ParquetLayout:
        if path not in self._layouts:
            self._layouts[path] = read_layout(path, self._config, self._own_columns)
        return self._layouts[path]


def _compare(change: PlanChange, known: KnownSource, source: Source) -> None:
    """Note a known source that looks otherwise now; one that can't be looked at says nothing."""
    if known.rows != source.rows:
        raise ChangedInputError(
            f"{shown_name(str(source.path))} had {known.rows} rows when this job began and has {source.rows} now, so "
            "its captions belong to others: put the old file back, or use another --output"
        )
    looks_now = (source.size_bytes, source.mtime_ns)
    if (known.size_bytes, known.mtime_ns) != looks_now and any(looks_now):
        change.note_changed(known.number, *looks_now)
