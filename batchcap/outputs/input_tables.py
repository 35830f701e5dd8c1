"""Owns the tables of the input once more, with the captions as columns: same files, rows, row groups and columns."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchcap.config import ImagesOf
from batchcap.core.atomic import atomic_file, remove_leftovers
from batchcap.core.errors import UsageError
from batchcap.core.sources import Piece
from batchcap.inputs.cells import PathBase
from batchcap.inputs.columns import shown
from batchcap.inputs.registry import READERS
from batchcap.inputs.storage import status_of
from batchcap.inputs.table import Table, reason_of
from batchcap.inputs.table_files import TableFiles
from batchcap.inputs.table_layout import PATH, TableLayout
from batchcap.inputs.table_rows import RowReader, read_columns
from batchcap.outputs.folders import Folder, Made
from batchcap.outputs.form import FinishedPart, Written
from batchcap.outputs.names import in_tree
from batchcap.store.job_file import begun_configuration
from batchcap.store.journal import Journal
from batchcap.store.parts import column_name, readable_part
from batchcap.store.plan_tables import PlanTables

_PREFIX = "batchcap_"
_ROWS_AT_ONCE = 256
# A row group is written as a whole; one with more bytes than this becomes several.
_MAX_GROUP_BYTES = 1 << 29
_SUFFIXES = (".parquet", ".pq")


@dataclass(slots=True)
class _Source:
    """A table of the input, and the parts with the captions of its rows.

    Attributes:
        id: its name in the job.
        path: the file.
        kind: of the input.
        pieces: in the order of its rows, each with its part.
    """

    id: str
    path: Path
    kind: str
    pieces: list[tuple[FinishedPart, Piece]] = field(default_factory=list)

    def open(self) -> Table:
        """The file."""
        reader = READERS[self.kind]
        assert issubclass(reader, TableFiles)  # noqa: S101 - `check` has refused others
        return reader.open_table(self.path)


class InputTables(Folder):
    """The tables of the input, written as Parquet with the captions of their rows."""

    name = "dataset"
    suffix = "-dataset"
    needs_all_rows = True

    def check(self, image_ids: Callable[[], Iterable[tuple[str, Path]]]) -> None:
        """Refuse also inputs that are no tables."""
        super().check(image_ids)
        asked = begun_configuration(self.job.folder)["input"]
        if asked.get("images") == ImagesOf.EACH:
            raise UsageError(
                f"{self.name} writes one caption beside each row of the input, and this job has one for each image of "
                "a row (--images each): choose jsonl or hf-parquet"
            )
        for kind in sorted(self.job.kinds):
            reader = READERS.get(kind)
            if reader is None or not issubclass(reader, TableFiles):
                raise UsageError(
                    f"{self.name} writes the tables of the input with captions, and this job has inputs without a "
                    f"table ({kind if reader is None else reader.noun}): choose imagefolder or hf-parquet, which hold "
                    "the images, or jsonl"
                )
        journal_path = self.job.folder.journal_path
        if found := Journal.look_into(journal_path, lambda journal: PlanTables(journal).source_in_part()):
            raise _in_part(*found)

    def write(self, parts: Iterable[FinishedPart], *, skips_known: bool = False) -> Written:  # noqa: ARG002
        """Write a file for each table; one that is there as it was is not made again."""
        total = Written(self.name, f"in {shown(self.where)}")
        with self.held():
            self.begin()
            sources = dict[str, _Source]()
            for part in parts:
                total.left_out += self.left_out(part.counts)
                for piece in part.pieces():
                    source = _Source(piece.source_id, Path(piece.path), piece.kind)
                    sources.setdefault(piece.path, source).pieces.append((part, piece))
            names = self._column_names(sources.values())
            places = self._places(sources.values())
            for number, (source, path) in enumerate(zip(sources.values(), places, strict=True)):
                total.add(self._write_source(number, source, path, names))
            self.remove_others(set(range(len(sources))))
        return total

    def _column_names(self, sources: Iterable[_Source]) -> dict[str, str]:
        """The name of each of our columns: one that no table has."""
        taken = {name.lower() for source in sources for name in source.open().schema.names}
        names = dict[str, str]()
        for one in (column_name(kind, prompt) for prompt in self.job.prompts for kind in ("caption", "verdict")):
            new = one
            while new.lower() in taken:
                new = _PREFIX + new
            taken.add(new.lower())
            names[one] = new
        return names

    def _places(self, sources: Iterable[_Source]) -> Iterator[Path]:
        """The file of each table, no two the same."""
        taken = set[str]()
        for source in sources:
            wanted = in_tree(source.id, self.path, full_names=True)
            if wanted.suffix.lower() not in _SUFFIXES:
                wanted = wanted.with_name(f"{wanted.name}.parquet")
            path, number = wanted, 1
            while os.fspath(path).casefold() in taken:
                number += 1
                path = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
            taken.add(os.fspath(path).casefold())
            yield path

    def _write_source(self, number: int, source: _Source, path: Path, names: dict[str, str]) -> Written:
        name = path.relative_to(self.path).as_posix()
        look = self._require_unchanged(source)
        parts = [part.stamp for part, _piece in source.pieces]
        stamp = json.dumps([name, look, parts, names, self.config.verdicts])
        known = self.job.ledger.part(self.target, number)
        before = None if known is None else Made.of_json(known[1])
        if before is not None and known is not None and known[0] == stamp and self.is_there(name):
            return before.written
        done = Written(self.name, "", files=1)
        self.make_folder(path.parent)
        remove_leftovers(path.parent)
        with atomic_file(path) as temporary:
            self._write_file(temporary, source, names, done)
        self.publish([name])
        if before is not None:
            self.remove(set(before.files) - {name})
        self.job.ledger.note_part(self.target, number, stamp, Made(done, (name,)).to_json())
        return done

    def _require_unchanged(self, source: _Source) -> list[int]:
        """How a file looks, which is how it was captioned."""
        journal_path = self.job.folder.journal_path
        planned = Journal.look_into(journal_path, lambda journal: PlanTables(journal).look_of(source.path))
        table = source.open()  # or it says that the file is gone
        look = list(status_of(source.path))
        if any(planned) and list(planned) != look:
            raise UsageError(
                f"{shown(source.path)} has changed since it was captioned: restore it, or run the job again, "
                "which looks at every row"
            )
        rows, captioned = sum(table.group_rows), sum(piece.rows for _part, piece in source.pieces)
        if rows != captioned:
            raise _in_part(source.path, rows, captioned)
        return look

    def _write_file(self, path: Path, source: _Source, names: dict[str, str], done: Written) -> None:
        table = source.open()
        schema = table.schema
        for name in names.values():
            schema = schema.append(pa.field(name, pa.string()))
        captions = _Stream(self._captions(source, done))
        try:
            with pq.ParquetWriter(path, schema, compression="zstd") as writer:
                for group in _groups(table):
                    rows = pa.Table.from_arrays([*group.columns, *captions.take(len(group)).columns], schema=schema)
                    has_dictionary = any(pa.types.is_dictionary(kind) for kind in schema.types)
                    writer.write_table(rows.unify_dictionaries() if has_dictionary else rows, row_group_size=len(rows))
        except pa.ArrowException as error:
            if isinstance(error, OSError):
                raise
            raise UsageError(
                f"{shown(source.path)} can't be written as Parquet ({reason_of(error)}): take jsonl or arrow"
            ) from error

    def _captions(self, source: _Source, done: Written) -> Iterator[pa.Table]:
        """Our columns, from the first row of a table to its last."""
        wanted_verdicts = pa.array(self.config.verdicts, pa.string())
        for part, piece in source.pieces:
            kinds = [(column_name("caption", name), column_name("verdict", name)) for name in self.job.prompts]
            with readable_part(part.path):
                whole = pq.read_table(part.path, columns=[name for pair in kinds for name in pair])
            rows = whole.slice(piece.first_row - part.shard.first_row, piece.rows)
            columns = []
            for caption, verdict in kinds:
                wanted = pc.is_in(rows[verdict], wanted_verdicts)
                done.captions += pc.sum(wanted).as_py() or 0
                columns += [pc.if_else(wanted, rows[caption], pa.scalar(None, pa.string())), rows[verdict]]
            yield pa.table(columns, names=[name for pair in kinds for name in pair])


def _in_part(path: Path, rows: int, captioned: int) -> UsageError:
    return UsageError(
        f"{shown(path)} has {rows} rows, and this job has only {captioned} of them (--limit, --where, --sample, "
        "--shard): choose jsonl or hf-parquet, or run it without"
    )


def _groups(table: Table) -> Iterator[pa.Table]:
    """All columns of a table, row group by row group; columns that are damaged are null, as the captions say."""
    names = tuple(table.schema.names)
    layout = TableLayout(  # all columns are carried, and none is an image
        image="",
        id=None,
        kept=table.schema,
        kept_as=names,
        rank=PATH,
        has_lists=False,
        paths=PathBase(table.path.parent),
    )
    reader = RowReader(table, list(names), _ROWS_AT_ONCE)
    start = 0
    for rows in table.group_rows:
        held, held_bytes, stop = list[pa.Table](), 0, start + rows
        while start < stop:
            held.append(read_columns(reader, layout, start, min(_ROWS_AT_ONCE, stop - start)))
            start += len(held[-1])
            held_bytes += held[-1].nbytes
            if start == stop or held_bytes >= _MAX_GROUP_BYTES:
                yield pa.concat_tables(held)
                held, held_bytes = [], 0


class _Stream:
    """Rows of tables, one after the other, in pieces of any length."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._rest: pa.Table | None = None

    def take(self, count: int) -> pa.Table:
        """The next rows, of which there are so many."""
        taken: list[pa.Table] = []
        while count:
            table = self._rest if self._rest is not None else next(self._tables)
            taken.append(table.slice(0, count))
            count -= len(taken[-1])
            rest = table.slice(len(taken[-1]))
            self._rest = rest if len(rest) else None
        return pa.concat_tables(taken)
