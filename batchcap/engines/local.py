"""Owns the worker processes of this machine: starts them, moves rows between them, bounds the feature queue.

Rows go coordinator → vision worker → coordinator → a decoder → coordinator. The coordinator alone knows where each
row is, so no worker's end can lose one.
"""

import logging
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from batchcap.bundle import Bundle
from batchcap.config import JobConfig
from batchcap.cores import Threads, plan_for
from batchcap.engines.base import EngineLoad, Outcome, PictureFacts
from batchcap.engines.messages import Busy, Captioned, DecoderSpec, DecodeWork, Fatal, Ready, VisionSpec
from batchcap.engines.pressure import MemoryGuard
from batchcap.errors import BatchcapError, ExitCode, WorkerError
from batchcap.machine import MIB, available_cores
from batchcap.records import Failure, Features, ImageRow, Twin

log = logging.getLogger(__name__)

# Rows the vision worker may hold: enough to fill its patch budget with small pictures while others are being read.
VISION_WINDOW_ROWS = 32
# Rows that may wait for a row with the same picture: so many copies of one blank picture pile up, no more.
TWIN_WINDOW_ROWS = 1000
# Rows a decoder holds beyond its slots, so that a slot that gets free is filled without asking the coordinator.
DECODER_AHEAD_ROWS = 2
# A first load reads the whole bundle from a cold disk.
START_TIMEOUT_S = 600.0
START_POLL_S = 0.25
# Giving back the memory of a large model takes the kernel a while.
END_TIMEOUT_S = 30.0


class Worker:
    """One worker process and the socket to it."""

    def __init__(self, name: str, spec: VisionSpec | DecoderSpec) -> None:
        ours, theirs = socket.socketpair()
        self.name = name
        self.rows = 0
        with theirs:
            # -P: a random.py or a folder torch/ where the command is run must not get in the way.
            self.process = _popen([sys.executable, "-P", "-m", "batchcap.engines.worker"], theirs.fileno())
        self.connection = Connection(ours.detach())
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send, name=f"send-{name}", daemon=True)
        self._sender.start()
        self.send(spec)

    def send(self, message: object) -> None:
        """Queue a message; never waits for the worker."""
        self._outbox.put(message)

    def _send(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self.connection.send(message)
            except OSError:  # the worker is gone; reading from it tells the coordinator
                return

    def death(self) -> WorkerError:
        """What to say about a worker whose socket has closed."""
        code = _end_of(self.process)
        if code is None:
            how = "closed its connection"
        else:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        hint = " The system may have run out of memory: lower --slots, --decoders or --queue-mib." if code == -9 else ""
        return WorkerError(
            f"the {self.name} process {how}.{hint} No finished caption is lost: run the same command again to go on."
        )

    def kill(self) -> None:
        """End the process now."""
        self.send(None)
        self.process.kill()

    def close(self) -> None:
        """Wait for the end of a process that was killed."""
        _end_of(self.process)
        self._sender.join(END_TIMEOUT_S)
        self.connection.close()


def _sharing(bundle: Bundle) -> bool:
    """Whether decoders share one copy of the weights; a check of what is kept of it takes a second or two."""
    from batchcap.decoder.kept import prepare_sharing  # noqa: PLC0415 - loads ONNX Runtime

    return prepare_sharing(bundle)


def _popen(command: list[str], socket_fd: int) -> subprocess.Popen[bytes]:
    """Start a worker that SIGINT and SIGTERM can't meet before it is ready to ignore them.

    Both reach every process of a group, also one that has not run its first line yet. The mask is inherited; the
    worker lifts it when the signals are set to be ignored.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        return subprocess.Popen(
            [*command, str(socket_fd)],
            pass_fds=[socket_fd],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # stdout carries results only
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_of(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code of a process that is ending; None where it does not come to its end."""
    try:
        return process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return None


@dataclass(slots=True)
class _Ledger:
    """Where every row in flight is."""

    rows: dict[int, ImageRow] = field(default_factory=dict)
    facts: dict[int, PictureFacts] = field(default_factory=dict)
    waiting: deque[Features] = field(default_factory=deque)
    waiting_bytes: int = 0
    reading: int = 0
    twins: dict[int, list[Twin]] = field(default_factory=dict)  # by the row they are twins of, which is in flight
    twins_waiting: int = 0


class LocalEngine:
    """One vision worker and a pool of decoder workers on this machine."""

    def __init__(self, bundle: Bundle, config: JobConfig) -> None:
        placement = config.placement
        threads = Threads.of(placement, available_cores())
        cores = plan_for(placement)
        if any(cores.decoders):
            log.info("cores: %s", cores.to_text())
        geometry = bundle.geometry
        values_per_token = geometry.text.hidden_size * (1 + len(geometry.vision.deepstack_levels))
        self._largest_bytes = config.vision.max_visual_tokens * values_per_token * 4
        self._queue_bytes = placement.queue_mib * MIB
        self._guard = MemoryGuard(placement.slots)
        self._slots, self._slots_a_row = placement.slots, len(config.generation.prompts)
        self._ledger = _Ledger()
        self._failure: BatchcapError | None = None
        self._busy_s: dict[str, float] = dict.fromkeys(("read", "vision", "prefill", "decode"), 0.0)
        folder = str(bundle.folder)
        vision_spec = VisionSpec(
            bundle_folder=folder,
            bundle_id=bundle.id,
            vision=config.vision,
            threads=threads.vision,
            patch_budget=placement.patch_budget,
            find_twins=not config.generation.depends_on_row,
            cpus=cores.vision,
        )
        self._decoders: list[Worker] = []
        self._vision = Worker("vision", vision_spec)
        decoder_spec = DecoderSpec(
            bundle_folder=folder,
            bundle_id=bundle.id,
            generation=config.generation,
            slots=placement.slots,
            threads=threads.decoder,
            max_visual_tokens=config.vision.max_visual_tokens,
            share_weights=placement.decoders > 1 and _sharing(bundle),  # while the vision worker loads already
        )
        for number, cpus in enumerate(cores.decoders):
            self._decoders.append(Worker(f"decoder {number}", replace(decoder_spec, cpus=cpus)))

    def start(self, should_stop: Callable[[], bool]) -> None:
        """Wait until every worker has loaded its model, or it is time to stop.

        Raises:
            BatchcapError: a worker could not start; the message and exit code are the worker's.
        """
        try:
            self._await_ready(should_stop)
        except BaseException:
            self.close()
            raise

    def _await_ready(self, should_stop: Callable[[], bool]) -> None:
        loading = {worker.connection: worker for worker in self._workers}
        ends_s = time.perf_counter() + START_TIMEOUT_S
        while loading and not should_stop():
            for connection in wait(list(loading), START_POLL_S):
                worker = loading.pop(connection)  # type: ignore[call-overload]
                message = self._receive(worker)
                if not isinstance(message, Ready):
                    raise WorkerError(f"the {worker.name} process began with {type(message).__name__}")
            if loading and time.perf_counter() >= ends_s:
                names = ", ".join(worker.name for worker in loading.values())
                raise WorkerError(
                    f"no model loaded in {START_TIMEOUT_S:.0f} s ({names}): is the disk with the bundle very slow?"
                )

    @property
    def _workers(self) -> list[Worker]:
        return [self._vision, *self._decoders]

    @property
    def has_room(self) -> bool:
        """Whether one more row fits: the features it may become are counted before it is read."""
        ledger = self._ledger
        if self._guard.is_short and ledger.rows:
            return False
        if ledger.reading >= VISION_WINDOW_ROWS or ledger.twins_waiting >= TWIN_WINDOW_ROWS:
            return False
        if not ledger.reading and not ledger.waiting:
            return True  # a picture larger than the whole queue must still pass
        return ledger.waiting_bytes + (ledger.reading + 1) * self._largest_bytes <= self._queue_bytes

    @property
    def in_flight(self) -> int:
        """Rows submitted whose outcome has not been returned yet."""
        return len(self._ledger.rows)

    def remember(self, pictures: list[tuple[str, int]]) -> None:
        """Tell the vision worker of pictures captioned before."""
        if pictures:
            self._vision.send(Captioned(pictures))

    def submit(self, row: ImageRow) -> None:
        """Send one row to the vision worker; never waits."""
        # The encoded picture is the worker's now; what stays here must not hold it in memory.
        self._ledger.rows[row.index] = ImageRow(row.index, row.id, row.source, row.row, row.path)
        self._ledger.reading += 1
        self._vision.send(row)

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Outcomes that have arrived; see `Engine.poll`."""
        if self._failure is not None:
            raise self._failure
        self._guard.check()
        outcomes: list[Outcome] = []
        by_connection = {worker.connection: worker for worker in self._workers}
        for connection in wait(list(by_connection), timeout_s):
            worker = by_connection[connection]  # type: ignore[index]
            try:
                self._take_all(worker, outcomes)
            except BatchcapError as error:
                # What came before the error is whole and goes out first; from the other workers more may have come.
                self._failure = self._failure or error
        if self._failure is not None and not outcomes:
            raise self._failure
        self._feed_decoders()
        return outcomes

    def _take_all(self, worker: Worker, outcomes: list[Outcome]) -> None:
        """Take in everything a worker has sent by now."""
        while worker.connection.poll():
            outcome = self._take(worker, self._receive(worker))
            if outcome is not None:
                outcomes.append(outcome)
                outcomes += self._twins_of(outcome.row.index)

    def _receive(self, worker: Worker) -> object:
        try:
            message: object = worker.connection.recv()
        except (EOFError, OSError):
            raise worker.death() from None
        if isinstance(message, Fatal):
            error = BatchcapError(f"the {worker.name} process can't work: {message.message}")
            error.exit_code = ExitCode(message.exit_code)
            raise error
        return message

    def _take(self, worker: Worker, message: object) -> Outcome | None:
        ledger = self._ledger
        if isinstance(message, Busy):
            self._busy_s[message.stage] += message.seconds
            return None
        if isinstance(message, Features):
            ledger.reading -= 1
            ledger.facts[message.index] = PictureFacts(
                message.width, message.height, message.sha256, message.read_ms, message.vision_ms
            )
            ledger.waiting.append(message)
            ledger.waiting_bytes += message.nbytes
            return None
        if isinstance(message, Twin):
            ledger.reading -= 1
            if message.of not in ledger.rows:
                return Outcome(ledger.rows.pop(message.index), message)
            ledger.twins.setdefault(message.of, []).append(message)
            ledger.twins_waiting += 1
            return None
        if not isinstance(message, tuple | Failure):
            raise WorkerError(f"the {worker.name} process sent {type(message).__name__}, which nobody expects")
        if worker is self._vision:
            ledger.reading -= 1
        else:
            worker.rows -= 1
        index = message.index if isinstance(message, Failure) else message[0].index
        return Outcome(ledger.rows.pop(index), message, ledger.facts.pop(index, None))

    def _twins_of(self, index: int) -> list[Outcome]:
        """The outcomes of rows that have waited for the outcome of this one."""
        twins = self._ledger.twins.pop(index, [])
        self._ledger.twins_waiting -= len(twins)
        return [Outcome(self._ledger.rows.pop(twin.index), twin) for twin in twins]

    @property
    def _decoder_rows(self) -> int:
        """Rows that a decoder may hold."""
        slots = self._guard.slots
        ahead = DECODER_AHEAD_ROWS if slots == self._slots else 0
        return -(-slots // self._slots_a_row) + ahead

    def _feed_decoders(self) -> None:
        """Give waiting rows to the decoders with the most room."""
        ledger = self._ledger
        while ledger.waiting:
            worker = min(self._decoders, key=lambda one: one.rows)
            if worker.rows >= self._decoder_rows:
                return  # the others have no more room
            features = ledger.waiting.popleft()
            ledger.waiting_bytes -= features.nbytes
            worker.rows += 1
            worker.send(DecodeWork(ledger.rows[features.index].id, features))

    def load(self) -> EngineLoad:
        """What the stages are doing."""
        return EngineLoad(
            busy_s=dict(self._busy_s),
            reading_rows=self._ledger.reading,
            queue_rows=len(self._ledger.waiting),
            queue_mib=self._ledger.waiting_bytes / MIB,
            decoding_rows=sum(worker.rows for worker in self._decoders),
        )

    def process_ids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """End all workers at once."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.close()
