"""The process that reads the inputs: a crash of native code ends it, and the harness knows over which input."""

import faulthandler
import os
import resource
import traceback
import warnings
from enum import StrEnum
from multiprocessing.connection import Connection
from pathlib import Path

from batchcap.core.errors import BatchcapError, RowError
from tests.fuzz.registry import TARGETS

MEMORY_BYTES = 4 << 30
FILE_BYTES = 1 << 30


class Outcome(StrEnum):
    """What became of an input."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    CRASHED = "crashed"


def serve(connection: Connection, name: str, folder: Path) -> None:
    """Read inputs from the harness, and tell it what became of each, until it goes."""
    errors = os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(errors, 2)
    faulthandler.enable()
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["BATCHCAP_CACHE"] = os.devnull  # no place for the indexes of inputs
    path = folder / "input"
    while True:
        try:
            content = connection.recv_bytes()
        except EOFError:
            return
        path.write_bytes(content)
        try:
            TARGETS[name].read(content, path)
            outcome, why = Outcome.ACCEPTED, ""
        except (BatchcapError, RowError) as error:
            outcome, why = Outcome.REJECTED, str(error)
        except BaseException:  # noqa: BLE001 - whatever it is, it is what is looked for
            outcome, why = Outcome.CRASHED, traceback.format_exc()
        connection.send((outcome, why))
