"""Owns `convert`: the finished parts of a job folder, also while a run is at work, written in other forms."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from batchcap.config import OutputsConfig
from batchcap.core.address import is_remote
from batchcap.core.errors import UsageError
from batchcap.core.records import ImageRow, Shard
from batchcap.core.sources import Piece
from batchcap.core.text import shown_name
from batchcap.inputs.reader import Reader
from batchcap.inputs.registry import READERS, open_readers
from batchcap.outputs.form import FinishedPart, Form, Job, Origin, Written
from batchcap.outputs.ledger import Ledger
from batchcap.outputs.places import require_places
from batchcap.outputs.registry import make_form
from batchcap.outputs.uploads import Uploads
from batchcap.store.folder import JobFolder
from batchcap.store.job_file import begun_configuration, input_config
from batchcap.store.journal import Journal
from batchcap.store.parts import prompt_names
from batchcap.store.plan_tables import PlanTables
from batchcap.store.shard_state import look_at_shards

log = logging.getLogger(__name__)


def convert(output: Path, forms: Sequence[str], config: OutputsConfig, *, allow_remote: bool = False) -> list[Written]:
    """Write what is finished of a job in other forms.

    Args:
        output: the job folder; a run may be at work on it.
        forms: each `FORM` or `FORM:WHERE`.
        config: how they are written.
        allow_remote: whether addresses are asked and written to, those of the inputs among them.

    Returns:
        What was written, form by form.

    Raises:
        UsageError: the folder is no job folder, no part is finished, or a form can't be written as asked.
        StorageError: a part can't be read, or a form can't be written.
        NetworkError: a store does not answer.
    """
    folder = JobFolder.open_existing(output)
    finished = FinishedParts(folder, allow_remote=allow_remote)
    with closing(Ledger(folder)) as ledger, closing(Uploads(ledger, is_allowed=allow_remote)) as uploads:
        job = Job(folder, finished.prompts, ledger, finished.kinds(), uploads)
        made = [make_form(form, job, config) for form in forms]
        if not allow_remote:
            finished.require_here(made)
        finished.check(made)  # all of them before the first is written
        for form in made:
            if form.needs_all_rows and finished.rows_left:
                raise UsageError(
                    f"{form.name} is written once all rows are done, and {finished.rows_left} of {folder.path} are "
                    "left: run the job to its end"
                )
        written = [form.write(finished) for form in made]
    if finished.rows_left:
        log.warning(
            "%d rows of %s are left, and not in what was written: run the job to its end, then this command again",
            finished.rows_left,
            folder.path,
        )
    return written


class FinishedParts:
    """The finished parts of a job folder, in their order.

    Attributes:
        prompts: names of the prompts.
        rows_left: rows of the job that are in no part yet, or are captioned again.

    Raises:
        UsageError: there is none, or the folder does not say what its job is.
        StorageError: a part can't be read.
    """

    def __init__(self, folder: JobFolder, *, allow_remote: bool) -> None:
        self._folder = folder
        states = look_at_shards(folder)
        self._states = [state for state in states if state.has_part]
        self.rows_left = sum(max(1, state.left) for state in states if not state.is_done)
        if not self._states:
            raise UsageError(f"no part of {folder.path} is finished yet: wait for one, or run the job to its end")
        self._inputs = replace(input_config(begun_configuration(folder)), allow_remote=allow_remote)
        self._readers: dict[str, Reader] = open_readers(self._inputs)
        self.prompts = prompt_names(folder.part_path(self._states[0].shard.seq))

    def __iter__(self) -> Iterator[FinishedPart]:
        for state in self._states:
            path = self._folder.part_path(state.shard.seq)
            yield FinishedPart(state.shard, path, state.counts, Origin(self._images, self._pieces))

    def check(self, forms: Sequence[Form]) -> None:
        """Look for what stands in the way of forms.

        Raises:
            UsageError: something does.
        """

        def look(journal: Journal) -> None:
            tables = PlanTables(journal)
            for form in forms:
                form.check(lambda: _image_ids(journal))
            require_places(forms, self._folder, lambda: tables.named_sources(sorted(tables.kinds())))

        Journal.look_into(self._folder.journal_path, look)

    def require_here(self, forms: Sequence[Form]) -> None:
        """Refuse forms for which inputs at addresses would be read again.

        Raises:
            UsageError: there are some.
        """
        address = next(filter(is_remote, self._inputs.inputs), None)
        for form in forms:
            if address is not None and form.reads_inputs:
                raise UsageError(
                    f"{form.name} looks at the inputs again, and this job has some at addresses "
                    f"({shown_name(address)}): give --allow-remote to fetch them"
                )

    def kinds(self) -> frozenset[str]:
        """The kinds of the job's sources."""
        return Journal.look_into(self._folder.journal_path, lambda journal: PlanTables(journal).kinds())

    def _pieces(self, shard: Shard) -> list[Piece]:
        return Journal.look_into(self._folder.journal_path, lambda journal: PlanTables(journal).pieces(shard))

    def _images(self, shard: Shard) -> Iterator[ImageRow]:
        for piece in self._pieces(shard):
            yield from self._readers[piece.kind].rows(piece, range(piece.first_row, piece.first_row + piece.rows))


def _image_ids(journal: Journal) -> Iterator[tuple[str, Path]]:
    """Id and path of every image file of a job, one after the other: there may be a million."""
    kinds = [kind for kind, reader in READERS.items() if not reader.is_container]
    return PlanTables(journal).named_sources(kinds)
