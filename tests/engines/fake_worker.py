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
from batchcap.core.records import Caption, Duplicate, Failure, Features, FinishReason, ImageRow, Verdict
from batchcap.engines.messages import Captioned, Fatal, Ready, StageTime, VisionSpec


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
    stage, name = (
        ("vision", message.id) if isinstance(message, ImageRow) else ("decoder", getattr(message, "row_id", ""))
    )
    _misbehave(connection, name.partition(f" {stage}")[0])
    if behaviour == "nonsense":
        connection.send({"odd": 1})
    elif isinstance(message, Captioned):
        return
    elif isinstance(message, ImageRow):
        if message.id.startswith("twin"):
            connection.send(Duplicate(message.index, message.row, 0.5))
            return
        if message.id.startswith("bad"):
            connection.send(Failure(message.index, ErrorKind.CORRUPT, "cut"))
            return
        connection.send(StageTime("vision", 0.5))
        embeds = np.zeros((4, 8), np.float32)
        connection.send(Features(message.index, embeds, np.zeros((1, 4, 8), np.float32), (2, 2), 64, 48, "0", 1.0, 2.0))
    else:
        index = message.features.index
        caption = Caption(index, (1, 2), f"of {message.row_id}", FinishReason.STOP, Verdict.OK, 9, 4, 3.0, 4.0)
        connection.send(StageTime("decode", 0.25))
        connection.send((caption,))


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
