"""Owns one run of a job, as a call: the folder is held, the plan brought up to date, and what is left is captioned.

No signals, no model export and no `sys.exit` are in here: the command line brings those, and so may any other caller.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from itertools import chain
from pathlib import Path

from batchcap.config import JobConfig
from batchcap.core.errors import BatchcapError, ExitCode, NotSameJobError, StorageError, UsageError
from batchcap.core.prompts import caption_key
from batchcap.core.records import Request, Shard
from batchcap.core.sources import Source
from batchcap.engines.base import Engine
from batchcap.engines.config import EngineConfig
from batchcap.engines.dedup import REMEMBERED_IMAGES
from batchcap.engines.local import LocalEngine
from batchcap.inputs.discover import discover
from batchcap.inputs.skipped import Skipped
from batchcap.job.bottleneck import find_bottleneck
from batchcap.job.changes import ChangedInputs
from batchcap.job.conclusion import Conclusion, record_early_failure
from batchcap.job.loop import caption_rows
from batchcap.job.monitor import Monitor
from batchcap.job.open_shards import OpenShards
from batchcap.job.operations import Operations
from batchcap.job.other_forms import OtherForms
from batchcap.job.outage import Outage
from batchcap.job.part_writer import PartWriter
from batchcap.job.plan import Plan
from batchcap.job.progress import Progress
from batchcap.job.recorder import Recorder
from batchcap.job.retry import RetryPlanner
from batchcap.job.settings import RunSettings, part_metadata_of, settle_settings
from batchcap.job.stop import StoppedError, StopRequest
from batchcap.job.summary import Summary
from batchcap.model.bundle import Bundle
from batchcap.model.prompt import bundle_opens_thinking
from batchcap.remote.attempts import NetworkError
from batchcap.store.folder import JobFolder
from batchcap.store.journal import Journal
from batchcap.store.lock import job_lock
from batchcap.store.parts import passthrough_schema
from batchcap.store.place import Place
from batchcap.store.shard_state import require_known_parts
from batchcap.store.stats import StatsWriter

log = logging.getLogger(__name__)

# A model that thinks first seldom comes to its caption in fewer tokens.
FEW_TOKENS_FOR_THINKING = 1024

EngineFactory = Callable[[EngineConfig], Engine]
ModelLoader = Callable[[str | None], Bundle]
Stopping = AbstractContextManager[StopRequest]


def load_bundle(model: str | None) -> Bundle:
    """The bundle in a folder, every file checked against its sum.

    Raises:
        BundleError: the folder is not a whole bundle.
        UsageError: no model is named.
    """
    if model is None:
        raise UsageError("no model is named: name the folder of a bundle")
    return Bundle.load(model)


def run_job(
    config: JobConfig,
    progress: Progress,
    make_engine: EngineFactory = LocalEngine,
    load_model: ModelLoader | None = None,
    stopping: Stopping | None = None,
) -> Summary:
    """Caption what is left of a job; the same call begins it and resumes it.

    Args:
        config: the job.
        progress: told how far it is.
        make_engine: where the stages run.
        load_model: gives the model that the job names. None: `load_bundle`.
        stopping: entered before the folder is held, and left after the program at the end; gives the request that says
            when to stop. None: never.

    Returns:
        How the job stands; also written to `summary.json`.

    Raises:
        BatchcapError: an error that is not about one row. It is in `summary.json` too where there is a job folder,
            unless another run holds it, or it is another job's: then nothing in it changes.
    """
    started_s = time.perf_counter()
    output, operations = Path(config.output), Operations(config)
    operations.require_places()
    with operations.end_told():
        try:
            skipped = Skipped()
            sources = discover(config.input, output, skipped)
            begun = chain([next(sources)], sources)  # inputs that are not there are told before a folder is made
            place = Place.of(output)
            bundle = (load_model or load_bundle)(config.model)
        except BatchcapError as error:
            record_early_failure(output, config, error)
            raise
        folder = JobFolder.open_or_create(output)
        with (
            stopping or nullcontext(StopRequest()) as stop,
            operations.command_after(stop),
            job_lock(folder),
        ):
            place = place.once_held()
            run = JobRun(Conclusion(config, folder, bundle, skipped), operations, stop, started_s)
            operations.begin(run.conclusion)
            with _failure_told(run, place, operations):
                run.work(begun, progress, make_engine)
            return run.succeed()


@contextmanager
def _failure_told(run: "JobRun", place: Place, operations: Operations) -> Iterator[None]:
    """An error that ends the run is told in the job folder; a new folder that came to nothing is removed."""
    try:
        yield
    except NotSameJobError as error:
        run.refuse(error)  # the folder is another job's, and so is its summary
        raise
    except BatchcapError as error:
        if isinstance(error, NetworkError):
            operations.outage(error)
        run.fail(error.exit_code, str(error))
        if error.exit_code is ExitCode.USAGE and not run.has_plan:
            place.remove_if_new()
        raise
    except Exception as error:
        run.fail(ExitCode.UNEXPECTED, f"unexpected {type(error).__name__}: {error}")
        raise


class JobRun:
    """One run of a job whose folder is held."""

    def __init__(self, conclusion: Conclusion, operations: Operations, stop: StopRequest, started_s: float) -> None:
        self.conclusion = conclusion
        self._operations = operations
        self._config, self._folder, self._bundle = conclusion.config, conclusion.folder, conclusion.bundle
        self._stop = stop
        self._started_s = started_s
        self._is_our_folder = False

    @property
    def has_plan(self) -> bool:
        """Whether the run has come as far as to know its rows."""
        return self.conclusion.facts.total_rows is not None

    def fail(self, code: ExitCode, message: str) -> None:
        """Say in the folder why the run ended."""
        summary = self.conclusion.of_failure(code, message, is_our_folder=self._is_our_folder)
        self._operations.ended(summary)

    def refuse(self, error: NotSameJobError) -> None:
        """Say that the folder is another job's, but not in it."""
        self._operations.ended(self.conclusion.of_refusal(error))

    def succeed(self) -> Summary:
        """Say in the folder how the job stands."""
        summary = self.conclusion.of_success(self._stop)
        self._operations.ended(summary)
        return summary

    def work(self, sources: Iterable[Source], progress: Progress, make_engine: EngineFactory) -> None:
        """Check that it is the same job, bring the plan up to date, caption what is left."""
        folder, facts = self._folder, self.conclusion.facts
        settings = settle_settings(self._config, self._bundle, folder)
        self._is_our_folder, facts.config = True, settings.config
        folder.remove_leftovers()
        with closing(Journal.open(folder.journal_path)) as journal:
            require_known_parts(folder, journal)
            try:
                plan = self._planned(journal, settings.config, sources)
                self._reopen(journal, plan, settings)
            except StoppedError:
                return  # a plan that is not whole is not kept: the next run must cut the same parts
            shards = OpenShards(folder, plan, journal)
            metadata, prompts = (
                part_metadata_of(self._bundle, settings.fingerprint),
                self._config.generation.prompt_names,
            )
            with closing(OtherForms(folder, plan, self._config)) as forms:
                forms.check()
                is_written = self._is_written(forms)
                parts = PartWriter(folder, plan, journal, metadata, prompts, is_written)
                recorder = Recorder(folder, journal, shards, parts)
                facts.total_rows, facts.counts, facts.shards = plan.total_rows, recorder.counts, shards
                facts.failures = recorder.failures
                self._operations.planned()
                recorder.write_whole_parts()
                if recorder.counts.rows < plan.total_rows and not self._stop_in_time():
                    self._caption(settings, recorder, shards, progress, make_engine)
                facts.other_forms = forms.finish(is_complete=recorder.counts.rows == plan.total_rows)

    def _is_written(self, forms: OtherForms) -> Callable[[Shard], None]:
        """What follows each part."""

        def follow(shard: Shard) -> None:
            self._operations.part_written(self._folder.part_path(shard.seq), shard)
            forms.write_part(shard)

        return follow

    def _planned(self, journal: Journal, config: JobConfig, sources: Iterable[Source]) -> Plan:
        """The plan with what was found now in it."""
        written = passthrough_schema(self._folder.part_paths())
        plan = Plan(journal, config.input, config.generation.prompt_names, written)
        plan.extend(self._until_stopped(sources), config.placement.rows_per_part, config.limits.limit)
        return plan

    def _until_stopped(self, sources: Iterable[Source]) -> Iterator[Source]:
        for source in sources:
            if self._stop_in_time():
                raise StoppedError
            yield source

    def _reopen(self, journal: Journal, plan: Plan, settings: RunSettings) -> None:
        """Choose the finished rows that are captioned again; take in what inputs have got since."""
        retry = RetryPlanner(self._folder, journal, plan, settings.of_retry)
        is_interrupted = retry.resume_pending()
        changes = ChangedInputs(self._folder, journal, plan, settings.of_retry, self._stop_in_time)
        changes.handle(self._config.resume.on_changed)
        retry.retry(self._config.resume.retry, is_interrupted=is_interrupted)
        journal.checkpoint()

    def _caption(
        self,
        settings: RunSettings,
        recorder: Recorder,
        shards: OpenShards,
        progress: Progress,
        make_engine: EngineFactory,
    ) -> None:
        self._say_what_comes(settings)
        facts = self.conclusion.facts
        stats = StatsWriter(self._folder.stats_path)
        monitor = Monitor(stats, progress, self._started_s, self._operations.measured)
        asked = settings.config.generation
        prompts, sampling = asked.prompts, asked.sampling
        with closing(make_engine(EngineConfig.of_job(self._bundle, settings.config))) as engine:
            engine.start(self._stop_in_time)
            key = caption_key(prompts, sampling)
            if key is not None and not settings.of_retry:
                engine.seed_dedup(key, shards.captioned_images(REMEMBERED_IMAGES))
            progress.start(facts.total_rows or 0, recorder.counts.rows)
            to_do = shards.rows_to_do()
            requests = (Request(row, prompts, sampling, recorder.attempt(row.index)) for row in to_do)
            outage = Outage(settings.config.input.inputs)
            try:
                caption_rows(requests, recorder, engine, monitor, outage, self._stop_in_time)
            except BaseException:
                # A full disk refuses these too; the error that ended the work is the one to tell.
                with suppress(StorageError):
                    self._finish_stats(settings.config, monitor, stats)
                raise
            self._finish_stats(settings.config, monitor, stats)

    def _finish_stats(self, config: JobConfig, monitor: Monitor, stats: StatsWriter) -> None:
        facts = self.conclusion.facts
        facts.metrics = monitor.end()
        facts.limited_by = find_bottleneck(facts.metrics, config)
        if facts.limited_by is not None:
            log.info("%s", facts.limited_by.to_text())
        stats.write()

    def _stop_in_time(self) -> bool:
        """Whether to stop: somebody asked, or the time is up."""
        limit_s = self._config.limits.max_runtime_s
        if limit_s and time.perf_counter() - self._started_s >= limit_s:
            self._stop.ask(ExitCode.STOPPED_EARLY, "max_runtime")
        if self._stop.requested:
            self._operations.stopping(self._stop)
        return self._stop.requested

    def _say_what_comes(self, settings: RunSettings) -> None:
        generation = settings.config.generation
        if generation.max_new_tokens < FEW_TOKENS_FOR_THINKING and bundle_opens_thinking(self._bundle):
            log.warning(
                "this is a Thinking model, and its thoughts count as new tokens: if they use up --max-new-tokens %d, "
                "the caption is empty and its verdict `truncated`. Give %d or more.",
                generation.max_new_tokens,
                FEW_TOKENS_FOR_THINKING,
            )
        if len(names := generation.prompt_names) > 1:
            log.info("asking %d prompts of each image: %s", len(names), ", ".join(names))
        for remark in settings.remarks:
            log.info("%s", remark)
        log.info("loading the model")
