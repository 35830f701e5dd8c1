"""Owns one worker process: what it was assigned, when it hangs, and its restart after it ended.

When a worker ends, everything that it had is quarantined. Its successor gets these rows one at a time, so that
a second crash is the doing of one row: that row fails, and the others go on as before.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from batchcap.core.errors import ErrorKind, WorkerError
from batchcap.core.records import Failure, Request
from batchcap.engines.messages import DecoderSpec, DecodeWork, StageTime, VisionSpec
from batchcap.engines.process import Worker, WorkerEndError

log = logging.getLogger(__name__)

# A row over which so many workers have ended is given up.
MAX_CRASHES_PER_ROW = 2
# So many ends with nothing finished between them are not the rows' doing.
MAX_CONSECUTIVE_CRASHES = 20
# A first load reads the whole bundle from a cold disk.
START_TIMEOUT_S = 600.0
MEMORY_HINT = " The system may have run out of memory: lower --slots, --decoders or --queue-mib"
# Time between two looks that counts as looking on.
LOOK_S = 5.0

Work = Request | DecodeWork


class SeenTime:
    """Seconds during which somebody looked on; what passes between two calls counts for `LOOK_S` at most.

    A coordinator that was stopped (Ctrl-Z, a paused container, a disk that did not answer) has not heard what its
    workers said meanwhile, and the workers may have been stopped with it: none of them is to be called hanging.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_s = clock()
        self._seen_s = 0.0

    def __call__(self) -> float:
        """The seconds so far."""
        now_s = self._clock()
        self._seen_s += min(now_s - self._last_s, LOOK_S)
        self._last_s = now_s
        return self._seen_s


class WorkerSupervisor:
    """A worker and, when it has ended, its successor; every row given to it is answered or comes back as a failure.

    Args:
        name: of the worker, for messages.
        spec: what it is built from.
        timeout_s: a worker that is at work and says nothing for so long hangs.
        start_worker: makes a worker of a name and a spec.
        clock: seconds of which the worker's silence is made; None: its own `SeenTime`.

    """

    def __init__(
        self,
        name: str,
        spec: VisionSpec | DecoderSpec,
        timeout_s: float,
        start_worker: Callable[[str, VisionSpec | DecoderSpec], Worker] = Worker,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.name = name
        self.is_ready = False
        self.assigned: dict[int, Work] = {}
        self._quarantine: deque[Work] = deque()
        self._ends: dict[int, int] = {}
        self._ends_in_a_row = 0
        self._spec = spec
        self._timeout_s = timeout_s
        self._start_worker = start_worker
        self._clock = clock or SeenTime()
        self._worker: Worker | None = None
        self._oldest: int | None = None
        self._heard_s = self._oldest_since_s = 0.0
        self._lanes_heard_s: dict[int, float] = {}  # of a decoder's lanes that have work

    def start(self, *, sign_file: int | None = None, share_weights: bool = False) -> None:
        """Start the first worker.

        Args:
            sign_file: of the `BusyFlag` that all workers share.
            share_weights: of a decoder, see `DecoderSpec`.

        Raises:
            WorkerError: the system has no process for it.
        """
        if isinstance(self._spec, DecoderSpec):
            self._spec = replace(self._spec, share_weights=share_weights)
        self._spec = replace(self._spec, sign_file=sign_file)
        self._worker = self._started()
        self._heard_s = self._oldest_since_s = self._clock()

    @property
    def worker(self) -> Worker:
        """The worker that is here now.

        Raises:
            RuntimeError: none was started.
        """
        if self._worker is None:
            raise RuntimeError(f"the {self.name} worker was not started")
        return self._worker

    @property
    def is_started(self) -> bool:
        """Whether there is a worker, at work or ended."""
        return self._worker is not None

    def _started(self) -> Worker:
        try:
            return self._start_worker(self.name, self._spec)
        except WorkerEndError as end:
            raise self.worker_error(end) from None

    @property
    def slots(self) -> int | None:
        """Slots of a decoder, which gets fewer where memory was lacking; None: it is not one."""
        return self._spec.slots if isinstance(self._spec, DecoderSpec) else None

    def window(self, rows: int) -> int:
        """Of so many rows that the worker may hold, those that it may where memory was lacking."""
        return max(1, rows // self._spec.divisor) if isinstance(self._spec, VisionSpec) else rows

    @property
    def rows(self) -> int:
        """Rows that are here and not answered yet."""
        return len(self.assigned) + len(self._quarantine)

    @property
    def is_isolating(self) -> bool:
        """Whether quarantined rows are given out one at a time, and nothing else may be given."""
        return bool(self._ends)

    def give(self, work: Work) -> None:
        """Send work to the worker; never waits."""
        if not self.assigned:  # no lane has work
            self._heard_s = self._clock()
            self._lanes_heard_s.clear()
        self.assigned[_index(work)] = work
        self.worker.send(work)

    def heard(self, message: object = None) -> None:
        """The worker has said something."""
        self._heard_s = self._clock()
        if isinstance(message, StageTime) and message.is_idle:
            self._lanes_heard_s.pop(message.lane, None)
        elif isinstance(message, StageTime):
            self._lanes_heard_s[message.lane] = self._heard_s

    def ready(self) -> None:
        """The worker has loaded its model."""
        self.is_ready = True
        self._lanes_heard_s.clear()
        self._oldest = None  # its predecessor may have hung on this row: its time starts again
        self.heard()

    def answered(self, index: int) -> None:
        """A row is done with here."""
        self.assigned.pop(index, None)
        self._ends.pop(index, None)
        self._ends_in_a_row = 0
        self._give_suspect()

    def _give_suspect(self) -> None:
        if self._quarantine and not self.assigned:
            self.give(self._quarantine.popleft())

    def is_hung(self) -> bool:
        """Whether the worker has been silent for too long, or has not come to the end of its oldest row.

        A decoder's oldest row may wait for many others; each of its lanes tells of its steps instead, and that it has
        nothing left to do: silent is who has work, however much the other lane says.
        """
        now_s = self._clock()
        if not self.is_ready:
            return now_s - self._heard_s > START_TIMEOUT_S
        oldest = next(iter(self.assigned), None)
        if oldest != self._oldest:
            self._oldest, self._oldest_since_s = oldest, now_s
        if oldest is None:
            return False
        since_s = self._oldest_since_s
        if isinstance(self._spec, DecoderSpec):
            since_s = min(self._lanes_heard_s.values(), default=self._heard_s)
        return now_s - since_s > self._timeout_s

    def hang_error(self) -> WorkerEndError:
        """What to say of a worker that hangs."""
        if not self.is_ready:
            return WorkerEndError(f"has not loaded its model in {START_TIMEOUT_S:.0f} s")
        return WorkerEndError(f"has not come to an end with a row in {self._timeout_s:g} s")

    def restart_after(self, end: WorkerEndError) -> list[Failure]:
        """Put a new worker in the place of one that has ended; rows that ended too many are given up.

        Raises:
            WorkerError: it ended while it loaded, or too often with nothing finished between.
        """
        self.worker.kill()
        self._ends_in_a_row += 1
        if not self.is_ready or self._ends_in_a_row >= MAX_CONSECUTIVE_CRASHES:
            raise self.worker_error(end)
        self.worker.close()
        kept, given_up = self._judge(end)
        self._quarantine.extendleft(reversed(kept))
        self.assigned.clear()
        if end.lacked_memory:
            self._spec = self._spec.with_less()
        log.warning(
            "the %s process %s; a new one is started%s, %d rows are given to it one at a time, %d given up",
            self.name,
            end,
            self._less() if end.lacked_memory else "",
            len(self._quarantine),
            len(given_up),
        )
        self._worker, self.is_ready = self._started(), False
        self.heard()
        self._give_suspect()
        return given_up

    def _less(self) -> str:
        return f" with {self.slots} slots" if self.slots else " with fewer images at once"

    def _judge(self, end: WorkerEndError) -> tuple[list[Work], list[Failure]]:
        """The rows that are given out again, and those that are given up."""
        kept, given_up = list[Work](), list[Failure]()
        for index, work in self.assigned.items():
            self._ends[index] = self._ends.get(index, 0) + 1
            if self._ends[index] < MAX_CRASHES_PER_ROW:
                kept.append(work)
            else:
                del self._ends[index]
                message = f"the {self.name} process {end}, as one had ended over this image before"
                if end.lacked_memory:
                    message += f".{MEMORY_HINT}, then run again with --retry failed."
                given_up.append(Failure(index, ErrorKind.CRASHED, message))
        return kept, given_up

    def worker_error(self, end: WorkerEndError) -> WorkerError:
        """What to say of a worker that can't be replaced."""
        count = self._ends_in_a_row
        often = f", {count} times in a row with nothing finished between," if count > 1 else ""
        hint = f"{MEMORY_HINT}." if end.lacked_memory else ""
        return WorkerError(
            f"the {self.name} process{often} {end}.{hint} No finished caption is lost: "
            "run the same command again to go on."
        )


def _index(work: Work) -> int:
    return work.index if isinstance(work, Request) else work.request.index
