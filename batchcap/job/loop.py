"""Owns the loop of a job: every row out of the plan, through the engine, into the store, until nothing is left."""

import logging
import time
from collections.abc import Iterator
from contextlib import suppress

from batchcap.core.errors import StorageError
from batchcap.core.records import Outcome, Request
from batchcap.engines.base import Engine
from batchcap.engines.drive import drive
from batchcap.job.monitor import Monitor
from batchcap.job.outage import Outage
from batchcap.job.recorder import Recorder
from batchcap.job.stop import ShouldStop
from batchcap.job.watchdog import Watchdog

log = logging.getLogger(__name__)

# After a request to stop: captions that end within this time are kept, the others are given back.
STOP_GRACE_S = 1.5


def caption_rows(
    to_do: Iterator[Request],
    recorder: Recorder,
    engine: Engine,
    monitor: Monitor,
    outage: Outage,
    should_stop: ShouldStop,
) -> None:
    """Caption every row that is left, or until it is time to stop.

    The whole way of a row is here: out of the plan, into the engine, out of the engine, into the store.
    """
    monitor.begin()
    try:
        with Watchdog() as watchdog:

            def take(outcomes: list[Outcome]) -> None:
                with watchdog.during("writing what is finished"):
                    recorder.record(outage.admit(outcomes))
                monitor.watch(engine, recorder)

            drive(engine, watchdog.each("reading the inputs", outage.sent(to_do)), take, should_stop)
        if engine.in_flight:
            log.info(
                "stopping: %d rows in progress; those not finished in %g s are left for the next run",
                engine.in_flight,
                STOP_GRACE_S,
            )
        grace_ends_s = time.perf_counter() + STOP_GRACE_S

        def take_last(outcomes: list[Outcome]) -> None:
            recorder.record(outage.admit(outcomes))

        drive(engine, iter(()), take_last, lambda: time.perf_counter() >= grace_ends_s)
    except BaseException:
        # What arrived before the worker went, or the input, or our own mistake, is not lost with it.
        with suppress(StorageError):
            recorder.flush()
        raise
    if not should_stop():  # else those rows are left for the next run, too
        recorder.record(outage.release())
    recorder.flush()
    monitor.watch(engine, recorder)
