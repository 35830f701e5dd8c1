"""Owns one worker process and the socket to it: its start, messages to and from it, its end and how to tell of it."""

import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from typing import Any

from batchcap.core.errors import BatchcapError, ExitCode
from batchcap.core.signals import STOP_SIGNALS
from batchcap.engines.messages import DecoderSpec, Fatal, VisionSpec, send

# Giving back the memory of a large model takes the kernel a while.
END_TIMEOUT_S = 30.0
KILLED_FOR_MEMORY = -signal.SIGKILL
# A worker that was frozen in the middle of a message must not freeze who reads it.
MESSAGE_TIMEOUT_S = 30


class WorkerEndError(Exception):
    """A worker has ended, or can't go on; why, as the rest of a sentence that begins with its name.

    Attributes:
        lacked_memory: whether want of memory is the likely reason.
    """

    def __init__(self, how: str, *, lacked_memory: bool = False) -> None:
        super().__init__(how)
        self.lacked_memory = lacked_memory


class Worker:
    """One worker process and the socket to it.

    Raises:
        WorkerEndError: the system has no process for it.
    """

    def __init__(self, name: str, spec: VisionSpec | DecoderSpec) -> None:
        self.name = name
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with ExitStack() as undo:
            try:
                self._start(spec, undo)
            except (OSError, RuntimeError) as error:  # too many processes, threads or files, or no memory for one more
                reason = getattr(error, "strerror", None) or error
                raise WorkerEndError(f"could not be started: {reason}", lacked_memory=True) from None
            undo.pop_all()
        self.send(spec)

    def _start(self, spec: VisionSpec | DecoderSpec, undo: ExitStack) -> None:
        """Start the process; `undo` ends what was started and closes what was opened."""
        self._socket, theirs = socket.socketpair()
        undo.enter_context(self._socket)
        with theirs:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", MESSAGE_TIMEOUT_S, 0))
            # -P: a random.py or a folder torch/ where the command is run must not get in the way.
            command = [sys.executable, "-P", "-m", "batchcap.engines.worker"]
            self.process = _popen(command, theirs.fileno(), spec.sign_file)
        undo.callback(_end_of, self.process)
        undo.callback(self.process.kill)
        self.connection = undo.enter_context(Connection(os.dup(self._socket.fileno())))
        self._sender = threading.Thread(target=self._send, name=f"send-{self.name}", daemon=True)
        self._sender.start()

    def send(self, message: object) -> None:
        """Queue a message; never waits for the worker."""
        self._outbox.put(message)

    def _send(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                send(self.connection, message)
            except OSError:  # the worker is gone; reading from it tells the coordinator
                return

    def receive(self) -> object:
        """The next message; waits for it.

        Raises:
            WorkerEndError: the process has ended, or says that an error which nobody foresaw ended its work.
            BatchcapError: it says why it can't work, for a person.
        """
        try:
            message: object = self.connection.recv()
        except BlockingIOError:
            raise WorkerEndError(f"has sent half a message and nothing more for {MESSAGE_TIMEOUT_S} s") from None
        except (EOFError, OSError):
            raise self._end() from None
        if isinstance(message, Fatal):
            if message.exit_code == ExitCode.UNEXPECTED:
                raise WorkerEndError(f"can't go on: {message.message}", lacked_memory=message.lacked_memory)
            error = BatchcapError(f"the {self.name} process can't work: {message.message}")
            error.exit_code = ExitCode(message.exit_code)
            raise error
        return message

    def _end(self) -> WorkerEndError:
        code = _end_of(self.process)
        if code is None:
            return WorkerEndError("closed its connection")
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return WorkerEndError(how, lacked_memory=code == KILLED_FOR_MEMORY)

    def kill(self) -> None:
        """End the process now, and the sending of what it has not taken."""
        self.send(None)
        with suppress(OSError):  # the other side is closed already
            self._socket.shutdown(socket.SHUT_RDWR)
        self.process.kill()

    def close(self) -> None:
        """Wait for the end of a process that was killed."""
        _end_of(self.process)
        self._sender.join(END_TIMEOUT_S)
        self.connection.close()
        self._socket.close()


def _popen(command: list[str], socket_fd: int, sign_fd: int | None) -> subprocess.Popen[bytes]:
    """Start a worker that no signal to stop can meet before it is ready to ignore it.

    They reach every process of a group, also one that has not run its first line yet. The mask is inherited; the
    worker lifts it when the signals are set to be ignored.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        return subprocess.Popen(
            [*command, str(socket_fd)],
            pass_fds=[socket_fd] if sign_fd is None else [socket_fd, sign_fd],
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
