"""Owns which rows that have ended are captioned again: those of a retry, and those whose input has changed."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from batchcap.config import OnChanged, Retry
from batchcap.core.errors import ChangedInputError, ErrorKind, RowError, UsageError
from batchcap.core.records import CaptionRow, ImageRow, Shard, Status
from batchcap.core.row_counts import RowCounts
from batchcap.core.sources import FileAt
from batchcap.core.text import shown_name
from batchcap.inputs.encoded import digest, read_encoded
from batchcap.inputs.registry import READERS
from batchcap.job.plan import Plan
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.plan_tables import ChangedSource
from batchcap.store.shard_state import ShardState, finished_rows, shard_state_of

log = logging.getLogger(__name__)

_SHOWN_NAMES = 5


class _EndedRows:
    """The rows that have ended, by shard; the last shard is kept, since one image after the other asks for it."""

    def __init__(self, folder: JobFolder, journal: Journal) -> None:
        self._folder = folder
        self._journal = journal
        self.has_unread = False  # whether an image of the last source could not be read
        self._shard: Shard | None = None
        self._rows: dict[int, CaptionRow] = {}

    def stale(self, source: ChangedSource) -> Iterator[list[tuple[int, CaptionRow]]]:
        """The rows that are not what their source gives now, those of a shard together."""
        self.has_unread = False
        for first_row, count in source.spans:
            index, end = first_row, first_row + count
            while index < end:
                stop = min(end, self._load(index))
                here = ((one, self._rows[one]) for one in range(index, stop) if one in self._rows)
                if rows := [(one, row) for one, row in here if self._is_stale(source, row)]:
                    yield rows
                index = stop

    def _is_stale(self, source: ChangedSource, row: CaptionRow) -> bool:
        """Whether a row is not what its source gives now. Of one that can't be read its caption is all there is."""
        if READERS[source.kind].is_container or row.image_sha256 is None:
            return True
        path = os.fsdecode(source.path)
        try:
            return digest(read_encoded(ImageRow(0, row.id, path, 0, FileAt(path)))) != row.image_sha256
        except RowError as error:
            is_unread = error.kind in (ErrorKind.MISSING, ErrorKind.UNREADABLE)
            self.has_unread |= is_unread
            return not is_unread

    def _load(self, index: int) -> int:
        """Have the rows of a row's shard; the row after its last one."""
        if self._shard is None or not self._shard.first_row <= index < self._shard.span[1]:
            self._shard = self._journal.shard_of(index)
            has_part = shard_state_of(self._folder, self._journal, self._shard).has_part
            self._rows = dict(finished_rows(self._folder, self._journal, self._shard, has_part=has_part))
        return self._shard.span[1]


@dataclass(frozen=True, slots=True)
class RetryPlanner:
    """Reopens rows of a job whose folder is held and whose plan is up to date.

    Attributes:
        folder: the job's.
        journal: the job's.
        plan: the job's.
        settings: of this run, as JSON, where they are not the job's; else empty.
    """

    folder: JobFolder
    journal: Journal
    plan: Plan
    settings: str

    def resume_pending(self) -> bool:
        """Look at what earlier runs have reopened and not ended; whether this run is to go on with it.

        Raises:
            UsageError: it is to have the job's settings, and this run has others.
        """
        given_up = self.journal.drop_pending(but=self.settings)
        if given_up:
            log.warning(
                "the unfinished part of a retry with other settings is cancelled: %d captions stay as they were; run "
                "the command of that retry to caption them again",
                given_up,
            )
        if self.settings and (waiting := self.journal.waiting("")):
            raise UsageError(
                f"{waiting} rows still have to be captioned again with the job's own settings: run the job with its "
                "own settings first, then this command again"
            )
        if waiting := self.journal.waiting():
            log.info("resuming an interrupted retry: %d rows left", waiting)
        return self.journal.has_reopened()  # also where all have ended, and a part is still to be replaced

    def handle_changed_inputs(self, on_changed: OnChanged) -> None:
        """Do as the person wants with captions whose input is not what it was.

        An image has changed if its bytes are not those that were captioned; only images of another size or time
        than before are read. A source with rows has changed if its size or time has. Rows without a caption are not
        asked about: they are read as they are now.

        Raises:
            ChangedInputError: inputs have changed, and that is to stop the job.
            UsageError: what changed is to be captioned again, but not with the job's settings.
        """
        unchanged, changed = list[ChangedSource](), list[ChangedSource]()
        count, shards = 0, _EndedRows(self.folder, self.journal)
        for source in self.plan.changed():
            has_captions = False
            for rows in shards.stale(source):
                has_captions = has_captions or any(row.status is Status.OK for _index, row in rows)
                if on_changed is OnChanged.RECAPTION:
                    self._require_own_settings(source)
                    self.journal.reopen(rows, "", is_changed=True)
                    count += len(rows)
                elif has_captions:
                    break
            if not shards.has_unread:  # else the next run looks again
                (changed if has_captions else unchanged).append(source)
        names = _names(changed)
        if changed and on_changed is OnChanged.STOP:
            raise ChangedInputError(
                f"{names} changed since the captions were written: give --on-changed recaption to caption what "
                "changed again, --on-changed keep to leave the captions as they are, or another --output"
            )
        if on_changed is OnChanged.RECAPTION:
            unchanged += changed
            if count:
                log.info("%s changed: %d rows are captioned again", names or "images that failed have", count)
        elif changed:
            log.warning("%s changed; the captions are kept (--on-changed recaption captions them again)", names)
        self.plan.accept(unchanged)

    def _require_own_settings(self, source: ChangedSource) -> None:
        if self.settings:
            raise UsageError(
                f"{_names([source])} changed, and changed inputs are captioned with the job's own settings only: run "
                "the job with its own settings first, then this command again"
            )

    def retry(self, wanted: Sequence[str], *, is_interrupted: bool) -> None:
        """Reopen the rows of a retry.

        Args:
            wanted: values of `Retry`. With the job's own settings captions would come out as before: then only failed
                rows are reopened.
            is_interrupted: whether one is to be gone on with. Then none is: else a retry that is stopped before its end
                each time would try the same rows for ever.

        Raises:
            UsageError: settings differ, and rows are there that have never ended or are in no part: these are to have
                the job's.
        """
        if not wanted:
            return
        states = [shard_state_of(self.folder, self.journal, shard) for shard in self.plan.shards()]
        if self.settings:
            self._require_all_ended(states)
        else:
            _tell_what_stays(set(wanted) - {Retry.FAILED}, states)
            wanted = [Retry.FAILED] if Retry.FAILED in wanted else []
        if is_interrupted:
            return
        found, without_input = Counter[str](), Counter[str]()
        gone = self.plan.vanished()
        for state in states:
            if not any(_counts(state.counts)[name] for name in wanted):
                continue
            ended = finished_rows(self.folder, self.journal, state.shard, has_part=state.has_part)
            rows = [(index, row) for index, row in ended if _reasons(row) & set(wanted)]
            there = [(index, row) for index, row in rows if row.source not in gone]
            without_input.update(gone[row.source] for _index, row in rows if row.source in gone)
            self.journal.reopen(there, self.settings)
            found.update(reason for _index, row in there for reason in _reasons(row) & set(wanted))
        kinds = ", ".join(f"{name} {count}" for name, count in found.items())
        log.info("retry: %s", kinds or "no rows to caption again")
        if without_input:
            nouns = " and ".join(f"{noun}s" for noun in without_input)
            log.warning("%d rows can't be retried: their %s no longer exist", without_input.total(), nouns)

    def _require_all_ended(self, states: Sequence[ShardState]) -> None:
        fresh = sum(state.left for state in states) - self.journal.waiting(self.settings)
        if fresh:
            reason = f"{fresh} rows have never been captioned"
        elif unwritten := sum(not state.has_part for state in states):
            reason = f"{unwritten} part files are not written yet"
        else:
            return
        options = ", ".join(f"--{name}" for name in json.loads(self.settings))
        raise UsageError(f"{reason}: run the job with its own settings first, then retry with another {options}")


def _names(sources: Sequence[ChangedSource]) -> str:
    names = [shown_name(os.fsdecode(source.path)) for source in sources[:_SHOWN_NAMES]]
    more = f" and {len(sources) - len(names)} more" if len(sources) > len(names) else ""
    return f"{', '.join(names)}{more} {'has' if len(sources) == 1 else 'have'}" if names else ""


def _reasons(row: CaptionRow) -> set[str]:
    """Values of `Retry` that a row answers to."""
    if row.status is Status.FAILED:
        return {Retry.FAILED}
    return {str(answer.verdict) for answer in row.answers}


def _counts(counts: RowCounts) -> Counter[str]:
    return counts.verdicts + Counter({Retry.FAILED: counts.failed})


def _tell_what_stays(wanted: set[str], states: Sequence[ShardState]) -> None:
    count = sum(_counts(state.counts)[name] for state in states for name in wanted)
    if count:
        log.warning(
            "%d captions (%s) are not retried, because the same settings give the same captions: add another "
            "--max-new-tokens, --repetition-penalty, --temperature or --seed",
            count,
            ", ".join(sorted(wanted)),
        )
