"""Owns the measurements of a run: samples over time, peak memory, the figures of the summary."""

import os
import time
from collections.abc import Callable
from dataclasses import replace

from batchcap.core.machine import MIB, memory_mib
from batchcap.engines.base import Engine, EngineLoad
from batchcap.job.metrics import Figures
from batchcap.job.progress import Progress, RecentRate
from batchcap.job.recorder import Recorder, RunCounts
from batchcap.job.summary import RunMetrics
from batchcap.store.stats import StatsSample, StatsWriter

SAMPLE_INTERVAL_S = 5.0
MEMORY_INTERVAL_S = 5.0


class Monitor:
    """Watches an engine while rows come out of it, and tells the progress."""

    def __init__(
        self,
        stats: StatsWriter,
        progress: Progress,
        started_s: float,
        is_measured: Callable[[Figures], None] = lambda _figures: None,
    ) -> None:
        """`started_s` is `time.perf_counter()` at the start of the command; `is_measured` is told of each sample."""
        self._stats = stats
        self._progress = progress
        self._started_s = started_s
        self._working_since_s: float | None = None
        self._last_row_s: float | None = None
        self._next_sample_s = 0.0
        self._next_memory_s = 0.0
        self._memory_mib = self._peak_memory_mib = 0.0
        self._is_measured = is_measured
        self._rate = RecentRate()
        self._load = EngineLoad()
        self._seen = RunCounts()

    def begin(self) -> None:
        """The first row is about to be handed out."""
        self._working_since_s = time.perf_counter()

    def watch(self, engine: Engine, recorder: Recorder) -> None:
        """Look at the engine and at what is recorded; take a sample and the memory when it is time to."""
        now = time.perf_counter()
        self._load = engine.load()
        self._load.busy_s["store"] = recorder.run.store_s
        if recorder.run.rows > self._seen.rows:
            self._seen = replace(recorder.run)
            self._last_row_s = now
        if now >= self._next_memory_s:
            self._next_memory_s = now + MEMORY_INTERVAL_S
            self._memory_mib = memory_mib([os.getpid()]) + engine.memory_bytes() / MIB
            self._peak_memory_mib = max(self._peak_memory_mib, self._memory_mib)
        if now >= self._next_sample_s:
            self._next_sample_s = now + SAMPLE_INTERVAL_S
            self._sample(now)
        self._progress.advance(recorder.counts.rows, recorder.counts.failed, recorder.run.images, self._load)

    def _sample(self, now: float) -> None:
        rate = self._rate.update(self._seen.images)
        self._is_measured(Figures(self._load, rate, self._memory_mib, self._peak_memory_mib))
        self._stats.add(
            StatsSample(
                elapsed_s=now - self._started_s,
                rows=self._seen.rows,
                images=self._seen.images,
                new_tokens=self._seen.tokens,
                busy_s=dict(self._load.busy_s),
                reading_rows=self._load.reading_rows,
                queue_rows=self._load.queue_rows,
                queue_mib=self._load.queue_mib,
                decoding_rows=self._load.decoding_rows,
                memory_mib=self._peak_memory_mib,
            )
        )

    def end(self) -> RunMetrics:
        """The last sample is taken, the progress ends, and the figures are made."""
        self._progress.close()
        now = time.perf_counter()
        self._sample(now)
        working_s = 0.0
        if self._working_since_s is not None and self._last_row_s is not None:
            working_s = self._last_row_s - self._working_since_s
        return RunMetrics(
            rows=self._seen.rows,
            new_tokens=self._seen.tokens,
            elapsed_s=now - self._started_s,
            working_s=working_s,
            stage_busy_s=dict(self._load.busy_s),
            peak_memory_mib=self._peak_memory_mib,
            duplicates=self._seen.duplicates,
            images=self._seen.images,
        )
