"""Owns the worker processes of this machine: starts them, moves rows between them, bounds the feature queue.

Rows go coordinator → vision worker → coordinator → a decoder → coordinator. The coordinator alone knows where each
row is, and keeps what it gave out until it is answered: so no worker's end can lose a row.
"""

import logging
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait

from batchcap.config import JobConfig
from batchcap.core.errors import BatchcapError, WorkerError
from batchcap.core.machine import MIB, available_cores
from batchcap.core.records import Caption, Duplicate, Failure, Features, ImageFacts, ImageRow, Outcome
from batchcap.engines.base import EngineLoad
from batchcap.engines.busy_flag import make_sign_file
from batchcap.engines.cores import Threads, plan_for
from batchcap.engines.memory_guard import MemoryGuard
from batchcap.engines.messages import Captioned, DecoderSpec, DecodeWork, Ready, StageTime, VisionSpec
from batchcap.engines.process import WorkerEndError
from batchcap.engines.supervisor import START_TIMEOUT_S, SeenTime, WorkerSupervisor
from batchcap.model.bundle import Bundle
from batchcap.model.geometry import feature_bytes

log = logging.getLogger(__name__)

# Rows the vision worker may hold: enough to fill its patch budget with small images while others are being read.
VISION_WINDOW_ROWS = 32
# Rows that may wait for a row with the same image: so many copies of one blank image pile up, no more.
TWIN_WINDOW_ROWS = 1000
# Rows a decoder holds beyond its slots, so that a slot that gets free is filled without asking the coordinator.
DECODER_AHEAD_ROWS = 2
START_POLL_S = 0.25


def _sharing(bundle: Bundle) -> bool:
    """Whether decoders share one copy of the weights; a check of what is kept of it takes a second or two."""
    from batchcap.decoder.packed_weights import prepare_sharing  # noqa: PLC0415 - loads ONNX Runtime

    return prepare_sharing(bundle)


@dataclass(slots=True)
class _Ledger:
    """Rows in flight, and what is known of each."""

    rows: dict[int, ImageRow] = field(default_factory=dict)
    facts: dict[int, ImageFacts] = field(default_factory=dict)
    waiting: deque[Features] = field(default_factory=deque)
    waiting_bytes: int = 0
    duplicates: dict[int, list[Duplicate]] = field(
        default_factory=dict
    )  # by the row they are duplicates of, which is in flight
    duplicates_waiting: int = 0


class LocalEngine:
    """One vision worker and a pool of decoder workers on this machine; `start` starts them."""

    def __init__(self, bundle: Bundle, config: JobConfig) -> None:
        placement = config.placement
        threads = Threads.of(placement, available_cores())
        cores = plan_for(placement)
        if any(cores.decoders):
            log.info("cores: %s", cores.to_text())
        self._largest_bytes = feature_bytes(bundle.geometry, config.vision.max_visual_tokens)
        self._queue_bytes = placement.queue_mib * MIB
        self._guard = MemoryGuard(placement.slots)
        self._slots, self._slots_a_row = placement.slots, len(config.generation.prompts)
        self._ledger = _Ledger()
        self._failure: BatchcapError | None = None
        self._busy_s: dict[str, float] = dict.fromkeys(("read", "vision", "prefill", "decode"), 0.0)
        self._sign_file: int | None = None
        folder = str(bundle.folder)
        vision_spec = VisionSpec(
            bundle_folder=folder,
            bundle_id=bundle.id,
            vision=config.vision,
            threads=threads.vision,
            patch_budget=placement.patch_budget,
            find_duplicates=not config.generation.depends_on_row,
            cpus=cores.vision,
        )
        timeout_s = config.limits.image_timeout_s
        self._bundle = bundle
        self._vision = WorkerSupervisor("vision", vision_spec, timeout_s)
        decoder_spec = DecoderSpec(
            bundle_folder=folder,
            bundle_id=bundle.id,
            generation=config.generation,
            slots=placement.slots,
            threads=threads.decoder,
            max_visual_tokens=config.vision.max_visual_tokens,
        )
        self._decoders = [
            WorkerSupervisor(f"decoder {number}", replace(decoder_spec, cpus=cpus), timeout_s)
            for number, cpus in enumerate(cores.decoders)
        ]

    def start(self, should_stop: Callable[[], bool]) -> None:
        """Start the workers and wait until every one has loaded its model, or it is time to stop.

        Raises:
            BatchcapError: a worker could not start; the message and exit code are the worker's. None is left behind.
        """
        try:
            self._start_workers()
            self._await_ready(should_stop)
        except BaseException:
            self.close()
            raise

    def _start_workers(self) -> None:
        self._sign_file = make_sign_file()
        self._vision.start(sign_file=self._sign_file)
        share_weights = len(self._decoders) > 1 and _sharing(self._bundle)  # while the vision worker loads already
        for seat in self._decoders:
            seat.start(sign_file=self._sign_file, share_weights=share_weights)

    def _await_ready(self, should_stop: Callable[[], bool]) -> None:
        loading = {seat.worker.connection: seat for seat in self._seats}
        seen_s = SeenTime()
        while loading and not should_stop():
            for connection in wait(list(loading), START_POLL_S):
                seat = loading.pop(connection)  # type: ignore[call-overload]
                try:
                    message = seat.worker.receive()
                except WorkerEndError as end:
                    raise seat.worker_error(end) from None
                if not isinstance(message, Ready):
                    raise WorkerError(f"the {seat.name} process began with {type(message).__name__}")
                seat.ready()
            if loading and seen_s() >= START_TIMEOUT_S:
                names = ", ".join(seat.name for seat in loading.values())
                raise WorkerError(
                    f"no model loaded in {START_TIMEOUT_S:.0f} s ({names}): is the disk with the bundle very slow?"
                )

    @property
    def _seats(self) -> list[WorkerSupervisor]:
        return [self._vision, *self._decoders]

    @property
    def has_room(self) -> bool:
        """Whether one more row fits: the features it may become are counted before it is read."""
        ledger, reading = self._ledger, self._vision.rows
        if self._vision.is_isolating or (self._guard.is_short and ledger.rows):
            return False
        if reading >= self._vision.window(VISION_WINDOW_ROWS) or ledger.duplicates_waiting >= TWIN_WINDOW_ROWS:
            return False
        if not reading and not ledger.waiting:
            return True  # an image larger than the whole queue must still pass
        return ledger.waiting_bytes + (reading + 1) * self._largest_bytes <= self._queue_bytes

    @property
    def in_flight(self) -> int:
        """Rows submitted whose outcome has not been returned yet."""
        return len(self._ledger.rows)

    def seed_dedup(self, images: list[tuple[str, int]]) -> None:
        """Tell the vision worker of images captioned before; a successor is not told and captions them anew."""
        if images:
            self._vision.worker.send(Captioned(images))

    def submit(self, row: ImageRow) -> None:
        """Send one row to the vision worker; never waits."""
        # The encoded image is kept until the worker has answered; what stays here must not hold it in memory.
        self._ledger.rows[row.index] = ImageRow(row.index, row.id, row.source, row.row)
        self._vision.give(row)

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Outcomes that have arrived; see `Engine.poll`."""
        self._raise_failure()
        self._guard.check()
        outcomes: list[Outcome] = []
        by_connection = {seat.worker.connection: seat for seat in self._seats}
        for connection in wait(list(by_connection), timeout_s):
            seat = by_connection[connection]  # type: ignore[index]
            self._attempt(seat, self._take_all, outcomes)
        for seat in self._seats:
            if seat.is_hung():
                self._attempt(seat, self._end_hanging, outcomes)
        if not outcomes:
            self._raise_failure()
        self._feed_decoders()
        return outcomes

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _attempt(
        self, seat: WorkerSupervisor, work: Callable[[WorkerSupervisor, list[Outcome]], None], outcomes: list[Outcome]
    ) -> None:
        """Do what may find that a worker has ended, and put another in its place.

        An error of the whole engine is kept: what came before it is whole and goes out first, and from the other
        workers more may have come.
        """
        try:
            try:
                work(seat, outcomes)
            except WorkerEndError as end:
                for failure in seat.restart_after(end):
                    outcomes += self._ended(failure.index, failure)
        except BatchcapError as error:
            self._failure = self._failure or error

    def _end_hanging(self, seat: WorkerSupervisor, _outcomes: list[Outcome]) -> None:
        raise seat.hang_error()

    def _take_all(self, seat: WorkerSupervisor, outcomes: list[Outcome]) -> None:
        """Take in everything a worker has sent by now."""
        while seat.worker.connection.poll():
            message = seat.worker.receive()
            seat.heard(message)
            outcomes += self._take(seat, message)

    def _take(self, seat: WorkerSupervisor, message: object) -> list[Outcome]:
        ledger = self._ledger
        if isinstance(message, StageTime):
            self._busy_s[message.stage] += message.seconds
        elif isinstance(message, Ready):
            seat.ready()
        elif isinstance(message, Features):
            seat.answered(message.index)
            ledger.facts[message.index] = ImageFacts(
                message.width, message.height, message.sha256, message.read_ms, message.vision_ms
            )
            ledger.waiting.append(message)
            ledger.waiting_bytes += message.nbytes
        elif isinstance(message, Duplicate):
            seat.answered(message.index)
            if message.of not in ledger.rows:
                return self._ended(message.index, message)
            ledger.duplicates.setdefault(message.of, []).append(message)
            ledger.duplicates_waiting += 1
        elif isinstance(message, tuple | Failure):
            index = message.index if isinstance(message, Failure) else message[0].index
            seat.answered(index)
            return self._ended(index, message)
        else:
            raise WorkerError(f"the {seat.name} process sent {type(message).__name__}, which nobody expects")
        return []

    def _ended(self, index: int, result: tuple[Caption, ...] | Failure | Duplicate) -> list[Outcome]:
        """The outcome of a row, and of those that have waited for it."""
        ledger = self._ledger
        duplicates = ledger.duplicates.pop(index, [])
        ledger.duplicates_waiting -= len(duplicates)
        outcomes = [Outcome(ledger.rows.pop(index), result, ledger.facts.pop(index, None))]
        for (
            duplicate
        ) in duplicates:  # others may wait for a duplicate: a new vision worker has met the images in another order
            outcomes += self._ended(duplicate.index, duplicate)
        return outcomes

    def _decoder_rows(self, seat: WorkerSupervisor) -> int:
        """Rows that a decoder may hold; none but quarantine where one has ended."""
        if seat.is_isolating:
            return 0
        slots = min(self._guard.slots, seat.slots or 1)
        ahead = DECODER_AHEAD_ROWS if slots == self._slots else 0
        return -(-slots // self._slots_a_row) + ahead

    def _feed_decoders(self) -> None:
        """Give waiting rows to the decoders with the most room."""
        ledger = self._ledger
        while ledger.waiting:
            seat = max(self._decoders, key=lambda one: self._decoder_rows(one) - one.rows)
            if seat.rows >= self._decoder_rows(seat):
                return  # the others have no more room
            features = ledger.waiting.popleft()
            ledger.waiting_bytes -= features.nbytes
            seat.give(DecodeWork(ledger.rows[features.index].id, features))

    def load(self) -> EngineLoad:
        """What the stages are doing."""
        return EngineLoad(
            busy_s=dict(self._busy_s),
            reading_rows=self._vision.rows,
            queue_rows=len(self._ledger.waiting),
            queue_mib=self._ledger.waiting_bytes / MIB,
            decoding_rows=sum(seat.rows for seat in self._decoders),
        )

    def process_ids(self) -> list[int]:
        """Process ids of the workers."""
        return [seat.worker.process.pid for seat in self._seats if seat.is_started]

    def close(self) -> None:
        """End all workers at once."""
        workers = [seat.worker for seat in self._seats if seat.is_started]
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.close()
        if self._sign_file is not None:
            os.close(self._sign_file)
            self._sign_file = None
