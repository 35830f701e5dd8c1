"""Owns how the end of a run is told: its state, its exit code, its message, and `summary.json`."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from batchcap.config import DEMO_MODEL, JobConfig
from batchcap.core.atomic import write_atomic
from batchcap.core.errors import BatchcapError, ExitCode, NotSameJobError, StorageError
from batchcap.core.records import CaptionRow
from batchcap.core.row_counts import RowCounts
from batchcap.core.text import format_duration, one_line
from batchcap.inputs.skipped import Skipped
from batchcap.job.failures import why_alike
from batchcap.job.open_shards import OpenShards
from batchcap.job.run_card import RunCard, write_run_card
from batchcap.job.stop import StopRequest
from batchcap.job.summary import Bottleneck, JobState, RunMetrics, Summary, exit_code_of
from batchcap.model.bundle import Bundle
from batchcap.store.fingerprint import is_known_job
from batchcap.store.folder import JobFolder
from batchcap.store.lock import job_lock, read_summary

log = logging.getLogger(__name__)


@dataclass(slots=True)
class RunFacts:
    """What a run has come to know so far.

    Attributes:
        total_rows: rows of the job; None before the plan is whole.
        counts: of the rows of the job that have finished.
        shards: what is left to do; None before the plan is whole.
        metrics: what this run did; None where it captioned nothing.
        limited_by: the stage that held it up.
        other_forms: what was written in other forms, for people.
        config: the job with its settings decided; None before that.
        failures: a row of this run for each kind of failure.
        is_summed_up: whether `summary.json` is of this run.
    """

    total_rows: int | None = None
    counts: RowCounts = field(default_factory=RowCounts)
    shards: OpenShards | None = None
    metrics: RunMetrics | None = None
    limited_by: Bottleneck | None = None
    other_forms: tuple[str, ...] = ()
    config: JobConfig | None = None
    failures: Mapping[str, CaptionRow] = field(default_factory=dict)
    is_summed_up: bool = False


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Makes and writes the summary of a run.

    Attributes:
        config: the job.
        folder: its folder, which is held.
        bundle: the model.
        skipped: images of the inputs whose type can't be read.
        facts: filled in by the run.
    """

    config: JobConfig
    folder: JobFolder
    bundle: Bundle
    skipped: Skipped
    facts: RunFacts = field(default_factory=RunFacts)

    def of_success(self, stop: StopRequest) -> Summary:
        """The summary of a run that did not fail; it may have been stopped."""
        counts, total = self.facts.counts, self.facts.total_rows
        if total is None or counts.rows < total:
            code = stop.exit_code or ExitCode.UNEXPECTED
            state = JobState.INTERRUPTED if code is ExitCode.INTERRUPTED else JobState.STOPPED
            how_far = "the inputs are not listed yet" if total is None else f"{counts.rows} of {total} rows are done"
            return self._write(state, code, f"{how_far}{self._of_this_run()}; run the same command again to go on")
        prompts = len(self.config.generation.prompts)
        message = f"{counts.ok}{f' x {prompts}' if prompts > 1 else ''} captions"
        message += " of the demo model" if self.bundle.source == DEMO_MODEL else ""
        message += f", {counts.failed} failed{self._of_this_run()}: {self._where()}"
        message += "".join(f"; {written}" for written in self.facts.other_forms)
        code = exit_code_of(counts, self.config.limits.max_error_rate)
        if code is ExitCode.TOO_MANY_FAILURES:
            allowed = f"more failures than --max-error-rate {self.config.limits.max_error_rate:g} allows"
            message += f"; {allowed if counts.ok else 'nothing was captioned'}"
        if reason := why_alike(self.folder, counts, self.config.input):
            message += f"; {reason}"
        return self._write(JobState.COMPLETE, code, message)

    def of_failure(self, code: ExitCode, message: str, *, is_our_folder: bool) -> Summary:
        """The summary of a run that failed; written if what made it fail allows that, and the folder is this job's."""
        with suppress(StorageError):
            if is_our_folder or is_known_job(self.folder, self.config):
                return self._write(JobState.FAILED, code, message)
        return self._made(JobState.FAILED, code, message)

    def of_refusal(self, error: NotSameJobError) -> Summary:
        """The summary of a run that has met another job's folder, whose own summary stays."""
        return self._made(JobState.FAILED, error.exit_code, str(error))

    def _where(self) -> str:
        parts = self.folder.part_paths()
        if not parts:  # no row was chosen
            return one_line(str(self.folder.path))
        several = f"{parts[0].with_name('part-*.parquet')} ({len(parts)} files)"
        return one_line(str(parts[0]) if len(parts) == 1 else several)

    def _of_this_run(self) -> str:
        """What this run did, for a result line; nothing where nothing was left to do."""
        run = self.facts.metrics
        if run is None:
            return ""
        told = [f"{run.images} images in {format_duration(run.elapsed_s)}"]
        if run.images:
            told.append(f"{run.images_per_min:.1f} images/min after loading")
        if run.duplicates:
            told.append(f"{run.duplicates} duplicates")
        return f" (this run: {', '.join(told)})"

    def _write(self, state: JobState, code: ExitCode, message: str) -> Summary:
        summary = self._made(state, code, message)
        _write_summary(self.folder, summary)
        self.facts.is_summed_up = True
        try:
            write_run_card(RunCard(self.folder, self.facts.config or self.config, summary, self.facts.failures))
        except StorageError as error:
            log.warning("the run card is not written: %s", one_line(str(error.__cause__ or error)))
        return summary

    def _made(self, state: JobState, code: ExitCode, message: str) -> Summary:
        facts = self.facts
        summary = Summary(
            state,
            code,
            message,
            facts.total_rows,
            facts.counts,
            facts.metrics,
            self.bundle.named,
            facts.limited_by,
            skipped_inputs=dict(self.skipped.images),
            parts_left=None if facts.shards is None else len(facts.shards),
        )
        return summary.after(read_summary(self.folder))


def record_early_failure(output: Path, config: JobConfig, error: BatchcapError) -> None:
    """Say in the folder of this job why this run did not come to it: who looks there must not find `complete`.

    Only where the folder is known to be this job's: with a mistyped --output or input it is another's.
    """
    with suppress(BatchcapError):
        folder = JobFolder.open_existing(output)
        if is_known_job(folder, config):
            with job_lock(folder):
                summary = Summary(JobState.FAILED, error.exit_code, str(error), None, RowCounts(), None, None)
                summary = summary.after(read_summary(folder))
                _write_summary(folder, summary)
                write_run_card(RunCard(folder, config, summary, {}))


def _write_summary(folder: JobFolder, summary: Summary) -> None:
    # A path that is not text becomes a JSON escape.
    write_atomic(folder.summary_path, summary.to_json().encode(errors="backslashreplace"))
