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

from batchcap.core.errors import BatchcapError, WorkerError
from batchcap.core.machine import MIB, available_cores, memory_mib
from batchcap.core.records import Caption, Duplicate, Failure, Features, ImageFacts, Outcome, Request
from batchcap.engines.base import EngineLoad, WorkerRestart
from batchcap.engines.busy_flag import make_sign_file
from batchcap.engines.config import EngineConfig
from batchcap.engines.cores import Threads, plan_for
from batchcap.engines.memory_guard import MemoryGuard
from batchcap.engines.messages import Captioned, DecoderSpec, DecodeWork, Ready, StageTime, VisionSpec
from batchcap.engines.process import Worker, WorkerEndError
from batchcap.engines.supervisor import START_TIMEOUT_S, SeenTime, WorkerSupervisor
from batchcap.model.bundle import Bundle
from batchcap.model.geometry import feature_bytes

log = logging.getLogger(__name__)

# Rows the vision worker may hold: enough to fill its patch budget with small images while others are being read.
VISION_WINDOW_ROWS = 32
# Rows that may wait for a row with the same image: so many copies of one blank image pile up, no more.
DUPLICATE_WINDOW_ROWS = 1000
# Rows a decoder holds beyond its slots, so that a slot that gets free is filled without asking the coordinator.
DECODER_AHEAD_ROWS = 2
START_POLL_S = 0.25


def _fitted(config: EngineConfig) -> EngineConfig:
    """The configuration with as many slots as fit into the free memory."""
    from batchcap.engines.capacity import fitted_to_memory  # noqa: PLC0415 - loads ONNX Runtime

    return fitted_to_memory(config)


def _sharing(bundle: Bundle) -> bool:
    """Whether decoders share one copy of the weights; a check of what is kept of it takes a second or two."""
    from batchcap.decoder.packed_weights import prepare_sharing  # noqa: PLC0415 - loads ONNX Runtime

    return prepare_sharing(bundle)


@dataclass(slots=True)
class _Ledger:
    """Requests in flight, and what is known of each.

    `duplicates` are those of each row in flight that wait for its end.
    """

    requests: dict[int, Request] = field(default_factory=dict)
    facts: dict[int, ImageFacts] = field(default_factory=dict)
    waiting: deque[Features] = field(default_factory=deque)
    waiting_bytes: int = 0
    duplicates: dict[int, list[Duplicate]] = field(default_factory=dict)
    duplicates_waiting: int = 0


class LocalEngine:
    """One vision worker and a pool of decoder workers on this machine; see `Engine`."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._largest_bytes = feature_bytes(config.bundle.geometry, config.vision.max_visual_tokens)
        self._queue_bytes = config.placement.queue_mib * MIB
        self._slots, self._slots_a_row = config.placement.slots, len(config.generation.prompts)
        self._ledger = _Ledger()
        self._failure: BatchcapError | None = None
        self._busy_s: dict[str, float] = dict.fromkeys(("read", "vision", "prefill", "decode"), 0.0)
        self._restarts: list[WorkerRestart] = []
        self._sign_file: int | None = None
        self._supervisors: list[WorkerSupervisor] = []  # the vision worker's first
        self._made_guard: MemoryGuard | None = None

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

    def _plan_workers(self) -> None:
        """Decide what each worker is built from: here, where they run, since memory and cores decide it."""
        config = _fitted(self._config)
        placement, folder, bundle_id = config.placement, str(config.bundle.folder), config.bundle.id
        threads = Threads.of(placement, available_cores())
        cores = plan_for(placement)
        if any(cores.decoders):
            log.info("cores: %s", cores.to_text())
        self._slots = placement.slots
        self._made_guard = MemoryGuard(placement.slots)
        vision_spec = VisionSpec(
            bundle_folder=folder,
            bundle_id=bundle_id,
            vision=config.vision,
            threads=threads.vision,
            patch_budget=placement.patch_budget,
            cpus=cores.vision,
        )
        decoder_spec = DecoderSpec(
            bundle_folder=folder,
            bundle_id=bundle_id,
            generation=config.generation,
            slots=placement.slots,
            threads=threads.decoder,
            max_visual_tokens=config.vision.max_visual_tokens,
        )
        timeout_s = config.image_timeout_s
        self._supervisors = [WorkerSupervisor("vision", vision_spec, timeout_s)]
        for number, cpus in enumerate(cores.decoders):
            spec = replace(decoder_spec, cpus=cpus)
            self._supervisors.append(WorkerSupervisor(f"decoder {number}", spec, timeout_s))

    @property
    def _vision(self) -> WorkerSupervisor:
        if not self._supervisors:
            raise RuntimeError("the engine was not started")
        return self._supervisors[0]

    @property
    def _decoders(self) -> list[WorkerSupervisor]:
        return self._supervisors[1:]

    @property
    def _guard(self) -> MemoryGuard:
        if self._made_guard is None:
            raise RuntimeError("the engine was not started")
        return self._made_guard

    def _start_workers(self) -> None:
        self._plan_workers()
        self._sign_file = make_sign_file()
        self._vision.start(sign_file=self._sign_file)
        decoders = self._decoders
        share_weights = len(decoders) > 1 and _sharing(self._config.bundle)  # while the vision worker loads already
        for supervisor in decoders:
            supervisor.start(sign_file=self._sign_file, share_weights=share_weights)

    def _await_ready(self, should_stop: Callable[[], bool]) -> None:
        loading = {supervisor.worker.connection: supervisor for supervisor in self._supervisors}
        seen_s = SeenTime()
        while loading and not should_stop():
            for connection in wait(list(loading), START_POLL_S):
                supervisor = loading.pop(connection)  # type: ignore[call-overload]
                try:
                    message = supervisor.worker.receive()
                except WorkerEndError as end:
                    raise supervisor.worker_error(end) from None
                if not isinstance(message, Ready):
                    raise WorkerError(f"the {supervisor.name} process began with {type(message).__name__}")
                supervisor.ready()
            if loading and seen_s() >= START_TIMEOUT_S:
                names = ", ".join(supervisor.name for supervisor in loading.values())
                raise WorkerError(
                    f"no model loaded in {START_TIMEOUT_S:.0f} s ({names}): is the disk with the bundle very slow?"
                )

    @property
    def has_room(self) -> bool:
        """Whether one more request fits: the features it may become are counted before it is read."""
        ledger, reading = self._ledger, self._vision.rows
        if self._vision.is_isolating or (self._guard.is_short and ledger.requests):
            return False
        if reading >= self._vision.window(VISION_WINDOW_ROWS) or ledger.duplicates_waiting >= DUPLICATE_WINDOW_ROWS:
            return False
        if not reading and not ledger.waiting:
            return True  # an image larger than the whole queue must still pass
        return ledger.waiting_bytes + (reading + 1) * self._largest_bytes <= self._queue_bytes

    @property
    def in_flight(self) -> int:
        """Requests submitted whose outcome has not been returned yet."""
        return len(self._ledger.requests)

    def seed_dedup(self, caption_key: str, images: list[tuple[str, int]]) -> None:
        """Tell the vision worker of images captioned before; a successor is not told and captions them again."""
        if images:
            self._vision.worker.send(Captioned(caption_key, images))

    def submit(self, request: Request) -> None:
        """Send one request to the vision worker; never waits."""
        vision = self._vision
        # The encoded image is kept until the worker has answered; what stays here must not hold it in memory.
        self._ledger.requests[request.index] = request.without_image()
        vision.give(request)

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Outcomes that have arrived; see `Engine.poll`."""
        self._raise_failure()
        self._guard.check()
        outcomes: list[Outcome] = []
        by_connection = {supervisor.worker.connection: supervisor for supervisor in self._supervisors}
        for connection in wait(list(by_connection), timeout_s):
            supervisor = by_connection[connection]  # type: ignore[index]
            self._attempt(supervisor, self._take_all, outcomes)
        for supervisor in self._supervisors:
            if supervisor.is_hung():
                self._attempt(supervisor, self._end_hanging, outcomes)
        if not outcomes:
            self._raise_failure()
        self._feed_decoders()
        return outcomes

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _attempt(
        self,
        supervisor: WorkerSupervisor,
        work: Callable[[WorkerSupervisor, list[Outcome]], None],
        outcomes: list[Outcome],
    ) -> None:
        """Do what may find that a worker has ended, and put another in its place.

        An error of the whole engine is kept: what came before it is whole and goes out first, and from the other
        workers more may have come.
        """
        try:
            try:
                work(supervisor, outcomes)
            except WorkerEndError as end:
                given_up = supervisor.restart_after(end)
                self._restarts.append(WorkerRestart(supervisor.name, str(end)))
                for failure in given_up:
                    outcomes += self._ended(failure.index, failure)
        except BatchcapError as error:
            self._failure = self._failure or error

    def _end_hanging(self, supervisor: WorkerSupervisor, _outcomes: list[Outcome]) -> None:
        raise supervisor.hang_error()

    def _take_all(self, supervisor: WorkerSupervisor, outcomes: list[Outcome]) -> None:
        """Take in everything a worker has sent by now."""
        while supervisor.worker.connection.poll():
            message = supervisor.worker.receive()
            supervisor.heard(message)
            outcomes += self._take(supervisor, message)

    def _take(self, supervisor: WorkerSupervisor, message: object) -> list[Outcome]:
        ledger = self._ledger
        if isinstance(message, StageTime):
            self._busy_s[message.stage] += message.seconds
        elif isinstance(message, Ready):
            supervisor.ready()
        elif isinstance(message, Features):
            supervisor.answered(message.index)
            ledger.facts[message.index] = ImageFacts(
                message.width, message.height, message.sha256, message.read_ms, message.vision_ms
            )
            ledger.waiting.append(message)
            ledger.waiting_bytes += message.nbytes
        elif isinstance(message, Duplicate):
            supervisor.answered(message.index)
            if message.of not in ledger.requests:
                return self._ended(message.index, message)
            ledger.duplicates.setdefault(message.of, []).append(message)
            ledger.duplicates_waiting += 1
        elif isinstance(message, tuple | Failure):
            index = message.index if isinstance(message, Failure) else message[0].index
            supervisor.answered(index)
            return self._ended(index, message)
        else:
            raise WorkerError(f"the {supervisor.name} process sent {type(message).__name__}, which nobody expects")
        return []

    def _ended(self, index: int, result: tuple[Caption, ...] | Failure | Duplicate) -> list[Outcome]:
        """The outcome of a row, and of those that have waited for it."""
        ledger = self._ledger
        duplicates = ledger.duplicates.pop(index, [])
        ledger.duplicates_waiting -= len(duplicates)
        outcomes = [Outcome(ledger.requests.pop(index), result, ledger.facts.pop(index, None))]
        # Others may wait for a duplicate: a new vision worker has met the images in another order.
        for duplicate in duplicates:
            outcomes += self._ended(duplicate.index, duplicate)
        return outcomes

    def _decoder_rows(self, supervisor: WorkerSupervisor) -> int:
        """Rows that a decoder may hold; none but quarantine where one has ended."""
        if supervisor.is_isolating:
            return 0
        slots = min(self._guard.slots, supervisor.slots or 1)
        ahead = DECODER_AHEAD_ROWS if slots == self._slots else 0
        return -(-slots // self._slots_a_row) + ahead

    def _feed_decoders(self) -> None:
        """Give waiting rows to the decoders with the most room."""
        ledger = self._ledger
        while ledger.waiting:
            supervisor = max(self._decoders, key=lambda one: self._decoder_rows(one) - one.rows)
            if supervisor.rows >= self._decoder_rows(supervisor):
                return  # the others have no more room
            features = ledger.waiting.popleft()
            ledger.waiting_bytes -= features.nbytes
            supervisor.give(DecodeWork(ledger.requests[features.index], features))

    def load(self) -> EngineLoad:
        """What the stages are doing."""
        return EngineLoad(
            busy_s=dict(self._busy_s),
            reading_rows=self._vision.rows,
            queue_rows=len(self._ledger.waiting),
            queue_mib=self._ledger.waiting_bytes / MIB,
            decoding_rows=sum(supervisor.rows for supervisor in self._decoders),
            restarts=self._restarts,
        )

    def memory_bytes(self) -> int:
        """Memory of the workers, pages they share counted once."""
        return int(MIB * memory_mib([worker.process.pid for worker in self._started_workers()]))

    def _started_workers(self) -> list[Worker]:
        return [supervisor.worker for supervisor in self._supervisors if supervisor.is_started]

    def close(self) -> None:
        """End all workers at once."""
        workers = self._started_workers()
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.close()
        if self._sign_file is not None:
            os.close(self._sign_file)
            self._sign_file = None
