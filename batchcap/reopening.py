"""Owns which rows that have ended are captioned again: those of a retry, and those whose input has changed."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from batchcap.config import OnChanged, Retry
from batchcap.errors import ChangedInputError, ErrorKind, RowError, UsageError
from batchcap.images.source import digest, read_encoded
from batchcap.manifest.plan import Plan, TouchedSource
from batchcap.manifest.shard import Shard
from batchcap.manifest.source import SourceKind
from batchcap.records import CaptionRow, ImageRow, Status
from batchcap.report.summary import Tally
from batchcap.standing import Standing, ended_rows, standing_of
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.terminal import shown_name

log = logging.getLogger(__name__)

_SHOWN_NAMES = 5


@dataclass(frozen=True, slots=True)
class Reopening:
    """Reopens rows of a job whose folder is held and whose plan is up to date."""

    folder: JobFolder
    journal: Journal
    plan: Plan

    def settle_changes(self, on_changed: OnChanged, differing: Sequence[str] = ()) -> None:
        """Do as the person wants with captions whose input is not what it was.

        A picture has changed if its bytes are not those that were captioned; only pictures of another size or time
        than before are read. A Parquet file has changed if its size or time has. Rows without a caption are not
        asked about: they are read as they are now.

        Args:
            on_changed: what the person wants.
            differing: names of the settings that are not the job's.

        Raises:
            ChangedInputError: inputs have changed, and that is to stop the job.
            UsageError: what changed is to be captioned again, but not with the job's settings.
        """
        unchanged, changed = list[TouchedSource](), list[TouchedSource]()
        stale = dict[int, CaptionRow]()
        for source, ended in self._touched():
            of_source = {index: row for index, row in ended.items() if _is_stale(source, row)}
            has_captions = any(row.status is Status.OK for row in of_source.values())
            (changed if has_captions else unchanged).append(source)
            stale |= of_source
        names = _names(changed)
        if changed and on_changed is OnChanged.STOP:
            raise ChangedInputError(
                f"{names} changed since the captions were written: give --on-changed recaption to caption what "
                "changed again, --on-changed keep to leave the captions as they are, or another --output"
            )
        if on_changed is OnChanged.RECAPTION:
            if stale and differing:
                raise UsageError(
                    f"{names or 'pictures that failed have'} changed, and what changed is captioned with the job's own "
                    "settings: run the job with these first, then this command again"
                )
            self.journal.reopen([(index, row.attempts) for index, row in stale.items()])
            unchanged += changed
            if stale:
                log.info("%s changed: %d rows are captioned again", names or "pictures that failed have", len(stale))
        elif changed:
            log.warning("%s changed; the captions are kept (--on-changed recaption writes them anew)", names)
        self.plan.accept(unchanged)

    def _touched(self) -> Iterator[tuple[TouchedSource, dict[int, CaptionRow]]]:
        """Sources that look otherwise than before, with their rows that have ended."""
        shard: Shard | None = None
        of_shard: dict[int, CaptionRow] = {}
        for source in self.plan.touched():
            ended: dict[int, CaptionRow] = {}
            for first_row, rows in source.spans:
                index = first_row
                while index < first_row + rows:
                    if shard is None or not shard.first_row <= index < shard.first_row + shard.rows:
                        shard = self.journal.shard_of(index)
                        of_shard = dict(self._ended(standing_of(self.folder, self.journal, shard)))
                    end = min(first_row + rows, shard.first_row + shard.rows)
                    ended |= {one: of_shard[one] for one in range(index, end) if one in of_shard}
                    index = end
            yield source, ended

    def _ended(self, standing: Standing) -> Iterator[tuple[int, CaptionRow]]:
        return ended_rows(self.folder, self.journal, standing.shard, has_part=standing.has_part)

    def retry(self, wanted: Sequence[str], differing: Sequence[str]) -> None:
        """Reopen the rows of a retry.

        Args:
            wanted: values of `Retry`.
            differing: names of the settings that are not the job's. Without any, captions would come out as before,
                and only failed rows are reopened.

        Raises:
            UsageError: settings differ, and rows are there that have never ended: these are to have the job's.
        """
        if not wanted:
            return
        standings = [standing_of(self.folder, self.journal, shard) for shard in self.plan.shards()]
        if differing:
            self._require_all_ended(sum(standing.left for standing in standings), differing)
        else:
            _tell_what_stays(set(wanted) - {Retry.FAILED}, standings)
            wanted = [Retry.FAILED] if Retry.FAILED in wanted else []
        found = Counter[str]()
        for standing in standings:
            if not any(_counts(standing.tally)[name] for name in wanted):
                continue
            rows = [(index, row) for index, row in self._ended(standing) if _reasons(row) & set(wanted)]
            self.journal.reopen([(index, row.attempts) for index, row in rows])
            found.update(reason for _index, row in rows for reason in _reasons(row) & set(wanted))
        kinds = ", ".join(f"{name} {count}" for name, count in found.items())
        log.info("retry: %s", kinds or "no row is to be captioned again")

    def _require_all_ended(self, left: int, differing: Sequence[str]) -> None:
        fresh = left - self.journal.count_reopened_to_do()
        if fresh:
            options = ", ".join(f"--{name}" for name in differing)
            raise UsageError(
                f"{fresh} rows have never been captioned, and a retry with another {options} is not for them: run the "
                "job with its own settings first, then this command again"
            )


def _is_stale(source: TouchedSource, row: CaptionRow) -> bool:
    """Whether a row is not what its source gives now. Of one that can't be read its caption is all there is."""
    if source.kind is SourceKind.PARQUET or row.image_sha256 is None:
        return True
    path = os.fsdecode(source.path)
    try:
        return digest(read_encoded(ImageRow(0, row.id, path, 0, path=path))) != row.image_sha256
    except RowError as error:
        return error.kind not in (ErrorKind.MISSING, ErrorKind.UNREADABLE)


def _names(sources: Sequence[TouchedSource]) -> str:
    names = [shown_name(os.fsdecode(source.path)) for source in sources[:_SHOWN_NAMES]]
    more = f" and {len(sources) - len(names)} more" if len(sources) > len(names) else ""
    return f"{', '.join(names)}{more} {'has' if len(sources) == 1 else 'have'}" if names else ""


def _reasons(row: CaptionRow) -> set[str]:
    """Values of `Retry` that a row answers to."""
    if row.status is Status.FAILED:
        return {Retry.FAILED}
    return {str(answer.verdict) for answer in row.answers}


def _counts(tally: Tally) -> Counter[str]:
    return tally.verdicts + Counter({Retry.FAILED: tally.failed})


def _tell_what_stays(wanted: set[str], standings: Sequence[Standing]) -> None:
    count = sum(_counts(standing.tally)[name] for standing in standings for name in wanted)
    if count:
        log.warning(
            "%d captions (%s) would come out as they are and are left alone: give another --max-new-tokens, "
            "--repetition-penalty, --temperature or --seed with --retry",
            count,
            ", ".join(sorted(wanted)),
        )
