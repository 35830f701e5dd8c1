"""Work in a process of its own that kills itself at a step: before any change of the disk, or half-way in a file."""

import gc
import os
import pickle
import signal
import tarfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.dataset  # noqa: F401 - loaded at the first table that is read: not by each process that is forked
import pyarrow.parquet as pq

from batchcap.core.errors import BatchcapError
from batchcap.outputs import folders, lists
from batchcap.outputs.ledger import Ledger

KILLED = -signal.SIGKILL
BROKEN = 99
# What changes the disk, and what is called between two writes into one file: the process may die before each.
STEPS: tuple[tuple[Any, str], ...] = (
    *((os, name) for name in ("replace", "link", "unlink", "mkdir", "fsync")),
    *((Ledger, name) for name in ("note", "note_part", "forget_part")),
    (tarfile.TarFile, "addfile"),
    (pq.ParquetWriter, "write_table"),
    (lists, "wanted_rows"),
    (folders.PartFolder, "made_of"),
)


@dataclass(frozen=True, slots=True)
class End:
    """How a process ended.

    Attributes:
        code: its exit code; negative: the signal.
        said: what its work gave, or the error.
        steps: how many there were.
    """

    code: int
    said: Any = None
    steps: int = 0


def end_of(work: Callable[[], Any], dies_at: int = 0) -> End:
    """Do work in a fork, which kills itself at a step; 0: never."""
    gc.freeze()
    there, here = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(there)
        _work(work, dies_at, here)
    os.close(here)
    with os.fdopen(there, "rb") as file:
        told = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    gc.unfreeze()
    said, steps = pickle.loads(told) if told else (None, 0)
    assert code != BROKEN, said
    return End(code, said, steps)


def _work(work: Callable[[], Any], dies_at: int, here: int) -> None:
    code, said, steps = BROKEN, None, _Steps(dies_at)
    try:
        steps.install()
        said = work()
        code = 0
    except BatchcapError as error:
        code, said = int(error.exit_code), str(error)
    except BaseException:  # noqa: BLE001 - told to the test
        said = traceback.format_exc()
    finally:
        os.write(here, pickle.dumps((said, steps.count)))
        os._exit(code)


class _Steps:
    def __init__(self, dies_at: int) -> None:
        self.count = 0
        self._dies_at = dies_at

    def install(self) -> None:
        for owner, name in STEPS:
            setattr(owner, name, self._counted(getattr(owner, name)))
        write_bytes = Path.write_bytes

        def written(path: Path, content: bytes) -> int:
            if self.count + 2 == self._dies_at:
                write_bytes(path, content[: len(content) // 2])
            self._pass()
            self._pass()
            return write_bytes(path, content)

        Path.write_bytes = written  # type: ignore[method-assign, assignment]

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*values: Any, **named: Any) -> Any:
            self._pass()
            return call(*values, **named)

        return counted

    def _pass(self) -> None:
        self.count += 1
        if self.count == self._dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
