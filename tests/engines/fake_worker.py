"""A worker process without a model that behaves as it is told: as vision worker, as decoder worker.

It is forked from the process of the tests, and has no thread but its own.
"""

import os
import signal
import struct
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import numpy as np

from batchcap.core.errors import ErrorKind
from batchcap.core.records import Caption, Duplicate, Failure, Features, FinishReason, Request, Verdict
from batchcap.engines.dedup import SeenImages
from batchcap.engines.messages import Captioned, DecodeWork, Fatal, Ready, StageTime, VisionSpec
from batchcap.inputs.encoded import digest, read_encoded

SEEN = SeenImages()
_LAST_FILE = 1 << 16


def become(vision: str, decoder: str, socket_fd: int) -> NoReturn:
    """What a fork does from its first line to its end; no file that it has inherited but the socket stays open."""
    code = 1
    try:
        os.closerange(3, socket_fd)
        os.closerange(socket_fd + 1, _LAST_FILE)
        code = _work(vision, decoder, Connection(socket_fd))
    except EOFError:  # nobody writes to it any more
        pass
    except BaseException:  # noqa: BLE001 - a fork must not go on with the tests
        traceback.print_exc()
    finally:
        os._exit(code)


def _work(vision: str, decoder: str, connection: Connection) -> int:
    """Returns its exit code, where it comes to an end by itself."""
    is_vision = isinstance(connection.recv(), VisionSpec)
    behaviour = vision if is_vision else decoder
    if behaviour == "never ready":
        time.sleep(60)
    if behaviour == "nonsense first":
        connection.send("hello")
    if behaviour == "refuse":
        connection.send(Fatal("the prompt is too long", 2))
    if behaviour == "exit":
        return 7
    connection.send(Ready(0.1))
    while True:
        _answer(connection, connection.recv(), behaviour)


def _answer(connection: Connection, message: Any, behaviour: str) -> None:
    if behaviour == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    stage = "vision" if isinstance(message, Request) else "decoder"
    request = message.request if isinstance(message, DecodeWork) else message
    name = request.row.id if isinstance(request, Request) else ""
    _misbehave(connection, name.partition(f" {stage}")[0])
    if behaviour == "nonsense":
        connection.send({"odd": 1})
    elif isinstance(message, Captioned):
        for sha256, index in message.images:
            SEEN.first_row(sha256, message.caption_key, index)
    elif isinstance(message, Request):
        first = _first_row(message)
        if first != message.index:
            connection.send(Duplicate(message.index, first, 0.5))
            return
        if name.startswith("bad"):
            connection.send(Failure(message.index, ErrorKind.CORRUPT, "cut"))
            return
        connection.send(StageTime("vision", 0.5))
        embeds = np.zeros((4, 8), np.float32)
        connection.send(Features(message.index, embeds, np.zeros((1, 4, 8), np.float32), (2, 2), 64, 48, "0", 1.0, 2.0))
    else:
        connection.send(StageTime("decode", 0.25))
        connection.send(tuple(_caption(request, number) for number in range(len(request.prompts))))


def _caption(request: Request, number: int) -> Caption:
    text = f"of {request.row.id}"
    return Caption(request.index, (1, 2), text, FinishReason.STOP, Verdict.OK, 9, 4, 3.0, 4.0, prompt=number)


def _first_row(request: Request) -> int:
    """The row that had the image first: by its bytes where the id says `seen`, the one that the row names otherwise."""
    if request.row.id.startswith("duplicate"):
        return request.row.row
    if request.row.id.startswith("seen") and request.caption_key is not None:
        return SEEN.first_row(digest(read_encoded(request.row)), request.caption_key, request.index)
    return request.index


def _misbehave(connection: Connection, how: str) -> None:
    if how == "kills":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stops":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "blocks":  # one lane hangs, the other goes on
        connection.send(StageTime("prefill", 0.0, lane=1))
        while True:
            connection.send(StageTime("decode", 0.0, lane=0))
            time.sleep(0.05)
    if how == "stammers":
        os.write(connection.fileno(), struct.pack("!i", 1000) + b"half")
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "breaks":
        connection.send(Fatal("RuntimeError: bad allocation", 1, lacked_memory=True))
        os._exit(0)
