"""What can happen to a job, and with which exit codes the run that it happens to may end."""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from batchcap.core.errors import ExitCode
from batchcap.store.folder import JobFolder
from tests.e2e.process import Process

KILLED = -signal.SIGKILL
# A run that is through before the fault strikes ends well.
DONE = int(ExitCode.COMPLETE)
# Share of a whole run in which its models are loaded and rows are captioned.
WORKING_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class Scene:
    """A run that something is about to happen to.

    Attributes:
        process: the run.
        output: its job folder.
        chance: decides moments and places.
        usual_s: what the job takes with nothing happening to it.
    """

    process: Process
    output: Path
    chance: random.Random
    usual_s: float

    def wait_at_work(self) -> bool:
        """Wait for a random moment after the models are loaded; False where the run is over."""
        if not self.process.wait_until(lambda: self.process.done_before is not None):
            return False
        time.sleep(self.chance.random() ** 2 * WORKING_SHARE * self.usual_s)  # more often early: it may be quicker
        return self.process.popen.poll() is None

    def wait_anywhere(self) -> bool:
        """Wait for a random moment, also while nothing is loaded; False where the run is over."""
        time.sleep(self.chance.random() * self.usual_s)
        return self.process.popen.poll() is None


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that happens.

    Attributes:
        name: for the table.
        strike: does it, and tells whether it came in time; afterwards the run must come to its end.
        ends: exit codes that the run may have; the last one is that of the fault.
        program: in the place of the plain command; gets the dice.
        options: more options of the run.
        obeys_modes: also as root the run may write only where the files' modes allow it.
        damage: done to the folder after the run has ended.
    """

    name: str
    strike: Callable[[Scene], bool]
    ends: tuple[int, ...]
    program: Callable[[random.Random], tuple[str, ...]] = lambda _chance: ("batchcap.cli",)
    options: tuple[str, ...] = ()
    obeys_modes: bool = False
    damage: Callable[[Scene], object] = field(default=lambda _scene: None)


def kill_all(scene: Scene) -> bool:
    return _kill(scene, os.killpg)


def kill_coordinator(scene: Scene) -> bool:
    return _kill(scene, os.kill)


def _kill(scene: Scene, kill: Callable[[int, int], None]) -> bool:
    struck = scene.wait_anywhere()
    if struck:
        kill(scene.process.popen.pid, signal.SIGKILL)
    return struck


def to_worker(name: str, number: int) -> Callable[[Scene], bool]:
    def strike(scene: Scene) -> bool:
        pid = scene.process.workers().get(name) if scene.wait_at_work() else None
        if pid is not None:
            os.kill(pid, number)
        return pid is not None

    return strike


def to_group(number: int) -> Callable[[Scene], bool]:
    def strike(scene: Scene) -> bool:
        struck = scene.wait_at_work()
        if struck:
            scene.process.signal_group(number)
        return struck

    return strike


def inside(scene: Scene) -> bool:
    """The fault is inside the program: it has struck where the run did not end well, and time goes astray always."""
    return scene.process.wait() != DONE or "CLOCK" in scene.process.popen.args


def faulty(what: str, where: str, most: int) -> Callable[[random.Random], tuple[str, ...]]:
    """The program with a fault inside, at one of the first times."""
    return lambda chance: ("tests.chaos.faulty", what, where, str(chance.randint(1, most)))


def read_only(scene: Scene) -> bool:
    """A folder of the job loses its write permission."""
    struck = scene.wait_at_work()
    if struck:
        scene.chance.choice([JobFolder(scene.output).state_path, scene.output]).chmod(0o555)
    return struck


def writable_again(scene: Scene) -> None:
    for folder in (scene.output, JobFolder(scene.output).state_path):
        folder.chmod(0o755)


def tear_journal(scene: Scene) -> None:
    """The write-ahead log ends anywhere, or has other bytes somewhere: what a lost write leaves."""
    path = JobFolder(scene.output).journal_path
    log = path.with_name(f"{path.name}-wal")
    if not log.exists() or not log.stat().st_size:
        return
    place = scene.chance.randrange(log.stat().st_size)
    if scene.chance.random() < 0.5:
        os.truncate(log, place)
        return
    with log.open("r+b") as file:
        file.seek(place)
        file.write(scene.chance.randbytes(64))


def cut_part(scene: Scene) -> None:
    """A finished part is cut short."""
    parts = JobFolder(scene.output).part_paths()
    if parts:
        part = scene.chance.choice(parts)
        os.truncate(part, scene.chance.randrange(part.stat().st_size))


UNEXPECTED, STOPPED, INTERRUPTED = map(int, (ExitCode.UNEXPECTED, ExitCode.STOPPED_EARLY, ExitCode.INTERRUPTED))
HASTY = ("--picture-timeout", "4")
FAULTS = (
    Fault("SIGKILL of all", kill_all, (DONE, KILLED)),
    Fault("SIGKILL of the coordinator", kill_coordinator, (DONE, KILLED)),
    Fault("SIGKILL of a decoder", to_worker("decoder", signal.SIGKILL), (DONE,)),
    Fault("SIGKILL of the vision worker", to_worker("vision", signal.SIGKILL), (DONE,)),
    Fault("SIGSTOP of a decoder", to_worker("decoder", signal.SIGSTOP), (DONE,), options=HASTY),
    Fault("SIGSTOP of the vision worker", to_worker("vision", signal.SIGSTOP), (DONE,), options=HASTY),
    Fault("SIGTERM", to_group(signal.SIGTERM), (DONE, STOPPED)),
    Fault("SIGHUP", to_group(signal.SIGHUP), (DONE, STOPPED)),
    Fault("SIGINT", to_group(signal.SIGINT), (DONE, INTERRUPTED)),
    *(
        Fault(f"{what} at {where}", inside, (DONE, end), program=faulty(what, name, most))
        for what, end in (("ENOSPC", UNEXPECTED), ("EIO", UNEXPECTED), ("KILL", KILLED))
        for where, name, most in (
            ("the journal", "journal", 8),
            ("a part", "part-", 8),
            ("the statistics", "stats", 1),
            ("the summary", "summary", 1),
            ("another form", "-forms/", 6),
        )
    ),
    Fault("a read-only folder", read_only, (DONE, UNEXPECTED), obeys_modes=True, damage=writable_again),
    Fault("a torn journal", kill_all, (DONE, KILLED), damage=tear_journal),
    Fault("a part cut short", kill_all, (DONE, KILLED), damage=cut_part),
    Fault("a clock that jumps", inside, (DONE,), program=faulty("CLOCK", "-", 1_000_000)),
)
