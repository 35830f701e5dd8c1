"""Owns one call of `batchcap tune`: the time it may take, what is told meanwhile, what is kept."""

import dataclasses
import logging
import math
import os
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from batchcap.config import InputConfig, JobConfig
from batchcap.core.errors import BatchcapError, UsageError
from batchcap.core.machine import MIB, available_cores, available_memory_bytes, busy_cpu_s
from batchcap.core.text import aligned, format_duration
from batchcap.engines.capacity import fitted_to_memory, memory_need
from batchcap.engines.config import EngineConfig
from batchcap.engines.cores import Threads, usable_cores
from batchcap.engines.profiles import Settings, Tuned, is_w8a8
from batchcap.engines.tuned import TuningKey, write_tuned
from batchcap.engines.tuning.measure import NEW_TOKENS, VISUAL_TOKENS, Timing, Track, rows_for
from batchcap.engines.tuning.search import MIN_ROWS_A_DECODER, Machine, Search, Trial, encoders_for, moves_for
from batchcap.model.bundle import Bundle
from batchcap.vision.dtype import resolve_encoder

log = logging.getLogger(__name__)

# The images of one candidate take about this part of the time; loading its models comes on top.
CANDIDATE_SHARE = 1 / 8
# What other programs may take of the processor before the numbers are called rough.
OTHERS_SHARE = 0.1
_HEADERS = ("images/min", "vision", "vision threads", "decoders", "threads each", "slots", "patch budget", "")


@dataclass(frozen=True, slots=True)
class TuneResult:
    """What was found.

    Attributes:
        trials: what was measured; the first is the default.
        best: the fastest of them.
        untried: how many candidates there was no time for.
        path: where it is kept.
        rows: images of each measurement.
        others_share: part of the processor that other programs took meanwhile.
    """

    trials: list[Trial]
    best: Trial
    untried: int
    path: Path
    rows: int
    others_share: float

    @property
    def speedup(self) -> float:
        """Of the best over the default."""
        return self.best.images_per_min / self.trials[0].images_per_min

    def to_text(self) -> str:
        """A table for a person, the best marked."""
        what = (
            f"{self.rows} images of {VISUAL_TOKENS} visual tokens and at most {NEW_TOKENS} new ones each, a quarter "
            "of everyday work: compare these rates with each other only"
        )
        said = [*aligned([_HEADERS, *(_cells(trial, self._remark(trial)) for trial in self.trials)]), "", what]
        if self.best is self.trials[0]:
            said.append("nothing was faster than the defaults")
        else:
            said.append(f"the best is {self.speedup:.2f} times as fast as the defaults")
        if self.rows < 2 * MIN_ROWS_A_DECODER:
            said.append(
                "so few images can't tell what a second decoder would gain, so none was tried: --minutes gives more"
            )
        if self.others_share > OTHERS_SHARE:
            said.append(
                f"other programs took {self.others_share:.0%} of the processor meanwhile, so this may be chance: "
                "run it again when nothing else runs"
            )
        if self.untried:
            said.append(f"no time was left for {self.untried} more candidates: --minutes gives it")
        said.append(f"kept in {self.path}; jobs with this bundle on this machine use it (--profile auto)")
        return "\n".join(said)

    def _remark(self, trial: Trial) -> str:
        remarks = [trial.note] if trial.note else []
        remarks += ["default"] if trial is self.trials[0] else []
        remarks += ["best"] if trial is self.best else []
        remarks += [f"measured {len(trial.row_s)} times"] if len(trial.row_s) > 1 else []
        return ", ".join(remarks)


def _cells(trial: Trial, remark: str) -> tuple[str, ...]:
    settings = trial.settings
    threads = _threads(settings)
    return (
        trial.rate_text,
        " ".join(settings.encoder),
        str(threads.vision),
        str(threads.decoders),
        str(threads.decoder),
        str(settings.slots),
        str(settings.patch_budget),
        remark,
    )


def _threads(settings: Settings) -> Threads:
    return Threads.of(settings.applied_to(_everyday_job()).placement, available_cores())


def _everyday_job() -> JobConfig:
    return JobConfig(InputConfig(("pictures",)), "captions")


@dataclass(slots=True)
class _Course:
    """The measurements of one call."""

    bundle: Bundle
    track: Track
    ends_s: float
    budget_s: float
    rows: int = 0
    overhead_s: float = 0.0
    count: int = 0

    def first(self, settings: Settings) -> Trial:
        self._tell(settings)
        began_s = time.perf_counter()
        self.rows, timing = self.track.first(settings, self._plan)
        return self._done(settings, timing, began_s, math.inf)

    def _plan(self, load_s: float, row_s: float) -> int:
        """How many images each candidate is timed with; so many that some can be compared."""
        rows = rows_for(CANDIDATE_SHARE * self.budget_s / row_s)
        candidate_s = load_s + rows * row_s
        if 3 * candidate_s > self.budget_s:  # the default's and two more
            raise UsageError(
                f"--minutes {self.budget_s / 60:g} is too short for this model on this machine: one measurement takes "
                f"about {candidate_s:.0f} s, so --minutes {math.ceil(8 * candidate_s / 60)} would leave time for some"
            )
        return rows

    def measure(self, settings: Settings, give_up_row_s: float) -> Trial:
        need = memory_need(EngineConfig.of_job(self.bundle, settings.applied_to(_everyday_job())))
        if need.slots_within(available_memory_bytes(), settings.slots) < settings.slots:
            return Trial(
                settings, note=f"needs {need.total(settings.slots) // MIB:,} MiB: too much for the free memory"
            )
        self._tell(settings)
        began_s = time.perf_counter()
        try:
            timing = self.track.time(settings, self.rows, self.rows * give_up_row_s)
        except BatchcapError as error:  # it may be what this candidate needs that is not there; the others may work
            log.warning("not measured: %s", error)
            return Trial(settings, note="failed")
        return self._done(settings, timing, began_s, give_up_row_s)

    def has_time(self, row_s: float) -> bool:
        """For two measurements."""
        return time.perf_counter() + 2 * (self.overhead_s + self.rows * row_s) <= self.ends_s

    def _tell(self, settings: Settings) -> None:
        self.count += 1
        threads = _threads(settings)
        left_s = max(0.0, self.ends_s - time.perf_counter())
        log.info(
            "measuring %d: vision %s on %d threads, decoders %d with %d threads and %d slots, %d patches; %s left",
            self.count,
            " ".join(settings.encoder),
            threads.vision,
            threads.decoders,
            threads.decoder,
            settings.slots,
            settings.patch_budget,
            format_duration(left_s),
        )

    def _done(self, settings: Settings, timing: Timing, began_s: float, give_up_row_s: float) -> Trial:
        row_s = give_up_row_s if timing.row_s is None else timing.row_s
        self.overhead_s = max(self.overhead_s, time.perf_counter() - began_s - self.rows * row_s)
        if timing.row_s is None:
            return Trial(settings, note="given up", below=60 / give_up_row_s)
        log.info("%.1f images/min", 60 / timing.row_s)
        return Trial(settings, [timing.row_s])


def require_minutes(minutes: float) -> None:
    """Refuse a time that no tuning takes; asked before a model is loaded.

    Raises:
        UsageError: it is not above 0 and less than a day.
    """
    if not 0 < minutes < 24 * 60:
        raise UsageError("--minutes must be above 0, and less than a day")


def tune(bundle: Bundle, minutes: float, *, rounded_vision: bool) -> TuneResult:
    """Find the fastest settings for a bundle on this machine, and keep them.

    Args:
        bundle: the model.
        minutes: time it may take about, as `require_minutes` lets it pass; the last measurement may end a little later.
        rounded_vision: try vision encoders, too, that round more than the default one, and so change captions.

    Raises:
        UsageError: the time is too short to compare anything, the memory is too small for the model, or the result
            can't be kept.
    """
    began_s = time.perf_counter()
    path = TuningKey.here(bundle.id).path  # a machine without a place for it is told before the work
    start = _start(bundle)
    before = _Processor.now()
    budget_s = 60 * minutes
    course = _Course(bundle, Track(bundle), began_s + budget_s, budget_s)
    default = course.first(start)
    machine = Machine(available_cores(), min(len(usable_cores()), available_cores()), find_spec("torch") is not None)
    encoders = encoders_for(start.encoder, machine, rounded=rounded_vision)
    moves = moves_for(machine, course.rows, w8a8=is_w8a8(bundle), encoders=encoders)
    search = Search(moves, course.measure, course.has_time, [default])
    best = search.run()
    if search.untried and not any(trial.row_s or trial.below for trial in search.trials[1:]):
        default_s = course.overhead_s + course.rows * default.typical_row_s
        raise UsageError(
            f"--minutes {minutes:g} left no time to compare the defaults with anything: they took {default_s:.0f} s "
            f"alone, so --minutes {math.ceil(8 * default_s / 60)} would do"
        )
    result = TuneResult(
        search.trials, best, len(search.untried), path, course.rows, _Processor.now().others_share_since(before)
    )
    settings = best.settings
    if settings.slots == start.slots:  # what fits is found out by every job for itself
        settings = replace(settings, slots=Settings().slots)
    write_tuned(
        bundle.id,
        Tuned(settings, datetime.now(UTC), result.speedup, rounded_vision),
        [_measured(trial) for trial in search.trials],
    )
    return result


def _start(bundle: Bundle) -> Settings:
    """The defaults, as many slots as fit, the encoder that a job would take by itself."""
    job = _everyday_job()
    fitted = fitted_to_memory(EngineConfig.of_job(bundle, job))
    need, free = memory_need(fitted), available_memory_bytes()
    if need.total(1) > free:
        raise UsageError(
            f"there is not enough memory to measure: the model needs about {need.total(1) // MIB:,} MiB with one slot "
            f"and {free // MIB:,} MiB are free: end other programs, or take a smaller model"
        )
    return Settings.of(replace(job, placement=fitted.placement)).with_encoder(resolve_encoder(job.vision))


@dataclass(frozen=True, slots=True)
class _Processor:
    """Seconds so far: of the processor for all programs, and for this one with workers that ended; of the clock.

    `busy_s` is None where the kernel does not say it.
    """

    busy_s: float | None
    own_s: float
    wall_s: float

    @classmethod
    def now(cls) -> "_Processor":
        own = os.times()
        return cls(
            busy_s=busy_cpu_s(),
            own_s=own.user + own.system + own.children_user + own.children_system,
            wall_s=time.perf_counter(),
        )

    def others_share_since(self, before: "_Processor") -> float:
        """Part of the processor that others took; 0 where the kernel does not say."""
        if self.busy_s is None or before.busy_s is None:
            return 0.0
        others_s = (self.busy_s - before.busy_s) - (self.own_s - before.own_s)
        return max(0.0, others_s / ((self.wall_s - before.wall_s) * (os.cpu_count() or 1)))


def _measured(trial: Trial) -> dict[str, object]:
    return {
        "settings": dataclasses.asdict(trial.settings),
        "row_s": [round(value, 4) for value in trial.row_s],
        "note": trial.note,
    }
