"""Owns the plan of a job: which rows there are, in which order and in which shard; `store.plan_tables` keeps it.

What is planned once never moves: sources that appear later, and rows that a source has got since, come after all others
in shards of their own. So a part file that is there stays right, whatever is added to the inputs.
"""

import logging
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain, groupby, islice
from pathlib import Path

import pyarrow as pa

from batchcap.config import InputConfig
from batchcap.core.records import ImageRow, Shard
from batchcap.core.sources import Piece, Source
from batchcap.inputs.columns import ALL_COLUMNS, column_options, listed, require_columns
from batchcap.inputs.passthrough import fitted_columns, passthrough_schema, require_values_fit
from batchcap.inputs.reader import PassthroughColumns, Reader
from batchcap.inputs.registry import open_readers
from batchcap.inputs.source import source_name
from batchcap.inputs.storage import is_there
from batchcap.job.choice import choose_later_rows, choose_rows
from batchcap.store.journal import Journal
from batchcap.store.parts import SCHEMA, UNNAMED, output_schema
from batchcap.store.plan_tables import ChangedSource, KnownSource, PlanChange, PlanTables

log = logging.getLogger(__name__)

_WHY_FIXED = "its rows were chosen when it began (--sample, --shard)"

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
        self._readers = open_readers(config, frozenset((*SCHEMA.names, *output_schema(prompts).names)))
        self._containers = [kind for kind, reader in self._readers.items() if reader.is_container]
        self._second_readers: dict[str, Reader] | None = None
        self._passthrough: pa.Schema | None = None
        self._rows_per_part, self._limit = 1, 0

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
        once, and where an id is taken the whole path is used. What has changed, grown or vanished keeps its rows;
        `changed` tells of it. Everything is planned together or not at all, and nothing is held for each source.

        Args:
            sources: the sources found now.
            rows_per_part: rows of a new shard.
            limit: plan no more than so many rows in all; 0: no limit.

        Raises:
            UsageError: a source's columns don't fit, or not together with those of another.
        """
        self._rows_per_part, self._limit = rows_per_part, limit
        is_begun, choice = self.total_rows > 0, self._config
        with self._tables.change() as change:
            first = change.chosen.source_count()
            with_new_rows = self._take_in(change, sources, takes_new=not (choice.is_fixed and first))
            self._settle_columns(with_new_rows, is_begun=is_begun)
            if choice.is_choice and change.chosen.source_count() > first:
                choose_rows(change.chosen, first, self._readers, choice)
            return change.plan_rows(rows_per_part, limit, is_choice=choice.is_choice)

    def _take_in(self, change: PlanChange, sources: Iterable[Source], *, takes_new: bool) -> set[Path]:
        """Keep sources; gives the containers that are new or have grown, as far as the job takes their rows."""
        with_new_rows: set[Path] = set()
        left_out = 0
        unread = iter(sources)
        while batch := list(islice(unread, _SOURCES_AT_ONCE)):
            new: dict[bytes, Source] = {}
            paths = [os.fsencode(source.path) for source in batch]
            known = change.known(paths)
            for path, source in zip(paths, batch, strict=True):
                if source.is_metadata and path not in known:
                    continue
                self._readers[source.kind].passthrough(source.path)  # columns that don't fit are told before any work
                if path not in known:
                    new.setdefault(path, source)
                elif _has_changed(known[path], source):
                    change.note_changed(known[path].number, source)
                    if source.rows > known[path].rows and takes_new:
                        with_new_rows.add(source.path)
            if not takes_new:
                left_out += len(new)
                continue
            change.add(new)
            with_new_rows.update(source.path for source in new.values() if source.kind in self._containers)
        if left_out:
            log.info("%d inputs are new and not part of this job: %s", left_out, _WHY_FIXED)
        return with_new_rows

    def vanished(self) -> dict[str, str]:
        """Sources with rows that are gone, as the rows' `source` has them, and what each is called in messages."""
        sources = self._tables.sources(self._containers)
        return {source_name(str(file)): self._readers[kind].noun for kind, file in sources if not is_there(file)}

    def changed(self) -> Iterator[ChangedSource]:
        """The sources that `extend` found to look otherwise than before, in the order of their rows."""
        return self._tables.changed()

    def accept(self, changed: Sequence[ChangedSource], rows_only: Sequence[ChangedSource] = ()) -> None:
        """Take over how sources look now; the rows that they have got since come after all others, in new shards.

        Everything is taken over together or not at all.

        Args:
            changed: what they look like now is how they are to look at the next run.
            rows_only: the next run is to look at these again.
        """
        grown = [one for one in rows_only if one.rows > one.rows_before]
        if not changed and not grown:
            return
        if self._config.is_fixed:
            if any(one.rows > one.rows_before for one in (*changed, *grown)):
                log.info("rows that inputs have got since are not part of this job: %s", _WHY_FIXED)
            with self._tables.change() as change:
                change.accept_looks(changed)
            return
        with self._tables.change() as change:
            change.accept(changed)
            change.accept_rows(grown)
            if self._config.where is not None:
                choose_later_rows(change.chosen, (*changed, *grown), self._readers, self._config.where)
            change.plan_rows(self._rows_per_part, self._limit, is_choice=self._config.is_choice)

    def image_ids(self) -> Iterator[tuple[str, Path]]:
        """Id and path of every source that is an image itself."""
        return self._tables.named_sources([kind for kind in self._readers if kind not in self._containers])

    def source_ids(self) -> Iterator[tuple[str, Path]]:
        """Id and path of every source that has rows."""
        return self._tables.named_sources(sorted(self._tables.kinds()))

    def kinds(self) -> frozenset[str]:
        """The kinds of the sources that have rows."""
        return self._tables.kinds()

    def pieces(self, shard: Shard) -> list[Piece]:
        """The pieces of sources that make up a shard, in order."""
        return self._tables.pieces(shard)

    def shard_rows(self, shard: Shard, wanted: Collection[int] | None = None) -> Iterator[ImageRow]:
        """The rows of a shard, in order.

        Args:
            shard: the shard.
            wanted: indexes of the rows that are given; None: all. Sources without any are not opened.

        Raises:
            UsageError: a source can't be read.
        """
        wanted = range(*shard.span) if wanted is None else wanted
        for piece in self._tables.pieces(shard):
            inside = [index for index in range(piece.first_row, piece.first_row + piece.rows) if index in wanted]
            if inside:
                yield from self._readers[piece.kind].rows(piece, inside)

    def piece_rows(self, piece: Piece, wanted: Sequence[int]) -> Iterator[ImageRow]:
        """Some rows of a piece, at least one, by their indexes in the job, rising; raises as `shard_rows`."""
        return self._readers[piece.kind].rows(piece, wanted)

    def rows_again(self, shard: Shard) -> Iterator[ImageRow]:
        """The rows of a shard, for who comes after the captioning: it does not lose its place in an open file.

        Raises:
            UsageError: a source can't be read.
        """
        if self._second_readers is None:
            self._second_readers = open_readers(self._config)
        for piece in self._tables.pieces(shard):
            indexes = range(piece.first_row, piece.first_row + piece.rows)
            yield from self._second_readers[piece.kind].rows(piece, indexes)

    def shard_columns(self, shard: Shard) -> pa.Table | None:
        """The carried columns of a shard, one row for each of its rows; None where none are carried.

        Every shard has the same columns: null where a source has no columns, or lacks one that another source has.

        Raises:
            UsageError: a source can't be read, or the columns of two sources don't fit together.
        """
        if not self._carried.names:
            return None
        return self._columns_of(self._tables.pieces(shard))

    def piece_columns(self, piece: Piece) -> pa.Table:
        """The carried columns of a piece; see `shard_columns`."""
        return self._columns_of([piece])

    def _columns_of(self, pieces: Iterable[Piece]) -> pa.Table:
        tables = []
        for kind, several in groupby(pieces, lambda piece: piece.kind):
            for run in self._readers[kind].column_runs(list(several)):
                columns = run.columns
                if columns is None:
                    columns = pa.table([pa.nulls(run.rows)], [""]).select([])
                tables.append(fitted_columns(columns, self._carried, run.path))
        return pa.concat_tables(tables)

    @property
    def _carried(self) -> pa.Schema:
        """The carried columns, as they are settled."""
        if self._passthrough is None:
            self._passthrough = self._carried_schema()
        return self._passthrough

    def _settle_columns(self, with_new_rows: Collection[Path], *, is_begun: bool) -> None:
        """Decide what is carried, and tell what can't be before any work.

        Args:
            with_new_rows: the sources with rows that are new.
            is_begun: whether there were rows before: a job that was begun with columns that no input has goes on.
        """
        if self._config.keep_columns or (column_options(self._config) and not is_begun):
            self._require_columns(is_begun=is_begun)
        self._passthrough = self._carried_schema()
        for reader, columns in self._with_columns() if self._passthrough.names else ():
            if self._written is None or columns.path in with_new_rows:
                require_values_fit(reader, columns, self._passthrough, is_written=self._written is not None)

    def _require_columns(self, *, is_begun: bool) -> None:
        """Tell of columns that were asked for and that no input has."""
        found, has_tables = dict[str, None](), False
        for reader, columns in self._with_columns():
            found.update(dict.fromkeys(columns.schema.names))
            has_tables = has_tables or reader.is_container
        if not is_begun:
            require_columns(self._config, found, has_tables=has_tables)
        elif lost := [name for name in self._config.keep_columns if name not in found and name != ALL_COLUMNS]:
            log.warning("no input has a column %s now: it is null in parts that are written from now on", listed(lost))

    def _carried_schema(self) -> pa.Schema:
        """The carried columns of all sources of the job."""
        if not self._config.keep_columns:
            return pa.schema([])
        return passthrough_schema((columns for _reader, columns in self._with_columns()), self._written)

    def _with_columns(self) -> Iterator[tuple[Reader, PassthroughColumns]]:
        """The sources that have columns, without those that are gone; of the images in one folder the first.

        What is gone is captioned already, or reported when its rows are read.
        """
        files = list(self._tables.sources(self._containers))
        for kind, file in chain(files, self._first_of_folders()):
            is_left = kind not in self._containers or is_there(file)
            columns = self._readers[kind].passthrough(file) if is_left else None
            if columns is not None:
                yield self._readers[kind], columns

    def _first_of_folders(self) -> Iterator[tuple[str, Path]]:
        """Kind and path of the first of those sources in each folder that are images themselves."""
        if not self._config.keep_columns:
            return
        kinds = [kind for kind in self._readers if kind not in self._containers]
        folder = None
        for kind, path in self._tables.sources(kinds):
            if path.parent != folder:
                folder = path.parent
                yield kind, path


def _has_changed(known: KnownSource, source: Source) -> bool:
    """Whether a known source looks otherwise now; one that can't be looked at says nothing."""
    looks_now = (source.size_bytes, source.mtime_ns)
    looks_otherwise = (known.size_bytes, known.mtime_ns) != looks_now and any(looks_now)
    return looks_otherwise or known.rows != source.rows
