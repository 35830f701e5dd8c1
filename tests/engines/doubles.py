"""What tests of engines share: fake workers, an inbox without an end, a look at the sign from another process."""

import queue
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from batchcap.config import GenerationConfig, PlacementConfig
from batchcap.engines import local, process
from batchcap.engines.config import EngineConfig
from batchcap.engines.local import LocalEngine

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

    def popen(_command: list[str], socket_fd: int, _sign_fd: int | None) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "tests.engines.fake_worker", vision, decoder, str(socket_fd)]
        started.append(subprocess.Popen(command, pass_fds=[socket_fd], cwd=Path(__file__).parents[2]))
        return started[-1]

    monkeypatch.setattr(process, "_popen", popen)
    monkeypatch.setattr(local, "_sharing", lambda _: True)
    monkeypatch.setattr(local, "_fitted", lambda config: config)
    started: list[subprocess.Popen[bytes]] = []
    made = LocalEngine(
        EngineConfig(BUNDLE, generation, placement=PlacementConfig(**placement), image_timeout_s=timeout_s)
    )
    try:
        yield made
    finally:
        made.close()
        assert all(one.poll() is not None for one in started), "a worker has outlived its engine"
