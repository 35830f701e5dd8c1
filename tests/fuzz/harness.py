"""The loop: damage an input, let a child process read it, keep what crashes."""

import hashlib
import multiprocessing
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.fuzz.child import Outcome, serve
from tests.fuzz.mutations import mutated
from tests.fuzz.registry import TARGETS

START_METHOD = "spawn"
TIMEOUT_S = 20.0
# Inputs that were taken in although they are damaged: they are damaged further. The seeds always stay.
MAX_KEPT = 300


class Reader:
    """A child process that reads inputs, started anew after each crash."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._folder = tempfile.TemporaryDirectory()
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context(START_METHOD)
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self._name, Path(self._folder.name)), daemon=True)
        self._process.start()
        theirs.close()

    def read(self, content: bytes) -> tuple[Outcome, str]:
        """What becomes of an input, and why."""
        try:
            self._connection.send_bytes(content)
            if self._connection.poll(TIMEOUT_S):
                return self._connection.recv()
            why = f"no end within {TIMEOUT_S:g} s"
        except (EOFError, ConnectionError):
            self._process.join(TIMEOUT_S)
            why = f"the process ended with code {self._process.exitcode}"
        self._end()
        why += "\n" + (Path(self._folder.name) / "stderr").read_text(errors="replace")[-3000:]
        self._start()
        return Outcome.CRASHED, why

    def _end(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._folder.cleanup()


@dataclass(slots=True)
class Findings:
    """What a run found.

    Attributes:
        outcomes: inputs by what became of them, without the seeds.
        crashes: crashing inputs and why, one for each kind of crash.
    """

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    crashes: dict[str, bytes] = field(default_factory=dict)


def fuzz(name: str, seed: int, most_inputs: int | None = None, most_s: float | None = None) -> Findings:
    """Damage the seeds of a target, so many times or for so long.

    Raises:
        AssertionError: a seed itself is not taken in.
    """
    chance, inputs, findings = random.Random(seed), TARGETS[name].seeds(), Findings()
    seeds = len(inputs)
    with Reader(name) as reader:
        for content in inputs:
            outcome, why = reader.read(content)
            assert outcome is Outcome.ACCEPTED, why
        ends_s = time.monotonic() + (most_s or float("inf"))
        while findings.outcomes.total() != most_inputs and time.monotonic() < ends_s:
            content = mutated(chance, inputs)
            outcome, why = reader.read(content)
            findings.outcomes[outcome] += 1
            if outcome is Outcome.CRASHED:
                findings.crashes.setdefault(why, content)
            elif outcome is Outcome.ACCEPTED and len(inputs) < seeds + MAX_KEPT:
                inputs.append(content)
    return findings


def save(findings: Findings, name: str, folder: Path) -> list[Path]:
    """Keep the crashing inputs, with the reason beside each."""
    paths = []
    for why, content in findings.crashes.items():
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
        path.write_bytes(content)
        path.with_name(f"{path.name}.txt").write_text(why)
        paths.append(path)
    return paths
