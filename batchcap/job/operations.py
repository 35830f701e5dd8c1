"""Owns who is told how a run goes, and when: the metrics, the events, the program at its end.

Nothing of it can end a run: what can't be written is told once, as a warning.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from batchcap import __version__
from batchcap.config import JobConfig
from batchcap.core.errors import BatchcapError, ExitCode, StorageError, UsageError
from batchcap.core.records import Shard
from batchcap.core.row_counts import RowCounts
from batchcap.core.text import one_line, shown_name
from batchcap.job.conclusion import Conclusion, RunFacts
from batchcap.job.events import EventLog
from batchcap.job.metrics import Figures, MetricsFile, RunState
from batchcap.job.on_end import run_on_end
from batchcap.job.stop import StopRequest
from batchcap.job.summary import JobState, Summary, last_success_of, timestamp_of
from batchcap.remote.attempts import NetworkError
from batchcap.store.folder import JobFolder
from batchcap.store.lock import read_holder, read_summary

log = logging.getLogger(__name__)


class Operations:
    """Tells how one run goes.

    Args:
        config: the job.
    """

    def __init__(self, config: JobConfig) -> None:
        told, output = config.operations, Path(os.path.abspath(config.output))  # noqa: PTH100 - resolves no link
        self._output = output
        self._prompts = len(config.generation.prompts)
        self._on_end = told.on_end
        self._model = config.model or ""
        job = shown_name(output.name)
        self._job = job
        self._metrics = MetricsFile(_path(told.metrics), job, self._model) if told.metrics else None
        self._events = EventLog(_path(told.events), job) if told.events else None
        self._has_warned: set[str] = set()
        self._started_s = time.time()
        self._facts = RunFacts()
        self._before: tuple[float | None, int | None, float | None] = (None, None, None)
        self._figures: Figures | None = None
        self._restarts = 0
        self._has_said_stop = False
        self._ended: Summary | None = None
        self._folder: JobFolder | None = None

    def require_places(self) -> None:
        """Refuse files among the parts, which readers would take for one of them.

        Raises:
            UsageError: one is to be written there.
        """
        for file in (self._metrics, self._events):
            if file is not None and Path(os.path.realpath(file.path)).parent == Path(os.path.realpath(self._output)):
                raise UsageError(
                    f"{shown_name(str(file.path))} would be among the parts in the job folder: name a file in another "
                    "folder for --metrics and --events"
                )

    @contextmanager
    def end_told(self) -> Iterator[None]:
        """Whatever error ends what is inside is told, also before the folder is held."""
        try:
            yield
        except Exception as error:
            self._told(error)
            raise

    @contextmanager
    def command_after(self, stop: StopRequest) -> Iterator[None]:
        """Run the program at the end, after what is inside, if the folder was held."""
        try:
            yield
        except Exception as error:
            self._run_command(self._told(error), stop)
            raise
        if self._ended is not None:
            self._run_command(self._ended, stop)

    def _told(self, error: Exception) -> Summary:
        """The end that was told, or is told now: the run came to no summary."""
        if self._ended is not None:
            return self._ended
        code = error.exit_code if isinstance(error, BatchcapError) else ExitCode.UNEXPECTED
        summary = Summary(JobState.FAILED, code, str(error), None, RowCounts(), None, None)
        self.ended(summary)
        return summary

    def begin(self, conclusion: Conclusion) -> None:
        """The folder is held, and the run begins."""
        self._folder, self._facts = conclusion.folder, conclusion.facts
        self._look_back(conclusion.folder)
        self._write_metrics()
        self._add(
            "run_started",
            output=shown_name(str(self._output)),
            host=socket.gethostname(),
            version=__version__,
            model=self._model,
        )

    def planned(self) -> None:
        """The rows of the job are known."""
        facts = self._facts
        self._write_metrics()
        self._add("rows_planned", rows=facts.total_rows, done=facts.counts.rows)

    def part_written(self, part: Path, shard: Shard) -> None:
        """A part file is there."""
        self._add("part_written", part=part.name, rows=shard.rows, done=self._facts.counts.rows)

    def measured(self, figures: Figures) -> None:
        """The monitor has taken a sample."""
        self._figures = figures
        for restart in figures.load.restarts[self._restarts :]:
            self._add("worker_restarted", worker=restart.worker, reason=one_line(restart.reason))
        self._restarts = len(figures.load.restarts)
        self._write_metrics()

    def stopping(self, stop: StopRequest) -> None:
        """The run is asked to stop; told once."""
        if not self._has_said_stop:
            self._has_said_stop = True
            code = None if stop.exit_code is None else int(stop.exit_code)
            self._add("stopping", reason=stop.reason, exit_code=code)

    def ended(self, summary: Summary) -> None:
        """The run has ended."""
        self._ended = summary
        facts = self._facts
        # A run that did not come to hold the folder must not speak for the one that does.
        if self._folder is not None or not self._is_another_at_work():
            self._write_metrics()
        is_known = facts.total_rows is not None
        counts = facts.counts.to_dict() if is_known else dict.fromkeys(RowCounts().to_dict())
        self._add(
            "run_ended",
            state=str(summary.state),
            exit_code=int(summary.exit_code),
            message=one_line(summary.message),
            seconds=round(time.time() - self._started_s, 1),
            planned=facts.total_rows,
            **counts,
        )

    def outage(self, error: NetworkError) -> None:
        """The network is gone, which ends the run."""
        self._add("outage", message=one_line(str(error)))

    def _is_another_at_work(self) -> bool:
        with suppress(BatchcapError):
            folder = JobFolder.open_existing(self._output)
            self._look_back(folder)
            return read_holder(folder) is not None
        return False

    def _look_back(self, folder: JobFolder) -> None:
        """Take in how earlier runs have ended."""
        before = read_summary(folder)
        ended_s, success_s = timestamp_of((before or {}).get("ended_at")), timestamp_of(last_success_of(before))
        code = (before or {}).get("exit_code")
        self._before = (ended_s, code if isinstance(code, int) else None, success_s)

    def _state(self) -> RunState:
        ended_s, code, success_s = self._before
        if self._ended is not None:
            ended_s, code = timestamp_of(self._ended.ended_at), int(self._ended.exit_code)
            success_s = ended_s if self._ended.exit_code is ExitCode.COMPLETE else success_s
        return RunState(
            started_s=self._started_s,
            now_s=time.time(),
            is_running=self._ended is None,
            ended_s=ended_s,
            exit_code=code,
            last_success_s=success_s,
            total_rows=self._facts.total_rows,
            counts=self._facts.counts,
            captions_an_image=self._prompts,
            figures=self._figures,
        )

    def _write_metrics(self) -> None:
        file = self._metrics
        if file is not None:
            self._attempt("--metrics", lambda: file.write(self._state()))

    def _add(self, event: str, **fields: object) -> None:
        file = self._events
        if file is not None:
            self._attempt("--events", lambda: file.add(event, **fields))

    def _attempt(self, option: str, write: Callable[[], None]) -> None:
        try:
            write()
        except StorageError as error:
            if option not in self._has_warned:
                self._has_warned.add(option)
                log.warning("%s: can't write (%s); captioning goes on", option, one_line(str(error.__cause__ or error)))

    def _run_command(self, summary: Summary, stop: StopRequest) -> None:
        if self._on_end is None or self._folder is None:
            return
        was_stopped = stop.requested  # that was the run, and its end is still to be told
        path = self._folder.summary_path
        is_ours = self._facts.is_summed_up and path.exists()  # a folder that came to nothing has been removed
        told = {
            "BATCHCAP_EXIT_CODE": str(int(summary.exit_code)),
            "BATCHCAP_STATE": str(summary.state),
            "BATCHCAP_MESSAGE": one_line(summary.message),
            "BATCHCAP_JOB": self._job,
            "BATCHCAP_OUTPUT": str(self._output),
            "BATCHCAP_SUMMARY": os.path.abspath(path) if is_ours else "",  # noqa: PTH100
        }
        run_on_end(self._on_end, told, lambda: stop.requested and not was_stopped)


def _path(name: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(name)))  # noqa: PTH100, PTH111 - resolves no link, takes any user
