"""What tests of engines share: fake workers, an inbox without an end, a look at the sign from another process."""

import os
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from batchcap.config import GenerationConfig, PlacementConfig
from batchcap.engines import local, process, supervisor
from batchcap.engines.config import EngineConfig
from batchcap.engines.local import LocalEngine
from batchcap.engines.supervisor import SeenTime
from tests.engines import fake_worker

GEOMETRY = SimpleNamespace(text=SimpleNamespace(hidden_size=8), vision=SimpleNamespace(deepstack_levels=(0,)))
BUNDLE: Any = SimpleNamespace(folder=Path("/bundle"), id="0" * 64, geometry=GEOMETRY)
LOOKS = "import sys; from batchcap.engines.busy_flag import BusyFlag; print(BusyFlag(int(sys.argv[1])).is_set())"


class EndlessInbox:
    """Messages for one or more lanes, and then nothing more for as long as the test lasts."""

    def __init__(self, *messages: object) -> None:
        self._queue: queue.SimpleQueue[object] = queue.SimpleQueue()
        for message in messages:
            self.put(message)

    def put(self, message: object) -> None:
        self._queue.put(message)

    def get_within(self, seconds: float) -> object | None:
        try:
            return self._queue.get(timeout=seconds)
        except queue.Empty:
            return None

    def get(self) -> object:
        return self._queue.get()


def seen_elsewhere(file: int) -> bool:
    """Whether a process that is not at work sees the sign up."""
    command = [sys.executable, "-c", LOOKS, str(file)]
    return subprocess.run(command, pass_fds=[file], check=True, capture_output=True, text=True).stdout == "True\n"


class FakeProcess(subprocess.Popen[bytes]):
    """A fake worker, forked from here: that takes milliseconds, an interpreter of its own a third of a second."""

    def __init__(self, vision: str, decoder: str, socket_fd: int) -> None:
        self._behaviours, self._socket_fd = (vision, decoder), socket_fd
        super().__init__("fake worker")

    def _execute_child(self, *_arguments: Any) -> None:
        """What `Popen` starts its process with; all else is its own."""
        pid = os.fork()
        if pid == 0:
            fake_worker.become(*self._behaviours, self._socket_fd)
        self.pid, self._child_created = pid, True


def popen_of(
    vision: str, decoder: str, started: list["subprocess.Popen[bytes]"] | None = None
) -> Callable[[list[str], int, int | None], "subprocess.Popen[bytes]"]:
    """In the place of `process._popen`: workers that behave so; they are added to `started`."""

    def popen(_command: list[str], socket_fd: int, _sign_fd: int | None) -> "subprocess.Popen[bytes]":
        made = FakeProcess(vision, decoder, socket_fd)
        if started is not None:
            started.append(made)
        return made

    return popen


def hurry(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let supervisors' seconds pass so many times as fast: a worker that hangs is noticed sooner."""
    monkeypatch.setattr(supervisor, "SeenTime", lambda: SeenTime(lambda: times * time.monotonic()))


@contextmanager
def engine(
    monkeypatch: pytest.MonkeyPatch,
    vision: str = "work",
    decoder: str = "work",
    generation: GenerationConfig = GenerationConfig(),  # noqa: B008 - frozen
    timeout_s: float = 600.0,
    **placement: int,
) -> Iterator[LocalEngine]:
    """An engine whose workers behave as told; not started, so that a test may do it in its own way."""

    started: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr(process, "_popen", popen_of(vision, decoder, started))
    monkeypatch.setattr(local, "_sharing", lambda _: True)
    monkeypatch.setattr(local, "_fitted", lambda config: config)
    made = LocalEngine(
        EngineConfig(BUNDLE, generation, placement=PlacementConfig(**placement), image_timeout_s=timeout_s)
    )
    try:
        yield made
    finally:
        made.close()
        assert all(one.poll() is not None for one in started), "a worker has outlived its engine"
