"""Owns how a worker's threads work side by side, and how it ends when one of them can't go on."""

import queue
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn


def run_until_first_failure(parts: Sequence[Callable[[], None]], sending: threading.Lock) -> NoReturn:
    """Run parts of a worker, each in a thread of its own, until the first of them fails.

    Args:
        parts: each works for ever.
        sending: what they hold while they send. It is not given back: after the first failure nothing comes between
            the worker's last word and its end.

    Raises:
        BaseException: what the first part that failed met.
    """
    failed: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def run(part: Callable[[], None]) -> None:
        try:
            part()
        except BaseException as error:  # noqa: BLE001 - a thread's edge: the process ends with it
            failed.put(error)

    for part in parts:
        threading.Thread(target=run, args=(part,), daemon=True).start()
    error = failed.get()
    sending.acquire()
    raise error
