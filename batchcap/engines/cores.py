"""Owns which cores each worker runs on: read from the kernel, planned by a pure function, applied in the worker.

A decode step reads all weights of the decoder, so decoders far apart in memory should not share a node's memory
controllers, and a thread that moves to another node leaves its KV cache behind. The plan never changes how many threads
a worker has, and so never a caption.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from batchcap.config import PlacementConfig
from batchcap.core.machine import available_cores

SYSTEM = Path("/sys/devices/system")
# With fewer the kernel does better: whoever waits gives its core to the others.
MIN_CORES = 8
# Of a worker that was not told how many: a step of a few rows can't be cut into more parts that are worth a thread, and
# every thread takes a stack. Not measured; who has more cores takes more decoders, or names a number.
MAX_THREADS = 64


@dataclass(frozen=True, slots=True)
class Core:
    """One core: those of its CPUs (hardware threads) that this process may use, and its NUMA node."""

    cpus: tuple[int, ...]
    node: int


@dataclass(frozen=True, slots=True)
class Threads:
    """How many workers there are, and the threads of each: `decoders` with `decoder` threads, one with `vision`."""

    decoders: int
    decoder: int
    vision: int

    @classmethod
    def of(cls, placement: PlacementConfig, granted: int) -> "Threads":
        """What a job uses on a machine that grants so many CPUs."""
        return cls(
            decoders=placement.decoders,
            decoder=placement.decoder_threads or min(MAX_THREADS, max(1, granted // placement.decoders)),
            vision=placement.vision_threads or min(MAX_THREADS, granted),
        )

    @property
    def decoding(self) -> int:
        """Threads of all decoders."""
        return self.decoders * self.decoder


@dataclass(frozen=True, slots=True)
class CorePlan:
    """The CPUs each worker is kept on; none named: wherever the kernel puts it.

    Attributes:
        decoders: CPUs of each decoder, in order.
        vision: CPUs of the vision worker.
        why: the reason, for a person.
    """

    decoders: tuple[tuple[int, ...], ...]
    vision: tuple[int, ...]
    why: str

    def to_text(self) -> str:
        """As in `decoder 0 on CPUs 0-15, decoder 1 on CPUs 16-31, vision on any CPU (...)`."""
        if not any(self.decoders):
            return f"all workers share all CPUs ({self.why})"
        placed = [f"decoder {number} on CPUs {cpu_list(cpus)}" for number, cpus in enumerate(self.decoders)]
        vision = f"vision on CPUs {cpu_list(self.vision)}" if self.vision else "vision on any CPU"
        return f"{', '.join([*placed, vision])} ({self.why})"


def plan_for(placement: PlacementConfig) -> CorePlan:
    """The plan of a job on this machine."""
    if not placement.own_cores:
        return CorePlan(((),) * placement.decoders, (), "--no-own-cores")
    granted = available_cores()
    return plan_cores(usable_cores(), granted, Threads.of(placement, granted))


def usable_cores(system: Path = SYSTEM) -> tuple[Core, ...]:
    """The cores this process may use, by node and number.

    Where the kernel does not say which CPUs belong together, each is a core of node 0.

    Args:
        system: folder where the kernel describes CPUs and nodes.
    """
    allowed = os.sched_getaffinity(0)
    nodes: dict[int, int] = {}
    for path in system.glob("node/node[0-9]*/cpulist"):
        number = int(path.parent.name.removeprefix("node"))
        nodes |= dict.fromkeys(_read_cpu_list(path), number)
    found = set()
    for cpu in allowed:
        siblings = {cpu, *_read_cpu_list(system / f"cpu/cpu{cpu}/topology/thread_siblings_list")}
        found.add(Core(tuple(sorted(siblings & allowed)), nodes.get(cpu, 0)))
    return tuple(sorted(found, key=lambda core: (core.node, core.cpus)))


def plan_cores(cores: Sequence[Core], granted: int, threads: Threads) -> CorePlan:
    """Give every decoder cores of its own, all of one node where it fits there.

    Decoders are spread over the nodes, so that each has as much of the memory's bandwidth as can be. The vision worker
    gets what is left where that is enough for its threads; else it shares all CPUs with the decoders.

    Args:
        cores: what this process may use.
        granted: CPUs that the control group's quota leaves; as many as there are without a quota.
        threads: the workers.
    """
    cpus = [cpu for core in cores for cpu in core.cpus]
    reason = _reason_to_share(cores, len(cpus), granted, threads)
    if reason:
        return CorePlan(((),) * threads.decoders, (), reason)
    whole = threads.decoding <= len(cores)
    free: dict[int, list[tuple[int, ...]]] = {core.node: [] for core in cores}
    for core in cores:
        free[core.node] += [core.cpus] if whole else [(cpu,) for cpu in core.cpus]
    decoders = [_take(free, threads.decoder) for _number in range(threads.decoders)]
    left = [unit for node in sorted(free) for unit in free[node]]
    vision = sum(left, ()) if len(left) >= threads.vision else ()
    each = "core" if whole else "hardware thread"
    nodes = f", {len(free)} NUMA nodes" if len(free) > 1 else ""
    return CorePlan(tuple(decoders), tuple(sorted(vision)), f"a {each} for each decoder thread{nodes}")


def _reason_to_share(cores: Sequence[Core], cpus: int, granted: int, threads: Threads) -> str:
    """Why no worker is kept on some CPUs; nothing where they should be."""
    if granted < cpus:  # containers beside this one would choose the same cores
        return f"a quota of {granted} of {cpus} CPUs, not CPUs of its own"
    if len(cores) < MIN_CORES:
        return f"fewer than {MIN_CORES} cores"
    if threads.decoding > cpus:
        return f"{threads.decoding} decoder threads for {cpus} CPUs"
    if threads.decoders == 1 and threads.decoding in (len(cores), cpus):
        return "one decoder uses every core"
    if threads.decoding + threads.vision <= cpus // 2:  # another job beside this one would choose the same cores
        return "the job's threads leave half of the CPUs to others"
    return ""


def _take(free: dict[int, list[tuple[int, ...]]], count: int) -> tuple[int, ...]:
    """CPUs for one worker, from the node with most room, and then from the next."""
    taken: list[tuple[int, ...]] = []
    while len(taken) < count:
        units = free[max(sorted(free), key=lambda node: len(free[node]))]
        wanted = count - len(taken)
        taken += units[:wanted]
        del units[:wanted]
    return tuple(sorted(sum(taken, ())))


def keep_on(cpus: Sequence[int]) -> None:
    """Keep this process, and the threads it starts from now on, on some CPUs; none named: wherever it may run.

    A CPU that was switched off meanwhile is no reason to end a job: the process then runs where it may.
    """
    usable = set(cpus) & os.sched_getaffinity(0)
    if usable:
        os.sched_setaffinity(0, usable)


def cpu_list(cpus: Sequence[int]) -> str:
    """CPU numbers as the kernel writes them: `0-3,8`."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def _read_cpu_list(path: Path) -> set[int]:
    """The reverse of `cpu_list`, from a file; nothing where it can't be read."""
    try:
        runs = [part.partition("-") for part in path.read_text().strip().split(",") if part]
        return {cpu for low, _dash, high in runs for cpu in range(int(low), int(high or low) + 1)}
    except (OSError, ValueError):
        return set()
