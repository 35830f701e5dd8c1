"""Owns `batchcap merge`: the job folders of all shards of a job become the folder of the job in one piece."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from batchcap.config import InputConfig
from batchcap.core.atomic import write_atomic
from batchcap.core.errors import UsageError
from batchcap.core.row_counts import RowCounts
from batchcap.core.text import shown_name
from batchcap.job.summary import JobState, Summary, exit_code_of
from batchcap.store.fingerprint import Fingerprint
from batchcap.store.folder import JobFolder
from batchcap.store.job_file import begun_configuration, input_config, read_job_file, write_job_file
from batchcap.store.journal import Journal
from batchcap.store.lock import job_lock
from batchcap.store.merged_plan import ends_of, have_same_sources, write_merged_plan
from batchcap.store.part_copy import copy_part, part_schema
from batchcap.store.parts import part_metadata
from batchcap.store.shard_state import shard_state_of
from batchcap.store.whole_folder import require_free, whole_folder

_SHARD = "shard"


@dataclass(frozen=True, slots=True)
class _Piece:
    """The job of one shard.

    Attributes:
        folder: of it.
        fingerprint: what decided its captions.
        configuration: what it was begun with.
        input: how its inputs are read.
    """

    folder: JobFolder
    fingerprint: Fingerprint
    configuration: dict[str, Any]
    input: InputConfig

    @property
    def number(self) -> int:
        """Which shard it is, from 1."""
        return self.input.shard_of[0]

    @property
    def count(self) -> int:
        """Of how many."""
        return self.input.shard_of[1]

    def __str__(self) -> str:
        return f"{shown_name(str(self.folder.path))} (shard {self.fingerprint[_SHARD]})"


def merge(paths: Sequence[Path], output: Path) -> str:
    """Join the job folders of all shards of a job.

    Args:
        paths: the folders, in any order.
        output: the new folder, which appears whole or not at all.

    Returns:
        What was made, for a person.

    Raises:
        UsageError: they are not all the shards of one job, or not complete; nothing is written.
        LockedError: a run is at work on one of them.
        StorageError: one can't be read, or the new one not written.
    """
    require_free(output)
    pieces = _in_order([_opened(path) for path in paths])
    with ExitStack() as opened:
        for piece in pieces:
            opened.enter_context(job_lock(piece.folder))
        journals = [opened.enter_context(closing(Journal.open_to_read(one.folder.journal_path))) for one in pieces]
        counts = _require_complete(pieces, journals)
        _require_one_plan(pieces, journals)
        _require_same_columns(pieces)
        with whole_folder(output) as folder:
            _write(JobFolder.open_or_create(folder), pieces, journals, output, counts)
    parts = sum(len(piece.folder.part_paths()) for piece in pieces)
    return (
        f"{counts.ok} captions, {counts.failed} failed, of {len(pieces)} shards: {shown_name(str(output))} "
        f"({parts} files)"
    )


def _opened(path: Path) -> _Piece:
    folder = JobFolder.open_existing(path)
    file, configuration = read_job_file(folder), begun_configuration(folder)
    given = input_config(configuration)
    if file is None or file.fingerprint.get(_SHARD) is None or file.fingerprint[_SHARD] != given.shard:
        raise UsageError(f"{shown_name(str(path))} is no shard of a job: give the folders of jobs with --shard")
    return _Piece(folder, file.fingerprint, configuration, given)


def _in_order(pieces: Sequence[_Piece]) -> list[_Piece]:
    """The pieces by their numbers.

    Raises:
        UsageError: they are not of one job, one is missing, or one is there more than once.
    """
    first = pieces[0]
    for piece in pieces[1:]:
        names = [*first.fingerprint, *(name for name in piece.fingerprint if name not in first.fingerprint)]
        differing = [name for name in names if first.fingerprint.get(name) != piece.fingerprint.get(name)]
        if piece.count != first.count or (differing := [name for name in differing if name != _SHARD]):
            what = ", ".join(f"--{name}" for name in differing if name != _SHARD) or "the number of shards"
            raise UsageError(f"{first} and {piece} are not of one job: {what} differs")
    there = Counter(piece.number for piece in pieces)
    double = sorted(number for number, times in there.items() if times > 1)
    missing = [number for number in range(1, first.count + 1) if number not in there]
    faults = [
        f"{what} {', '.join(f'{number}/{first.count}' for number in numbers[:20])}{' …' if len(numbers) > 20 else ''}"
        for what, numbers in (("there is more than one folder of shard", double), ("there is no folder of", missing))
        if numbers
    ]
    if faults:
        raise UsageError(f"these are not all the shards of the job: {'; '.join(faults)}")
    return sorted(pieces, key=lambda piece: piece.number)


def _require_complete(pieces: Sequence[_Piece], journals: Sequence[Journal]) -> RowCounts:
    """The counts of all rows.

    Raises:
        UsageError: there is something left to do; the message names all shards with how much.
    """
    total, faults = RowCounts(), []
    for piece, journal in zip(pieces, journals, strict=True):
        states = [shard_state_of(piece.folder, journal, shard) for shard in journal.shards()]
        counts = RowCounts()
        for state in states:
            counts.add(state.counts)
        rows = ends_of(journal).rows
        if not any(True for _seq in journal.query("SELECT seq FROM sources LIMIT 1")):
            faults.append(f"{piece} has not listed its inputs")
        elif counts.rows < rows:
            faults.append(f"{piece} has {rows - counts.rows} of {rows} rows left")
        elif open_parts := sum(not state.is_done for state in states):
            faults.append(f"{piece} has {open_parts} parts left to write")
        total.add(counts)
    if faults:
        raise UsageError(f"{'; '.join(faults)}: run these jobs to their end, without --limit, then merge again")
    return total


def _require_one_plan(pieces: Sequence[_Piece], journals: Sequence[Journal]) -> None:
    """Refuse shards that were not cut from the same rows.

    Raises:
        UsageError: they were not.
    """
    for piece, journal in zip(pieces[1:], journals[1:], strict=True):
        if not have_same_sources(journals[0], journal):
            raise UsageError(
                f"{pieces[0]} and {piece} were begun with other inputs: files or their numbers of rows differ, so "
                "their rows don't fit together"
            )
    ends = [ends_of(journal) for journal in journals]
    rows, count = sum(end.rows for end in ends), len(pieces)
    filled = [end for end in ends if end.rows]
    are_cut = all(end.rows == rows * one // count - rows * (one - 1) // count for one, end in enumerate(ends, 1))
    follow = all(_is_before(one.last, other.first) for one, other in pairwise(filled))
    if not (are_cut and follow):
        raise UsageError(
            f"the shards were cut from other rows ({', '.join(str(end.rows) for end in ends)} rows): --where or "
            "--sample found others where one of them began"
        )


def _is_before(last: tuple[int, int] | None, first: tuple[int, int] | None) -> bool:
    return last is not None and first is not None and last < first


def _require_same_columns(pieces: Sequence[_Piece]) -> None:
    """Refuse parts that are no one table.

    Raises:
        UsageError: a column has another type in another part, or is not there.
    """
    known = None
    for path in _part_paths(pieces):
        schema = part_schema(path)
        if known is None:
            known, first = schema, path
        elif schema != known:
            names = list(dict.fromkeys([*known.names, *schema.names]))
            types = ((name, *(_type_of(name, one) for one in (known, schema))) for name in names)
            said = [f"{name} is {was} and {now}" for name, was, now in types if was != now]
            raise UsageError(
                f"{shown_name(str(first))} and {shown_name(str(path))} have other columns "
                f"({'; '.join(said) or 'in another order'}): the inputs have changed between the shards; caption one "
                "again"
            )


def _type_of(name: str, schema: Any) -> str:  # noqa: ANN401 - a schema of PyArrow
    return str(schema.field(name).type) if name in schema.names else "not there"


def _part_paths(pieces: Sequence[_Piece]) -> Iterator[Path]:
    return (path for piece in pieces for path in piece.folder.part_paths())


def _write(
    folder: JobFolder, pieces: Sequence[_Piece], journals: Sequence[Journal], output: Path, counts: RowCounts
) -> None:
    first = pieces[0]
    fingerprint = {**first.fingerprint, _SHARD: None}
    given = {**first.configuration["input"], _SHARD: None}
    write_job_file(folder, fingerprint, {**first.configuration, "input": given, "output": str(output)})
    is_choice = first.input.where is not None or first.input.sample > 0
    with closing(Journal.open(folder.journal_path)) as journal:
        moved = write_merged_plan(journal, journals, is_choice=is_choice)
        journal.checkpoint()
    for job, seq, shard in moved:
        copy_part(pieces[job].folder.part_path(seq), folder.part_path(shard.seq), shard, fingerprint)
    _write_summary(folder, first, counts)


def _write_summary(folder: JobFolder, first: _Piece, counts: RowCounts) -> None:
    bundle = next((json.loads(part_metadata(path)["batchcap.bundle"]) for path in folder.part_paths()), None)
    summary = Summary(
        JobState.COMPLETE,
        exit_code_of(counts, first.configuration["limits"]["max_error_rate"]),
        f"{counts.ok} captions, {counts.failed} failed",
        counts.rows,
        counts,
        None,
        bundle,
        parts_left=0,
    ).after(None)
    write_atomic(folder.summary_path, summary.to_json().encode(errors="backslashreplace"))
