"""Owns the vision worker: one encoder, threads that read images for it, and the lanes that encode them side by side.

Threads that share one pass wait for one another at the end of every product and copy; images have nothing to wait
for. Measured at 2B on two cores, four images, two lanes of one thread each instead of two threads a pass: bf16
(PyTorch) 1.27 times as fast with 900 patches each and 1.31 with 256, int8 (ONNX Runtime) 1.12 and 1.09. Each lane takes
images when it has time: when a batch was shared out among lanes, one core was idle for 2.5 of 54 s at batches' ends.
"""

import queue
import threading
import time
from collections import deque
from functools import partial
from multiprocessing.connection import Connection

import numpy as np

from batchcap.core.errors import ErrorKind, RowError, lacks_memory
from batchcap.core.records import Duplicate, Failure, Features, Patches, Request
from batchcap.engines.busy_flag import BusyFlag
from batchcap.engines.dedup import SeenImages
from batchcap.engines.messages import Captioned, Inbox, StageTime, VisionSpec, send
from batchcap.engines.threads import run_until_first_failure
from batchcap.images.preprocess import patches_of
from batchcap.inputs.encoded import read_image
from batchcap.model.bundle import Bundle
from batchcap.model.geometry import VisionGeometry
from batchcap.vision.backend import load_encoder

READ_THREADS = 2
# A lane needs an image of its own; with more cores each gets more threads instead.
MAX_LANES = 4
# A pass gets no faster with more and takes more memory: at 2B two lanes took 53 MiB more with 1800 each.
PASS_PATCHES = 1024


def _blank(geometry: VisionGeometry) -> Patches:
    """The smallest image: one visual token."""
    side = geometry.merge_size
    values = np.zeros((side**2, geometry.patch_values), np.float32)
    return Patches(index=-1, values=values, grid=(side, side), width=1, height=1, sha256="", read_ms=0.0)


class VisionWorker:
    """Turns requests into features, in several passes of the encoder at once."""

    def __init__(self, spec: VisionSpec, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._config = spec.vision
        self._lanes = max(1, lane_count(spec.threads) // spec.divisor)
        self._readers = max(1, READ_THREADS // spec.divisor)
        self._sign = BusyFlag(spec.sign_file)
        self._bundle = Bundle.load_again(spec.bundle_folder, spec.bundle_id)
        self._encoder = load_encoder(self._bundle, spec.vision, spec.threads, self._lanes)
        # An encoder that can't work on this machine ends the job here, before it fails row after row.
        self._encoder.encode([_blank(self._bundle.geometry.vision)])
        self._lane_patches = min(PASS_PATCHES, spec.patch_budget // self._lanes) // spec.divisor
        self._seen = SeenImages()
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._loaded: deque[Patches] = deque()
        self._has_loaded = threading.Condition()
        self._given = self._answered = 0  # rows

    def run(self, inbox: Inbox) -> None:
        """Work until the coordinator goes away (the inbox ends the process then)."""
        readers, lanes = [self._read_rows] * self._readers, [self._encode_images] * self._lanes
        run_until_first_failure([partial(self._dispatch, inbox), *readers, *lanes], self._sending)

    def _dispatch(self, inbox: Inbox) -> None:
        while True:
            message = inbox.get()
            if not isinstance(message, Captioned):
                self._given += 1
                self._requests.put(message)
                continue
            for sha256, index in message.images:
                self._seen.first_row(sha256, message.caption_key, index)

    def _read_rows(self) -> None:
        while True:
            self._read(self._requests.get())

    def _read(self, request: Request) -> None:
        result: Patches | Failure | Duplicate
        try:
            result = self._load(request)
        except RowError as error:
            result = Failure(request.index, error.kind, error.message)
        except Exception as error:  # a worker's edge: one image must not end the job
            if lacks_memory(error):  # not the row's fault, or not its alone: who comes after this worker finds out
                raise
            result = Failure(request.index, ErrorKind.INTERNAL, f"{type(error).__name__}: {error}")
        if not isinstance(result, Patches):
            self._answer(result)
            return
        with self._has_loaded:
            self._loaded.append(result)
            self._has_loaded.notify()

    def _load(self, request: Request) -> Patches | Duplicate:
        geometry = self._bundle.geometry
        image = read_image(request.row)
        if request.caption_key is not None:
            first = self._seen.first_row(image.sha256, request.caption_key, request.index)
            if first != request.index:
                return Duplicate(request.index, first, image.read_ms)
        return patches_of(image, geometry.vision, geometry.image, self._config)

    def _encode_images(self) -> None:
        """One lane."""
        while True:
            batch = self._next_batch()
            is_alone = self._given - self._answered == 1  # nothing to share the threads with: it gets all of them
            with self._sign.hold():
                self._encode(batch, 1 if is_alone else self._lanes)

    def _next_batch(self) -> list[Patches]:
        """Images for one pass: this lane's share of those that are ready, in order; waits for the first."""
        with self._has_loaded:
            self._has_loaded.wait_for(lambda: self._loaded)
            most = -(-len(self._loaded) // self._lanes)
            batch = [self._loaded.popleft()]
            patches = len(batch[0].values)
            while len(batch) < most and patches + len(self._loaded[0].values) <= self._lane_patches:
                batch.append(self._loaded.popleft())
                patches += len(batch[-1].values)
            return batch

    def _encode(self, batch: list[Patches], lanes: int) -> None:
        started_s = time.perf_counter()
        results: list[Features | Failure] = []
        try:
            results.extend(self._encoder.encode(batch, lanes))
        except Exception as error:  # a worker's edge
            if lacks_memory(error):
                raise
            if len(batch) > 1:  # find the image that is to blame
                for patches in batch:
                    self._encode([patches], lanes)
                return
            results.append(Failure(batch[0].index, ErrorKind.INTERNAL, f"{type(error).__name__}: {error}"))
        vision_s = (time.perf_counter() - started_s) / lanes
        read_s = sum(patches.read_ms for patches in batch) / 1000
        self._answer(*results, busy=(StageTime("read", read_s), StageTime("vision", vision_s)))

    def _answer(self, *results: Features | Failure | Duplicate, busy: tuple[StageTime, ...] = ()) -> None:
        with self._sending:
            self._answered += len(results)
            for message in (*busy, *results):
                send(self._connection, message)


def lane_count(threads: int) -> int:
    """How many lanes an encoder with so many threads has."""
    return min(threads, MAX_LANES)
