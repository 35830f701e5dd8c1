"""Owns one run of a job: what is asked for, whether it is the same job, what is left to do, and how the run ends."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path

from batchcap import __version__
from batchcap.config import DEMO_MODEL, JobConfig, Profile
from batchcap.core.atomic import write_atomic
from batchcap.core.errors import BatchcapError, ExitCode, NotSameJobError, StorageError
from batchcap.core.prompts import caption_key
from batchcap.core.records import RowCounts
from batchcap.core.text import format_duration, one_line
from batchcap.engines.base import Engine
from batchcap.engines.config import EngineConfig
from batchcap.engines.dedup import REMEMBERED_IMAGES
from batchcap.engines.local import LocalEngine
from batchcap.engines.profiles import resolve
from batchcap.engines.tuned import read_tuned
from batchcap.export.demo import load_model
from batchcap.inputs.discover import discover
from batchcap.inputs.skipped import Skipped
from batchcap.inputs.source import Source
from batchcap.job.bottleneck import find_bottleneck
from batchcap.job.failures import why_alike
from batchcap.job.loop import caption_rows, requests_of
from batchcap.job.monitor import Monitor
from batchcap.job.plan import Plan
from batchcap.job.progress import Progress
from batchcap.job.recorder import Recorder
from batchcap.job.retry import RetryPlanner
from batchcap.job.stop import StopRequest, stop_on_signals
from batchcap.job.summary import Bottleneck, JobState, RunMetrics, Summary
from batchcap.model.bundle import Bundle
from batchcap.model.prompt import bundle_opens_thinking
from batchcap.store.fingerprint import Fingerprint, begun_encoder, check_same_job, fingerprint_of, is_known_job
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.lock import job_lock
from batchcap.store.parts import SETTINGS_KEY, passthrough_schema
from batchcap.store.place import Place
from batchcap.store.shard_state import require_known_parts
from batchcap.store.stats import StatsWriter
from batchcap.vision.dtype import resolve_encoder

log = logging.getLogger(__name__)

# A model that thinks first seldom comes to its caption in fewer tokens.
FEW_TOKENS_FOR_THINKING = 1024

EngineFactory = Callable[[EngineConfig], Engine]


def run_job(config: JobConfig, progress: Progress, make_engine: EngineFactory = LocalEngine) -> Summary:
    """Caption what is left of a job; the same call begins it and resumes it.

    Args:
        config: the job.
        progress: told how far it is.
        make_engine: where the stages run.

    Returns:
        How the job stands; also written to `summary.json`.

    Raises:
        BatchcapError: an error that is not about one row. It is in `summary.json` too where there is a job folder,
            unless another run holds it, or it is another job's: then nothing in it changes.
    """
    started_s = time.perf_counter()
    output = Path(config.output)
    try:
        skipped = Skipped()
        sources = discover(config.input, output, skipped)
        begun = chain([next(sources)], sources)  # inputs that are not there, or empty, are told before a folder is made
        place = Place.of(output)
        bundle = load_model(config.model)
    except BatchcapError as error:
        _record_early_failure(output, config, error)
        raise
    folder = JobFolder.open_or_create(output)
    with job_lock(folder), stop_on_signals() as stop:
        place = place.once_held()
        run = JobRun(config, folder, bundle, stop, started_s, skipped)
        try:
            run.work(begun, progress, make_engine)
        except NotSameJobError:
            raise  # the folder is another job's, and so is its summary
        except BatchcapError as error:
            run.write_failure(error.exit_code, str(error))
            if error.exit_code is ExitCode.USAGE and not run.has_plan:
                place.remove_if_new()
            raise
        except Exception as error:
            run.write_failure(ExitCode.UNEXPECTED, f"unexpected {type(error).__name__}: {error}")
            raise
        return run.conclude()


def _record_early_failure(output: Path, config: JobConfig, error: BatchcapError) -> None:
    """Say in the folder of this job why this run did not come to it: who looks there must not find `complete`.

    Only where the folder is known to be this job's: with a mistyped --output or input it is another's.
    """
    with suppress(BatchcapError):
        folder = JobFolder.open_existing(output)
        if is_known_job(folder, config):
            with job_lock(folder):
                _write_summary(
                    folder, Summary(JobState.FAILED, error.exit_code, str(error), None, RowCounts(), None, None)
                )


def _write_summary(folder: JobFolder, summary: Summary) -> None:
    # A path that is not text becomes a JSON escape.
    write_atomic(folder.summary_path, summary.to_json().encode(errors="backslashreplace"))


class _StoppedError(Exception):
    """It was time to stop before the plan was whole."""


class JobRun:
    """One run of a job whose folder is held."""

    def __init__(
        self,
        config: JobConfig,
        folder: JobFolder,
        bundle: Bundle,
        stop: StopRequest,
        started_s: float,
        skipped: Skipped,
    ) -> None:
        self._config = config
        self._folder = folder
        self._bundle = bundle
        self._stop = stop
        self._started_s = started_s
        self._skipped = skipped
        self._total_rows: int | None = None
        self._recorder: Recorder | None = None
        self._tally = RowCounts()
        self._figures: RunMetrics | None = None
        self._limited_by: Bottleneck | None = None
        self._remarks: tuple[str, ...] = ()
        self._retry_settings = ""
        self._is_our_folder = False

    @property
    def has_plan(self) -> bool:
        """Whether the run has come as far as to know its rows."""
        return self._total_rows is not None

    def work(self, sources: Iterable[Source], progress: Progress, make_engine: EngineFactory) -> None:
        """Check that it is the same job, bring the plan up to date, caption what is left."""
        config, folder = self._resolve_settings(), self._folder
        names = config.generation.prompt_names
        fingerprint = fingerprint_of(config, self._bundle.id, resolve_encoder(config.vision))
        differing = check_same_job(folder, fingerprint, config)
        self._is_our_folder = True
        self._retry_settings = json.dumps({name: fingerprint[name] for name in differing}) if differing else ""
        folder.remove_leftovers()
        with closing(Journal.open(folder.journal_path)) as journal:
            require_known_parts(folder, journal)
            plan = Plan(journal, config.input, names, passthrough_schema(folder.part_paths()))
            try:
                plan.extend(self._until_stopped(sources), config.placement.rows_per_part, config.limits.limit)
            except _StoppedError:
                return  # nothing of the plan is kept: the next run must cut the same parts
            journal.checkpoint()
            retry = RetryPlanner(folder, journal, plan, self._retry_settings)
            is_interrupted = retry.resume_pending()
            retry.handle_changed_inputs(config.resume.on_changed)
            retry.retry(config.resume.retry, is_interrupted=is_interrupted)
            recorder = Recorder(folder, plan, journal, part_metadata_of(self._bundle, fingerprint), names)
            self._recorder = recorder
            self._total_rows, self._tally = plan.total_rows, recorder.counts
            recorder.close_whole_shards()
            if recorder.counts.rows < plan.total_rows and not self._stop_in_time():
                self._caption(recorder, progress, make_engine)

    def _resolve_settings(self) -> JobConfig:
        """Decide what nobody gave, once the folder is held and nobody else can begin the job otherwise."""
        if self._config.explicit is not None:
            tuned = read_tuned(self._bundle.id)
            resolution = resolve(self._config, self._bundle, tuned, begun_encoder(self._folder))
            self._config = resolution.config
            if tuned or self._config.profile is not Profile.AUTO:
                self._remarks = (f"settings: {resolution.why}", *resolution.notes)
            else:
                self._remarks = resolution.notes
        return self._config

    def _until_stopped(self, sources: Iterable[Source]) -> Iterator[Source]:
        for source in sources:
            if self._stop_in_time():
                raise _StoppedError
            yield source

    def _caption(self, recorder: Recorder, progress: Progress, make_engine: EngineFactory) -> None:
        if self._config.generation.max_new_tokens < FEW_TOKENS_FOR_THINKING and bundle_opens_thinking(self._bundle):
            log.warning(
                "this model thinks before it captions, and its thoughts count: where they take all of "
                "--max-new-tokens %d the caption is empty and its verdict `truncated`. Give %d or more.",
                self._config.generation.max_new_tokens,
                FEW_TOKENS_FOR_THINKING,
            )
        if len(names := self._config.generation.prompt_names) > 1:
            log.info("asking %d prompts of each image: %s", len(names), ", ".join(names))
        for remark in self._remarks:
            log.info("%s", remark)
        log.info("loading the model")
        stats = StatsWriter(self._folder.stats_path)
        monitor = Monitor(stats, self._started_s)
        asked = self._config.generation
        with closing(make_engine(EngineConfig.of_job(self._bundle, self._config))) as engine:
            engine.start(self._stop_in_time)
            key = caption_key(asked.prompts, asked.sampling)
            if key is not None and not self._retry_settings:
                engine.seed_dedup(key, recorder.captioned_images(REMEMBERED_IMAGES))
            progress.start(self._total_rows or 0, recorder.counts.rows)
            try:
                caption_rows(recorder, engine, requests_of(recorder, asked), monitor, progress, self._stop_in_time)
            except BaseException:
                # A full disk refuses these too; the error that ended the work is the one to tell.
                with suppress(StorageError):
                    self._finish_stats(monitor, stats, progress)
                raise
            self._finish_stats(monitor, stats, progress)

    def _finish_stats(self, monitor: Monitor, stats: StatsWriter, progress: Progress) -> None:
        progress.close()
        self._figures = monitor.end()
        self._limited_by = find_bottleneck(self._figures, self._config)
        if self._limited_by is not None:
            log.info("%s", self._limited_by.to_text())
        stats.write()

    def _stop_in_time(self) -> bool:
        """Whether to stop: somebody asked, or the time is up."""
        limit_s = self._config.limits.max_runtime_s
        if limit_s and time.perf_counter() - self._started_s >= limit_s:
            self._stop.ask(ExitCode.STOPPED_EARLY)
        return self._stop.requested

    def conclude(self) -> Summary:
        """The summary of a run that did not fail."""
        counts, total = self._tally, self._total_rows
        if total is None or counts.rows < total:
            code = self._stop.exit_code or ExitCode.UNEXPECTED
            state = JobState.INTERRUPTED if code is ExitCode.INTERRUPTED else JobState.STOPPED
            how_far = "the inputs are not all found" if total is None else f"{counts.rows} of {total} rows are done"
            how_far += self._of_this_run()
            return self.write_summary(state, code, f"{how_far}; run the same command again to go on")
        parts = self._folder.part_paths()
        where = str(parts[0]) if len(parts) == 1 else f"{parts[0].with_name('part-*.parquet')} ({len(parts)} files)"
        where = one_line(where)
        prompts = len(self._config.generation.prompts)
        message = f"{counts.ok}{f' x {prompts}' if prompts > 1 else ''} captions"
        message += " of the demo model" if self._bundle.source == DEMO_MODEL else ""
        message += f", {counts.failed} failed"
        message += f"{self._of_this_run()}: {where}"
        code = ExitCode.COMPLETE
        if counts.failed and not counts.ok:
            code = ExitCode.TOO_MANY_FAILURES
            message += "; nothing was captioned"
        elif counts.error_rate > self._config.limits.max_error_rate:
            code = ExitCode.TOO_MANY_FAILURES
            message += f"; more failures than --max-error-rate {self._config.limits.max_error_rate:g} allows"
        if reason := why_alike(self._folder, counts, self._config.input):
            message += f"; {reason}"
        return self.write_summary(JobState.COMPLETE, code, message)

    def _of_this_run(self) -> str:
        """What this run did, for a result line; nothing where nothing was left to do."""
        run = self._figures
        if run is None:
            return ""
        facts = [f"{run.images} images in {format_duration(run.elapsed_s)}"]
        if run.images:
            facts.append(f"{run.images_per_min:.1f} images/min after loading")
        if run.twins:
            facts.append(f"{run.twins} copies")
        return f" (this run: {', '.join(facts)})"

    def write_failure(self, code: ExitCode, message: str) -> None:
        """Write `summary.json` of a run that failed, if what made it fail allows that, and the folder is this job's."""
        with suppress(StorageError):
            if self._is_our_folder or is_known_job(self._folder, self._config):
                self.write_summary(JobState.FAILED, code, message)

    def write_summary(self, state: JobState, code: ExitCode, message: str) -> Summary:
        """Write `summary.json`."""
        bundle = {"id": self._bundle.id, "source": self._bundle.source, "precision": self._bundle.precision}
        summary = Summary(
            state,
            code,
            message,
            self._total_rows,
            self._tally,
            self._figures,
            bundle,
            self._limited_by,
            skipped_inputs=dict(self._skipped.images),
            parts_left=self._recorder.parts_left if self._recorder else None,
        )
        _write_summary(self._folder, summary)
        return summary


def part_metadata_of(bundle: Bundle, fingerprint: Fingerprint) -> dict[str, str]:
    """What every part says of itself: the model, and the settings that decided its captions."""
    asked = fingerprint["prompt"]
    prompt = asked if isinstance(asked, str) else json.dumps(asked, ensure_ascii=False)
    return {  # a path, or a prompt still to be refused, may be no text
        "batchcap.version": __version__,
        "batchcap.bundle": json.dumps({"id": bundle.id, "source": bundle.source, "precision": bundle.precision}),
        SETTINGS_KEY: json.dumps(fingerprint, ensure_ascii=False).encode(errors="backslashreplace").decode(),
        "batchcap.prompt_sha256": hashlib.sha256(prompt.encode(errors="backslashreplace")).hexdigest(),
    }
