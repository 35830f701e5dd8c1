"""Owns the loop around an engine: requests go in while there is room, outcomes are handed on as they come."""

from collections.abc import Callable, Iterator

from batchcap.core.records import Outcome, Request
from batchcap.engines.base import Engine

POLL_S = 0.25


def drive(
    engine: Engine,
    requests: Iterator[Request],
    take_outcomes: Callable[[list[Outcome]], None],
    should_stop: Callable[[], bool] = lambda: False,
    poll_s: float = POLL_S,
) -> None:
    """Submit requests and take their outcomes until each has one, or it is time to stop.

    Requests in flight stay there when it stops; with no more requests the same call goes on with them.

    Args:
        engine: started.
        requests: one is taken ahead of the room for it.
        take_outcomes: told after each look at the engine, also when nothing has arrived.
        should_stop: asked before each look.
        poll_s: how long a look waits for an outcome.

    Raises:
        WorkerError: as `Engine.poll`.
    """
    request = next(requests, None)
    while (request is not None or engine.in_flight) and not should_stop():
        while request is not None and engine.has_room:
            engine.submit(request)
            request = next(requests, None)
        take_outcomes(engine.poll(poll_s))
