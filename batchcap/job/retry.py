"""Owns which rows that have ended are captioned again by a retry; `job.changes` those whose input has changed."""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from batchcap.config import Retry
from batchcap.core.errors import UsageError
from batchcap.core.records import CaptionRow, Status
from batchcap.core.row_counts import RowCounts
from batchcap.job.plan import Plan
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.shard_state import ShardState, finished_rows, shard_state_of

log = logging.getLogger(__name__)


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
