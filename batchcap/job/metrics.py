"""Owns the metrics of a run for Prometheus: their names, and the text file that node_exporter's collector reads."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from batchcap import __version__
from batchcap.core.atomic import Leftovers, write_atomic
from batchcap.core.errors import ErrorKind
from batchcap.core.machine import MIB
from batchcap.core.records import Verdict
from batchcap.core.row_counts import RowCounts
from batchcap.core.text import shown_name
from batchcap.engines.base import EngineLoad
from batchcap.store.stats import STAGES

# The kinds of workers; `decoder 1` is one of the second.
WORKERS = ("vision", "decoder")


@dataclass(frozen=True, slots=True)
class Figures:
    """What the monitor has measured.

    Attributes:
        load: of the engine.
        images_per_s: images captioned a second in the last minutes.
        memory_mib: of all processes together, when it was last measured.
        peak_memory_mib: most memory so far.
    """

    load: EngineLoad
    images_per_s: float
    memory_mib: float
    peak_memory_mib: float


@dataclass(frozen=True, slots=True)
class RunState:
    """How a run stands; times are seconds since 1970.

    Attributes:
        started_s: begin of the run.
        now_s: the time of this state.
        is_running: whether it has not ended.
        ended_s: end of the last run that ended in good order, this one or an earlier one; None: of none is known.
        exit_code: of that run.
        last_success_s: end of the last run with exit code 0; None: there was none.
        total_rows: rows of the job; None where they are not counted yet, then nothing is known of `counts` either.
        counts: of the rows that have finished.
        captions_an_image: how many prompts are asked.
        figures: None where nothing has been measured.
    """

    started_s: float
    now_s: float
    is_running: bool
    ended_s: float | None
    exit_code: int | None
    last_success_s: float | None
    total_rows: int | None
    counts: RowCounts
    captions_an_image: int
    figures: Figures | None


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric with the values of its labels.

    Attributes:
        name: by Prometheus's conventions.
        kind: gauge or counter.
        help: what it is, always the same: node_exporter compares it between files.
        label: the label that tells its samples apart; "": there is one sample.
        values: by that label.
    """

    name: str
    kind: str
    help: str
    label: str
    values: Mapping[str, float]


def metrics_of(state: RunState) -> Iterator[Metric]:
    """The metrics of a run; what is not known is left out, what there is none of is 0."""
    yield _gauge("running", "Whether a run is at work (1) or has ended (0).", int(state.is_running))
    yield _gauge("update_timestamp_seconds", "When these metrics were written.", state.now_s)
    yield _gauge("start_timestamp_seconds", "When the current or last run began.", state.started_s)
    if state.exit_code is not None and state.ended_s is not None:
        yield _gauge("last_end_timestamp_seconds", "When the last run that has ended did so.", state.ended_s)
        yield _gauge("last_exit_code", "Exit code of the last run that has ended.", state.exit_code)
    success = "When the last run with exit code 0 ended; 0: there was none."
    yield _gauge("last_success_timestamp_seconds", success, state.last_success_s or 0)
    if state.total_rows is not None:
        yield from _of_rows(state.total_rows, state.counts)
    if state.figures is not None:
        yield from _of_figures(state.figures, state.captions_an_image if state.is_running else 0)


def _of_rows(total: int, counts: RowCounts) -> Iterator[Metric]:
    yield _gauge("rows_planned", "Rows of the job.", total)
    by_status = {"ok": counts.ok, "failed": counts.failed}
    yield _counter("rows_total", "Rows of the job that have finished, of all runs.", "status", by_status)
    by_kind = {str(kind): counts.error_kinds[str(kind)] for kind in ErrorKind}
    yield _counter("rows_failed_total", "Rows of the job that have failed, of all runs.", "kind", by_kind)
    by_verdict = {str(verdict): counts.verdicts[str(verdict)] for verdict in Verdict}
    yield _counter("captions_total", "Captions of the job, of all runs.", "verdict", by_verdict)
    yield _counter("tokens_total", "Tokens of all captions of the job, of all runs.", "", {"": counts.new_tokens})


def _of_figures(figures: Figures, captions_an_image: int) -> Iterator[Metric]:
    load = figures.load
    rate = captions_an_image * figures.images_per_s
    yield _gauge("captions_per_second", "Captions a second over the last two minutes; 0 after the run.", rate)
    rows = {"read": load.reading_rows, "queue": load.queue_rows, "decode": load.decoding_rows}
    yield Metric("batchcap_rows_in_progress", "gauge", "Rows under way, by where they are.", "stage", rows)
    yield _gauge("queue_bytes", "Memory of encoded images that wait for a decoder.", round(load.queue_mib * MIB))
    busy_s = {stage: load.busy_s.get(stage, 0.0) for stage in STAGES}
    help_text = "Seconds of work in this run, summed over the workers of a stage."
    yield _counter("stage_busy_seconds_total", help_text, "stage", busy_s)
    help_text = "Memory of all processes together, shared pages counted once."
    yield _gauge("memory_bytes", help_text, round(figures.memory_mib * MIB))
    yield _gauge("memory_peak_bytes", "Most memory in this run.", round(figures.peak_memory_mib * MIB))
    restarts = dict.fromkeys(WORKERS, 0)
    for restart in load.restarts:
        restarts[restart.worker.partition(" ")[0]] += 1
    yield _counter("worker_restarts_total", "Workers started again in this run.", "worker", restarts)


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return Metric(f"batchcap_{name}", "gauge", help_text, "", {"": value})


def _counter(name: str, help_text: str, label: str, values: Mapping[str, float]) -> Metric:
    return Metric(f"batchcap_{name}", "counter", help_text, label, values)


def exposition_of(state: RunState, job: str, model: str) -> str:
    """The metrics in Prometheus's text format.

    Args:
        state: of the run.
        job: value of the label `job` of every sample.
        model: of the run.
    """
    lines = []
    ours = {"job": job}
    about = Metric("batchcap_info", "gauge", "The version of batchcap and the model, always 1.", "", {"": 1})
    for metric in (about, *metrics_of(state)):
        lines += [f"# HELP {metric.name} {_escaped_help(metric.help)}", f"# TYPE {metric.name} {metric.kind}"]
        more = {"version": __version__, "model": model} if metric is about else {}
        for value, number in metric.values.items():
            labels = {**ours, **more, **({metric.label: value} if metric.label else {})}
            shown = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
            lines.append(f"{metric.name}{{{shown}}} {number!r}")
    return "\n".join(lines) + "\n"


def _escaped_help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _escaped(text: str) -> str:
    """The value of a label, which may be any name; on one line, and UTF-8."""
    return shown_name(text).replace("\\", r"\\").replace('"', r"\"")


class MetricsFile:
    """The file, written as a whole each time.

    Args:
        path: of it.
        job: value of the label `job`.
        model: of the run.
    """

    def __init__(self, path: Path, job: str, model: str) -> None:
        self.path = path
        self._job = job
        self._model = model
        self._has_looked = False

    def write(self, state: RunState) -> None:
        """Write how the run stands.

        Raises:
            StorageError: the file can't be written.
        """
        if not self._has_looked:  # for what a killed run has left half-written
            Leftovers().remove([self.path])
            self._has_looked = True
        write_atomic(self.path, exposition_of(state, self._job, self._model).encode())
