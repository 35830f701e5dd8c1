"""Owns what coordinator and workers say to each other; light to import, no model library."""

import io
import os
import queue
import threading
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from batchcap.config import GenerationConfig, VisionConfig
from batchcap.core.records import Features, Request

# One image at a time is the least there is; from here on nothing gets less.
MAX_DIVISOR = 64


def send(connection: Connection, message: object) -> None:
    """Send a message as `connection.send` does, but leave no view of a buffer behind when nobody reads any more.

    Such a view stays in the traceback, and the garbage collector meets the buffer first: Python 3.13 and later complain
    on stderr, early releases of 3.12 crash.

    Raises:
        OSError: the other end is closed.
    """
    buffer = io.BytesIO()
    ForkingPickler(buffer).dump(message)
    connection.send_bytes(buffer.getvalue())


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """What the vision worker is built from.

    Attributes:
        divisor: readers, lanes and patches of a pass are so many times fewer than usual; never changes a feature.
    """

    bundle_folder: str
    bundle_id: str
    vision: VisionConfig
    threads: int
    patch_budget: int
    cpus: tuple[int, ...] = ()  # to be kept on; none: any
    sign_file: int | None = None  # of a `BusyFlag`
    divisor: int = 1

    def with_less(self) -> "VisionSpec":
        """The same with half as much in memory at once."""
        return replace(self, divisor=min(2 * self.divisor, MAX_DIVISOR))


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """What a decoder worker is built from.

    Attributes:
        generation: what requests usually ask; decides how large a slot is.
        share_weights: see `decoder.load.open_decoder`.
    """

    bundle_folder: str
    bundle_id: str
    generation: GenerationConfig
    slots: int
    threads: int
    max_visual_tokens: int
    share_weights: bool = False
    cpus: tuple[int, ...] = ()  # to be kept on; none: any
    sign_file: int | None = None  # of a `BusyFlag`

    def with_less(self) -> "DecoderSpec":
        """The same with half as much in memory at once."""
        return replace(self, slots=max(1, self.slots // 2))


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker has loaded its model and takes work."""

    load_s: float


@dataclass(frozen=True, slots=True)
class StageTime:
    """Seconds of work done in a stage since the last such message of the lane; also a sign of life.

    Attributes:
        lane: of a decoder.
        is_idle: the lane has nothing left to do and says no more until there is.
    """

    stage: str
    seconds: float
    lane: int = 0
    is_idle: bool = False


@dataclass(frozen=True, slots=True)
class Fatal:
    """The worker can't go on; `exit_code` is the one of the error it met, which may be that memory was lacking."""

    message: str
    exit_code: int
    lacked_memory: bool = False


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """One request for a decoder."""

    request: Request
    features: Features


@dataclass(frozen=True, slots=True)
class Captioned:
    """Images that were captioned before; see `Engine.seed_dedup`."""

    caption_key: str
    images: list[tuple[str, int]]


class Inbox:
    """Takes messages off the socket at once, so that the coordinator's sends never wait for a model step."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._receive, name="inbox", daemon=True).start()

    def _receive(self) -> None:
        while True:
            try:
                self._queue.put(self._connection.recv())
            except (EOFError, OSError):
                # The coordinator is gone. Leave at once, also out of the middle of a long native call:
                # nothing here is worth saving, the rows are still undone in the journal.
                os._exit(0)
            except Exception as error:  # noqa: BLE001 - a thread's edge: who takes messages is told
                self._queue.put(error)
                return

    def get(self) -> Any:  # noqa: ANN401 - the message types differ by worker
        """The next message; waits for it.

        Raises:
            Exception: what befell the reading of a message: lack of memory, say.
        """
        return self._sound(self._queue.get())

    def get_within(self, seconds: float) -> Any | None:  # noqa: ANN401 - the message types differ by worker
        """The next message, or None if none comes in time; raises as `get` does."""
        try:
            return self._sound(self._queue.get(timeout=seconds))
        except queue.Empty:
            return None

    @staticmethod
    def _sound(message: Any) -> Any:  # noqa: ANN401 - the message types differ by worker
        if isinstance(message, Exception):
            raise message
        return message
