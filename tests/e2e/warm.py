"""`batchcap` processes that start in a moment: forked from one that has imported what the command needs.

A `batchcap` command spends half a second or more on its imports, and these tests run hundreds of them. `Warm` is a
process like that of `subprocess.Popen`, and what runs in it is what `python -m batchcap.cli` runs, from its first line
to the interpreter's end: with standard streams, environment, working folder, session, process id and exit code of its
own. The workers that it starts are forked from it in the same way (`_Worker`). Tests of the start itself, of what it
imports, of signals or of workers that are killed start their processes themselves. With TESTS_COLD=1 in the environment
all of them do.

The other side of the socket is `python -m tests.e2e.warm SOCKET [torch]`: one process with one thread, so that a fork
of it is sound.
"""

import atexit
import gc
import importlib
import json
import logging
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, NoReturn, TextIO

from batchcap.core.signals import STOP_SIGNALS

# What the commands and their workers import when they are called; `batchcap.cli` itself is run anew in each process.
# PyTorch is only for the tests that say so: with it a process takes longer to fork and to end.
IMPORTED = (
    "batchcap.commands.bundles",
    "batchcap.commands.captioning",
    "batchcap.commands.inspection",
    "batchcap.commands.jobfile",
    "batchcap.commands.results",
    "batchcap.engines.capacity",
    "batchcap.engines.decoder_worker",
    "batchcap.engines.local",
    "batchcap.engines.process",
    "batchcap.engines.vision_worker",
    "batchcap.export.demo",
    "batchcap.job.run",
    "batchcap.report.page",
    "batchcap.report.status",
    "batchcap.vision.onnx_encoder",
    "onnxruntime",
    "pandas",  # PyArrow looks for it
    "pyarrow.parquet",
    "pydantic",  # Typer needs it for some options
)
OBEYING = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
_MAX_BYTES = 1 << 17
_START_S = 60.0


def is_cold() -> bool:
    """Whether every process is to be started in the ordinary way."""
    return os.environ.get("TESTS_COLD") == "1"


def obeying(command: Sequence[str]) -> list[str]:
    """A command that may read and write only what the files' modes allow, also as root."""
    return [*OBEYING, *command] if os.geteuid() == 0 else list(command)


class _Server:
    """The process that forks, and the ends of those that it has forked."""

    def __init__(self, *, obeys_modes: bool, torch: bool) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.e2e.warm", str(theirs.fileno()), *(["torch"] if torch else [])]
            self._process = subprocess.Popen(
                obeying(command) if obeys_modes else command,
                cwd=Path(__file__).parents[2],
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # NumPy's BLAS would have threads, too
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self.socket.settimeout(_START_S)
        self._ends: dict[int, int] = {}
        atexit.register(self._end)

    def _end(self) -> None:
        self.socket.close()
        self._process.wait(_START_S)

    def start(self, request: dict[str, Any], streams: Sequence[int]) -> int:
        """The process id of a new process."""
        socket.send_fds(self.socket, [json.dumps(request).encode()], streams)
        while True:
            told = self._receive()
            if "started" in told:
                return int(told["started"])

    def end_of(self, pid: int, timeout_s: float) -> int | None:
        """The wait status of a process; None where it has none yet."""
        ends_s = time.monotonic() + timeout_s
        while pid not in self._ends:
            left_s = max(0.0, ends_s - time.monotonic())
            if not select.select([self.socket], [], [], left_s)[0]:
                return None
            self._receive()
        return self._ends[pid]

    def _receive(self) -> dict[str, int]:
        told: dict[str, int] = json.loads(self.socket.recv(_MAX_BYTES) or b"{}")
        assert told, "the process that starts others has ended"
        if "ended" in told:
            self._ends[told["ended"]] = told["status"]
        return told


_SERVERS: dict[tuple[bool, bool], _Server] = {}


class Warm:
    """A process that was forked, with the part of `subprocess.Popen`'s face that the tests need."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        streams: tuple[int, int, int],
        environment: Mapping[str, str],
        *,
        cwd: Path | None = None,
        new_session: bool = False,
        obeys_modes: bool = False,
        torch: bool = False,
    ) -> None:
        kind = (obeys_modes and os.geteuid() == 0, torch)
        if kind not in _SERVERS:
            _SERVERS[kind] = _Server(obeys_modes=kind[0], torch=torch)
        self._server = _SERVERS[kind]
        self.args = [sys.executable, "-m", module, *arguments]
        self.returncode: int | None = None
        self.stderr: TextIO | None = None
        request = {
            "module": module,
            "arguments": list(arguments),
            "environment": dict(environment),
            "cwd": str(cwd or Path.cwd()),
            "new_session": new_session,
        }
        self.pid = self._server.start(request, streams)

    def poll(self) -> int | None:
        """Its exit code if it has ended."""
        return self._end(0.0)

    def wait(self, timeout: float = _START_S) -> int:
        """Its exit code."""
        code = self._end(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def _end(self, timeout_s: float) -> int | None:
        if self.returncode is None:
            status = self._server.end_of(self.pid, timeout_s)
            self.returncode = None if status is None else os.waitstatus_to_exitcode(status)
        return self.returncode


def _serve(ours: socket.socket) -> dict[str, Any] | None:
    """Fork for each request. Returns what to run: in the processes that were forked."""
    running: dict[int, int] = {}  # pidfd: process
    while True:
        for ready in select.select([ours, *running], [], [])[0]:
            if ready is not ours:
                pid = running.pop(ready)
                os.close(ready)
                ours.send(json.dumps({"ended": pid, "status": os.waitpid(pid, 0)[1]}).encode())
                continue
            message, streams, _flags, _address = socket.recv_fds(ours, _MAX_BYTES, 3)
            if not message:
                return None
            request: dict[str, Any] = json.loads(message)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of threads: see `_require_no_threads`
                pid = os.fork()
            if pid == 0:
                for descriptor in running:
                    os.close(descriptor)
                ours.close()
                _become(request, streams)
                return request
            for descriptor in streams:
                os.close(descriptor)
            running[os.pidfd_open(pid)] = pid
            ours.send(json.dumps({"started": pid}).encode())


def _become(request: dict[str, Any], streams: Sequence[int]) -> None:
    """What the kernel and the interpreter give a process that is started."""
    if request["new_session"]:
        os.setsid()
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        old = getattr(sys, name)
        new = open(  # noqa: SIM115
            old.fileno(), mode, 1 if name == "stderr" else -1, old.encoding, old.errors, closefd=False
        )
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


class _Worker:
    """A worker that is forked from its coordinator: what `batchcap.engines.process` asks of a `subprocess.Popen`.

    Of the coordinator's threads none is in the middle of anything when a job starts its workers.
    """

    def __init__(self, command: Sequence[str], socket_fd: int, sign_fd: int | None) -> None:
        self.args = [*command, str(socket_fd)]
        self.returncode: int | None = None
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of threads: see above
                self.pid = os.fork()
            if self.pid == 0:
                _work(self.args, {socket_fd} if sign_fd is None else {socket_fd, sign_fd})
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._pidfd = os.pidfd_open(self.pid)
        self._reaping = Lock()

    def poll(self) -> int | None:
        """Its exit code if it has ended."""
        return self._end(0.0)

    def wait(self, timeout: float) -> int:
        """Its exit code."""
        code = self._end(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def kill(self) -> None:
        """End it now."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _end(self, timeout_s: float) -> int | None:
        if self.returncode is None and select.select([self._pidfd], [], [], timeout_s)[0]:
            with self._reaping:
                if self.returncode is None:
                    self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


def _work(words: Sequence[str], kept: set[int]) -> NoReturn:
    """Be a worker, until its end, with no more of the coordinator than a process that is started has."""
    try:
        gc.freeze()  # what is garbage of the coordinator's must not close what is opened here
        with Path(os.devnull).open("r+b", buffering=0) as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(nothing.fileno(), 1)
        for number in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
            if number > 2 and number not in kept:
                with suppress(OSError):  # that of the listing
                    os.close(number)
        logging.root.handlers.clear()
        logging.getLogger("batchcap").setLevel(logging.NOTSET)
        sys.argv[1:] = words[-1:]
        runpy.run_module(words[-2], run_name="__main__", alter_sys=True)
    except BaseException:  # noqa: BLE001 - it must not go on as the coordinator
        traceback.print_exc()
    finally:
        os._exit(1)


def _require_no_threads() -> None:
    """A fork has only the thread that forks. Arrow's allocator knows that of its own."""
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    assert [name for name in names if name != "jemalloc_bg_thd"] == names[:1], names


def main() -> None:
    """Import, then serve the socket whose number is the first argument."""

    from batchcap.engines import process  # noqa: PLC0415 - seconds, which only this process takes

    ours = socket.socket(fileno=int(sys.argv[1]))
    for name in (*IMPORTED, *sys.argv[2:]):
        importlib.import_module(name)
    _require_no_threads()
    gc.collect()
    process._popen = _Worker  # type: ignore[assignment]
    gc.freeze()  # or each process would copy the memory of all these modules at its end, looking for what to free
    request = _serve(ours)
    if request is not None:
        sys.argv[1:] = request["arguments"]
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
