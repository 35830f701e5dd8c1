"""Owns the other forms that a run writes of its captions: image by image while it runs, the rest at its end."""

import logging
from collections.abc import Iterator

from batchcap.config import JobConfig
from batchcap.core.errors import BatchcapError
from batchcap.core.records import Shard
from batchcap.job.plan import Plan
from batchcap.outputs.form import FinishedPart, Form, Job, Origin
from batchcap.outputs.ledger import Ledger
from batchcap.outputs.places import require_places
from batchcap.outputs.registry import make_form
from batchcap.outputs.uploads import UploadError, Uploads
from batchcap.remote.attempts import NetworkError
from batchcap.store.folder import JobFolder
from batchcap.store.parts import part_counts, part_is_complete

log = logging.getLogger(__name__)


class OtherForms:
    """The forms of `--also`. Close it at the end.

    Args:
        folder: the job folder, which is held.
        plan: the rows of the job.
        config: the job.
    """

    def __init__(self, folder: JobFolder, plan: Plan, config: JobConfig) -> None:
        self._folder = folder
        self._plan = plan
        self._ledger = Ledger(folder)
        self._uploads = Uploads(self._ledger, is_allowed=config.input.allow_remote)
        job = Job(folder, config.generation.prompt_names, self._ledger, plan.kinds(), self._uploads)
        self._forms: list[Form] = [make_form(one, job, config.outputs) for one in config.outputs.also]
        self._waiting: set[Form] = set()  # of those that go part by part: a part could not be written

    def check(self) -> None:
        """Look for what stands in the way of a form, before any work.

        Raises:
            UsageError: something does.
        """
        for form in self._forms:
            form.check(self._plan.image_ids)
        require_places(self._forms, self._folder, self._plan.source_ids)

    def write_part(self, shard: Shard) -> None:
        """A part has been written. What keeps a form from following is told, and tried again at the end."""
        for form in self._forms:
            if form.is_incremental and form not in self._waiting:
                try:
                    form.write_part(self._part(shard))
                except BatchcapError as error:
                    self._waiting.add(form)
                    log.warning("%s files wait for the end of this run: %s", form.name, error)

    def finish(self, *, is_complete: bool) -> tuple[str, ...]:
        """Write what is not written yet; what is one file for all rows only once all rows are done.

        Returns:
            What was written, form by form, for people.

        Raises:
            BatchcapError: a form can't be written.
        """
        written = list[str]()
        refused: BatchcapError | None = None
        for form in self._forms:
            if form.is_incremental or is_complete:
                try:
                    done = form.write(self._parts(), skips_known=True)
                    written.append(done.to_text())
                    if done.unreachable:
                        refused = refused or NetworkError(done.to_text())
                except BatchcapError as error:  # the others are written nevertheless
                    refused = refused or error
                    log.warning("%s files are not all written: %s", form.name, error)
        if isinstance(refused, NetworkError | UploadError):
            raise type(refused)(f"{refused}. {self._way_on()}") from refused
        if refused is not None:
            raise refused
        return tuple(written)

    def _way_on(self) -> str:
        return (
            f"The captions are safe in {self._folder.path}; `batchcap convert {self._folder.path} --to FORM:WHERE "
            "--allow-remote` writes such files, too"
        )

    def close(self) -> None:
        """Nothing more is written."""
        self._uploads.close()
        self._ledger.close()

    def _parts(self) -> Iterator[FinishedPart]:
        for shard in self._plan.shards():
            if part_is_complete(self._folder.part_path(shard.seq), shard):
                yield self._part(shard)

    def _part(self, shard: Shard) -> FinishedPart:
        path = self._folder.part_path(shard.seq)
        return FinishedPart(shard, path, part_counts(path), Origin(self._plan.rows_again, self._plan.pieces))
