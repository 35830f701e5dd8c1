"""Owns what becomes of captions whose inputs look otherwise now: the same after all, grown by new rows, or changed."""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from batchcap.config import OnChanged
from batchcap.core.errors import ChangedInputError, UsageError
from batchcap.core.records import Status
from batchcap.inputs.columns import shown
from batchcap.job.comparison import Comparison, Difference, EndedRow, is_table
from batchcap.job.plan import Plan
from batchcap.job.stop import ShouldStop
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.plan_tables import ChangedSource

log = logging.getLogger(__name__)

_SHOWN_NAMES = 5


@dataclass(slots=True)
class _Found:
    """What the sources that look otherwise are.

    Attributes:
        same: as they were, but perhaps for rows that are new.
        unread: as `same`, as far as they could be read; the next run looks again.
        changed: not what was captioned.
        difference: of the first table that has changed.
        reopened: rows that are captioned again.
    """

    same: list[ChangedSource] = field(default_factory=list)
    unread: list[ChangedSource] = field(default_factory=list)
    changed: list[ChangedSource] = field(default_factory=list)
    difference: tuple[ChangedSource, Difference] | None = None
    reopened: int = 0

    @property
    def where(self) -> str:
        """The first row that differs, for a message; empty where only images have changed."""
        if self.difference is None:
            return ""
        source, found = self.difference
        of = f" of {_name(source)}" if len(self.changed) > 1 else ""
        return f" (the first row that differs is row {found.row}{of}: {found.reason})"


@dataclass(frozen=True, slots=True)
class ChangedInputs:
    """The inputs of a job whose folder is held and whose plan is up to date.

    Attributes:
        folder: the job's.
        journal: the job's.
        plan: the job's.
        settings: of this run, as JSON, where they are not the job's; else empty.
        should_stop: whether to stop, asked often.
    """

    folder: JobFolder
    journal: Journal
    plan: Plan
    settings: str
    should_stop: ShouldStop

    def handle(self, on_changed: OnChanged) -> None:
        """Take in rows that are new, and do as the person wants with captions whose input is not what it was.

        An image has changed if its bytes are not those that were captioned; only images of another size or time
        than before are read. A table or archive of another size, time or number of rows has changed as a whole if one
        of its rows is not what was captioned. Rows without a caption are not asked about: they are read as they are
        now.

        Raises:
            ChangedInputError: inputs have changed, and that is to stop the job; or a table has lost rows.
            UsageError: what changed is to be captioned again, but not with the job's settings.
            StoppedError: it is time to stop.
        """
        found, comparison = _Found(), Comparison(self.folder, self.journal, self.plan, self.should_stop)
        for source in self.plan.changed():
            self._look_at(source, comparison, on_changed, found)
        names = _names(found.changed)
        if found.changed and on_changed is OnChanged.STOP:
            raise ChangedInputError(
                f"{names} changed since the captions were written{found.where}: give --on-changed recaption to caption "
                "what changed again, --on-changed keep to leave the captions as they are, or another --output"
            )
        kept = list[ChangedSource]()
        if on_changed is OnChanged.RECAPTION:
            found.same += found.changed
            if found.reopened:
                names = names or "images that failed have"
                log.info("%s changed%s: %d rows are captioned again", names, found.where, found.reopened)
        elif found.changed:
            kept = found.changed
            log.warning(
                "%s changed%s; the captions are kept (--on-changed recaption captions them again)", names, found.where
            )
        self.plan.accept(found.same, rows_only=[*found.unread, *kept])
        for source in (*found.same, *found.unread, *kept):
            if (more := source.rows - source.rows_before) > 0:
                log.info("%s has %d more row%s", _name(source), more, "s" if more > 1 else "")

    def _look_at(self, source: ChangedSource, comparison: Comparison, on_changed: OnChanged, found: _Found) -> None:
        difference = comparison.first_difference(source) if is_table(source) else None
        has_captions = difference is not None
        if difference is not None:
            _require_rows(source, difference)
            found.difference = found.difference or (source, difference)
        for rows in _stale(source, comparison, on_changed, is_changed=has_captions):
            has_captions = has_captions or any(row.status is Status.OK for _index, row in rows)
            if on_changed is OnChanged.RECAPTION:
                self._require_own_settings(source)
                self.journal.reopen(rows, "", is_changed=True)
                found.reopened += len(rows)
            elif has_captions:
                break
        if has_captions:
            found.changed.append(source)
        elif not comparison.has_unread:  # else the next run looks again
            found.same.append(source)
        else:
            found.unread.append(source)

    def _require_own_settings(self, source: ChangedSource) -> None:
        if self.settings:
            raise UsageError(
                f"{_names([source])} changed, and changed inputs are captioned with the job's own settings only: run "
                "the job with its own settings first, then this command again"
            )


def _stale(
    source: ChangedSource, comparison: Comparison, on_changed: OnChanged, *, is_changed: bool
) -> Iterator[list[EndedRow]]:
    """The rows to caption again if what changed is; of a table that has not changed those that failed.

    Not of one that only grew: it may grow each night, and each time they would fail again.
    """
    if not is_table(source):
        yield from comparison.stale_images(source)
    elif on_changed is OnChanged.RECAPTION and (is_changed or source.rows == source.rows_before):
        for _piece, rows in comparison.ended(source):
            if stale := [(index, row) for index, row in rows if is_changed or row.status is Status.FAILED]:
                yield stale


def _require_rows(source: ChangedSource, difference: Difference) -> None:
    """Refuse a table with fewer rows than before: nothing could be told of those that the job has planned.

    Raises:
        ChangedInputError: it is one.
    """
    if source.rows < source.rows_before:
        raise ChangedInputError(
            f"{_name(source)} had {source.rows_before} rows and has {source.rows} now (the first row that differs is "
            f"row {difference.row}: {difference.reason}), so its captions don't match its rows: restore the old file, "
            "or use another --output"
        )


def _name(source: ChangedSource) -> str:
    return shown(os.fsdecode(source.path))


def _names(sources: Sequence[ChangedSource]) -> str:
    names = [_name(source) for source in sources[:_SHOWN_NAMES]]
    more = f" and {len(sources) - len(names)} more" if len(sources) > len(names) else ""
    return f"{', '.join(names)}{more} {'has' if len(sources) == 1 else 'have'}" if names else ""
