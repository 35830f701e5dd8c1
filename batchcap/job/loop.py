"""Owns the loop of a job: every row out of the plan, through the engine, into the store, until nothing is left."""

import logging
import time
from collections.abc import Iterator
from contextlib import suppress

from batchcap.core.errors import StorageError
from batchcap.core.records import ImageRow
from batchcap.engines.base import Engine
from batchcap.job.monitor import Monitor
from batchcap.job.recorder import Recorder
from batchcap.job.stop import ShouldStop
from batchcap.job.watchdog import Watchdog

log = logging.getLogger(__name__)

POLL_S = 0.25
# After a request to stop: captions that end within this time are kept, the others are given back.
STOP_GRACE_S = 1.5


def caption_rows(
    to_do: Iterator[ImageRow], recorder: Recorder, engine: Engine, monitor: Monitor, should_stop: ShouldStop
) -> None:
    """Caption every row that is left, or until it is time to stop.

    The whole way of a row is here: out of the plan, into the engine, out of the engine, into the store.
    """
    monitor.begin()
    try:
        with Watchdog() as watchdog:
            rows = watchdog.each("reading the inputs", to_do)
            row = next(rows, None)
            while (row is not None or engine.in_flight) and not should_stop():
                while row is not None and engine.has_room:
                    engine.submit(row)
                    row = next(rows, None)
                outcomes = engine.poll(POLL_S)
                with watchdog.during("writing what is finished"):
                    recorder.record(outcomes)
                monitor.watch(engine, recorder)
        if engine.in_flight:
            log.info(
                "stopping: %d rows in progress; those not finished in %g s are left for the next run",
                engine.in_flight,
                STOP_GRACE_S,
            )
        grace_ends_s = time.perf_counter() + STOP_GRACE_S
        while engine.in_flight and time.perf_counter() < grace_ends_s:
            recorder.record(engine.poll(POLL_S))
    except BaseException:
        # What arrived before the worker went, or the input, or our own mistake, is not lost with it.
        with suppress(StorageError):
            recorder.flush()
        raise
    recorder.flush()
    monitor.watch(engine, recorder)
