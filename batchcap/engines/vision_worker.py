"""Owns the vision worker: reads pictures on a few threads, packs what is ready, encodes it."""

import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import numpy as np

from batchcap.bundle import Bundle
from batchcap.engines.messages import Busy, Captioned, Inbox, VisionSpec
from batchcap.engines.sign import WorkSign
from batchcap.engines.twins import KnownPictures
from batchcap.errors import ErrorKind, RowError
from batchcap.geometry import VisionGeometry
from batchcap.images import patches_of, read_picture
from batchcap.records import Failure, Features, ImageRow, Patches, Twin
from batchcap.vision.backend import load_encoder

READ_THREADS = 2
# So long a picture waits for others that are being read, where lanes of the encoder would be idle without them.
GATHER_S = 0.05


def _blank(geometry: VisionGeometry) -> Patches:
    """The smallest picture: one visual token."""
    side = geometry.merge_size
    values = np.zeros((side**2, geometry.patch_values), np.float32)
    return Patches(index=-1, values=values, grid=(side, side), width=1, height=1, sha256="", read_ms=0.0)


class VisionWorker:
    """Turns rows into features, several pictures a pass of the encoder."""

    def __init__(self, spec: VisionSpec, connection: Connection) -> None:
        self._connection = connection
        self._config = spec.vision
        self._patch_budget = spec.patch_budget
        self._sign = WorkSign(spec.sign_file)
        self._bundle = Bundle.load_again(spec.bundle_folder, spec.bundle_id)
        self._encoder = load_encoder(self._bundle, spec.vision, spec.threads)
        # An encoder that can't work on this machine ends the job here, before it fails row after row.
        self._encoder.encode([_blank(self._bundle.geometry.vision)])
        self._readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="read")
        self._known = KnownPictures() if spec.find_twins else None
        self._loaded: queue.SimpleQueue[Patches | Failure | Twin] = queue.SimpleQueue()
        self._carried: Patches | None = None
        self._to_read = self._taken = 0

    def run(self, inbox: Inbox) -> None:
        """Work until the coordinator goes away (the inbox ends the process then)."""
        threading.Thread(target=self._dispatch, args=(inbox,), name="dispatch", daemon=True).start()
        while True:
            batch = self._next_batch()
            if batch:
                with self._sign.put_up():
                    self._encode(batch)

    def _dispatch(self, inbox: Inbox) -> None:
        while True:
            message = inbox.get()
            if not isinstance(message, Captioned):
                self._to_read += 1
                self._readers.submit(self._read, message)
            elif self._known is not None:
                for sha256, index in message.pictures:
                    self._known.first_row(sha256, index)

    def _read(self, row: ImageRow) -> None:
        result: Patches | Failure | Twin
        try:
            result = self._load(row)
        except RowError as error:
            result = Failure(row.index, error.kind, error.message)
        except Exception as error:  # noqa: BLE001 - a worker's edge: one picture must not end the job
            result = Failure(row.index, ErrorKind.INTERNAL, f"{type(error).__name__}: {error}")
        self._loaded.put(result)

    def _load(self, row: ImageRow) -> Patches | Twin:
        geometry = self._bundle.geometry
        picture = read_picture(row)
        if self._known is not None:
            first = self._known.first_row(picture.sha256, row.index)
            if first != row.index:
                return Twin(row.index, first, picture.read_ms)
        return patches_of(picture, geometry.vision, geometry.image, self._config)

    def _next_batch(self) -> list[Patches]:
        """Pictures ready now, up to the patch budget; waits for the first. Failures and twins are passed on."""
        batch: list[Patches] = []
        patches = 0
        for item in self._ready_items(batch):
            if isinstance(item, Failure | Twin):
                self._connection.send(item)
                continue
            if batch and patches + len(item.values) > self._patch_budget:
                self._carried = item
                break
            batch.append(item)
            patches += len(item.values)
        return batch

    def _ready_items(self, batch: list[Patches]) -> Iterator[Patches | Failure | Twin]:
        """What has been read, to fill a batch with; waits for the first, and a little where lanes would be idle."""
        if self._carried is not None:
            carried, self._carried = self._carried, None
            yield carried
        else:
            yield self._take(None)
        while True:
            waits = len(batch) < self._encoder.lanes and self._taken < self._to_read
            try:
                yield self._take(GATHER_S if waits else 0)
            except queue.Empty:
                return

    def _take(self, wait_s: float | None) -> Patches | Failure | Twin:
        item = self._loaded.get(timeout=wait_s)
        self._taken += 1
        return item

    def _encode(self, batch: list[Patches]) -> None:
        results: list[Features | Failure] = []
        started = time.perf_counter()
        try:
            results.extend(self._encoder.encode(batch))
        except Exception as error:  # noqa: BLE001 - a worker's edge
            if len(batch) > 1:  # find the picture that is to blame
                for patches in batch:
                    self._encode([patches])
                return
            results.append(Failure(batch[0].index, ErrorKind.INTERNAL, f"{type(error).__name__}: {error}"))
        self._connection.send(Busy("read", sum(patches.read_ms for patches in batch) / 1000))
        self._connection.send(Busy("vision", time.perf_counter() - started))
        for result in results:
            self._connection.send(result)
