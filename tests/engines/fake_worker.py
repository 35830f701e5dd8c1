"""A worker process without a model that behaves as its two arguments say: as vision worker, as decoder worker."""

import os
import signal
import struct
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from batchcap.core.errors import ErrorKind
from batchcap.core.records import Caption, Duplicate, Failure, Features, FinishReason, Request, Verdict
from batchcap.engines.dedup import SeenImages
from batchcap.engines.messages import Captioned, DecodeWork, Fatal, Ready, StageTime, VisionSpec
from batchcap.inputs.encoded import digest, read_encoded

SEEN = SeenImages()


def main() -> None:
    connection = Connection(int(sys.argv[3]))
    is_vision = isinstance(connection.recv(), VisionSpec)
    behaviour = sys.argv[1 if is_vision else 2]
    if behaviour == "never ready":
        time.sleep(60)
    if behaviour == "nonsense first":
        connection.send("hello")
    if behaviour == "refuse":
        connection.send(Fatal("the prompt is too long", 2))
    if behaviour == "exit":
        sys.exit(7)
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
        sys.exit()


if __name__ == "__main__":
    main()
