"""Which cores each worker runs on, for machines that are written down here."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcap.config import GenerationConfig, PlacementConfig
from batchcap.core.errors import BundleError
from batchcap.engines import cores as cores_module
from batchcap.engines import local, worker
from batchcap.engines.config import EngineConfig
from batchcap.engines.cores import Core, CorePlan, Threads, cpu_list, keep_on, plan_cores, plan_for, usable_cores
from batchcap.engines.local import LocalEngine
from batchcap.engines.messages import DecoderSpec

GEOMETRY = SimpleNamespace(text=SimpleNamespace(hidden_size=8), vision=SimpleNamespace(deepstack_levels=(0,)))
BUNDLE: Any = SimpleNamespace(folder=Path("/bundle"), id="0" * 64, geometry=GEOMETRY)


def machine(nodes: int, cores_a_node: int, smt: int = 1) -> tuple[Core, ...]:
    """Cores numbered as Linux does: first hardware threads of all cores, then the second ones."""
    count = nodes * cores_a_node
    return tuple(
        Core(tuple(core + count * thread for thread in range(smt)), core // cores_a_node) for core in range(count)
    )


def plan(cores: tuple[Core, ...], decoders: int, decoder: int, vision: int, granted: int | None = None) -> str:
    """The plan as a person reads it."""
    cpus = sum(len(core.cpus) for core in cores)
    return plan_cores(cores, cpus if granted is None else granted, Threads(decoders, decoder, vision)).to_text()


def test_two_cores_are_shared() -> None:
    assert plan(machine(1, 2), 1, 2, 2) == "all workers share all CPUs (fewer than 8 cores)"
    assert plan(machine(1, 2), 2, 1, 2) == "all workers share all CPUs (fewer than 8 cores)"


def test_eight_cores_of_two_threads() -> None:
    cores = machine(1, 8, smt=2)
    assert plan(cores, 1, 16, 16) == "all workers share all CPUs (one decoder uses every core)"
    assert plan(cores, 2, 4, 16) == (
        "decoder 0 on CPUs 0-3,8-11, decoder 1 on CPUs 4-7,12-15, vision on any CPU (a core for each decoder thread)"
    )
    # 2 x 6 threads are more than cores: both threads of a core go to the same decoder.
    assert plan(cores, 2, 6, 4) == (
        "decoder 0 on CPUs 0-2,8-10, decoder 1 on CPUs 3-5,11-13, vision on CPUs 6-7,14-15 "
        "(a hardware thread for each decoder thread)"
    )


def test_two_nodes_of_32_cores() -> None:
    cores = machine(2, 32)
    assert plan(cores, 2, 32, 64) == (
        "decoder 0 on CPUs 0-31, decoder 1 on CPUs 32-63, vision on any CPU "
        "(a core for each decoder thread, 2 NUMA nodes)"
    )
    assert plan(cores, 4, 12, 16) == (
        "decoder 0 on CPUs 0-11, decoder 1 on CPUs 32-43, decoder 2 on CPUs 12-23, decoder 3 on CPUs 44-55, "
        "vision on CPUs 24-31,56-63 (a core for each decoder thread, 2 NUMA nodes)"
    )
    # The third fits into neither node.
    assert plan(cores, 3, 20, 64).startswith(
        "decoder 0 on CPUs 0-19, decoder 1 on CPUs 32-51, decoder 2 on CPUs 20-31,"
    )


def test_128_cores_in_8_nodes() -> None:
    cores = machine(8, 16)
    text = plan(cores, 8, 16, 128)
    for number in range(8):
        assert f"decoder {number} on CPUs {16 * number}-{16 * number + 15}," in text
    assert "vision on any CPU (a core for each decoder thread, 8 NUMA nodes)" in text
    assert plan(cores, 1, 128, 128) == "all workers share all CPUs (one decoder uses every core)"


@pytest.mark.parametrize(
    ("decoders", "decoder", "vision", "granted", "why"),
    [
        (2, 8, 16, 8, "a quota of 8 of 64 CPUs, not CPUs of its own"),
        (8, 16, 64, 64, "128 decoder threads for 64 CPUs"),
        (2, 8, 16, 64, "the job's threads leave half of the CPUs to others"),
    ],
)
def test_when_nothing_is_placed(decoders: int, decoder: int, vision: int, granted: int, why: str) -> None:
    assert plan(machine(2, 32), decoders, decoder, vision, granted) == f"all workers share all CPUs ({why})"


NODES, CORES, SMT = st.integers(1, 8), st.integers(1, 16), st.integers(1, 2)
COUNT = st.integers(1, 40)


@given(st.builds(machine, NODES, CORES, SMT), COUNT, COUNT, COUNT)
def test_no_cpu_is_given_twice(cores: tuple[Core, ...], decoders: int, decoder: int, vision: int) -> None:
    cpus = {cpu for core in cores for cpu in core.cpus}
    found = plan_cores(cores, len(cpus), Threads(decoders, decoder, vision))
    assert len(found.decoders) == decoders
    placed = [cpu for worker in (*found.decoders, found.vision) for cpu in worker]
    assert len(placed) == len(set(placed))
    assert set(placed) <= cpus
    assert all(not worker or len(worker) >= decoder for worker in found.decoders)
    assert not found.vision or len(found.vision) >= vision
    assert len({bool(worker) for worker in found.decoders}) == 1, "either all decoders have cores or none has"
    node_of = {cpu: core.node for core in cores for cpu in core.cpus}
    smallest = min(sum(core.node == node for core in cores) for node in set(node_of.values()))
    if decoders * decoder <= len(cores) and decoders * decoder // len(set(node_of.values())) <= smallest // 2:
        # A node is never more than half full here, and a decoder that fits into the other half is not cut.
        for worker in found.decoders:
            assert decoder > smallest // 2 or len({node_of[cpu] for cpu in worker}) <= 1


def describe(system: Path, cores: tuple[Core, ...]) -> None:
    """The kernel's files for a machine."""
    for node in {core.node for core in cores}:
        folder = system / f"node/node{node}"
        folder.mkdir(parents=True)
        cpus = [cpu for core in cores if core.node == node for cpu in core.cpus]
        (folder / "cpulist").write_text(f"{cpu_list(cpus)}\n")
    for core in cores:
        for cpu in core.cpus:
            folder = system / f"cpu/cpu{cpu}/topology"
            folder.mkdir(parents=True)
            (folder / "thread_siblings_list").write_text(f"{cpu_list(core.cpus)}\n")


@pytest.mark.parametrize("written", [machine(1, 2), machine(1, 8, 2), machine(2, 32, 2), machine(8, 16)])
def test_a_machine_is_read_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: tuple[Core, ...]) -> None:
    describe(tmp_path, written)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {cpu for core in written for cpu in core.cpus})
    assert usable_cores(tmp_path) == written


def test_only_cpus_this_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe(tmp_path, machine(2, 32, 2))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {*range(28, 44), *range(92, 100)})
    cores = usable_cores(tmp_path)
    assert cores[0] == Core((28, 92), 0)
    assert cores[-1] == Core((43,), 1)
    assert (len(cores), sum(core.node == 0 for core in cores)) == (16, 4)
    assert plan(cores, 2, 6, 12).startswith("decoder 0 on CPUs 32-37,96-99, decoder 1 on CPUs 38-43,")


def test_a_kernel_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3, 1, 2})
    assert usable_cores(tmp_path) == (Core((1,), 0), Core((2,), 0), Core((3,), 0))


def test_this_machine_can_be_read() -> None:
    assert {cpu for core in usable_cores() for cpu in core.cpus} == os.sched_getaffinity(0)


@pytest.mark.parametrize(
    ("wanted", "kept"), [("[first]", "[first]"), ("[]", "everything"), ("[100_000]", "everything")]
)
def test_a_process_is_kept_where_it_belongs(wanted: str, kept: str) -> None:
    code = (
        "import os; from batchcap.engines.cores import keep_on; everything = sorted(os.sched_getaffinity(0)); "
        f"first = everything[0]; keep_on({wanted}); assert sorted(os.sched_getaffinity(0)) == {kept}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_are_those_of_the_configuration() -> None:
    assert Threads.of(PlacementConfig(), 64) == Threads(decoders=1, decoder=64, vision=64)
    assert Threads.of(PlacementConfig(decoders=3), 64) == Threads(decoders=3, decoder=21, vision=64)
    assert Threads.of(PlacementConfig(decoders=8), 2) == Threads(decoders=8, decoder=1, vision=2)
    assert Threads.of(PlacementConfig(), 512) == Threads(decoders=1, decoder=64, vision=64)
    assert Threads.of(PlacementConfig(decoders=4), 512) == Threads(decoders=4, decoder=64, vision=64)
    assert Threads.of(PlacementConfig(decoders=16), 512) == Threads(decoders=16, decoder=32, vision=64)
    given = PlacementConfig(decoders=2, decoder_threads=5, vision_threads=7)
    assert Threads.of(given, 64) == Threads(decoders=2, decoder=5, vision=7)


def test_a_job_may_be_told_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores_module, "usable_cores", lambda: machine(2, 32))
    monkeypatch.setattr(cores_module, "available_cores", lambda: 64)
    assert plan_for(PlacementConfig(decoders=2)).decoders == (tuple(range(32)), tuple(range(32, 64)))
    assert plan_for(PlacementConfig(decoders=2, own_cores=False)).decoders == ((), ())


def test_every_worker_is_told_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    specs: dict[str, Any] = {}
    monkeypatch.setattr(local, "WorkerSupervisor", lambda name, spec, _timeout_s: specs.setdefault(name, spec))
    monkeypatch.setattr(local, "plan_for", lambda _placement: CorePlan(((0, 1), (2, 3)), (4,), "a test"))
    monkeypatch.setattr(local, "_fitted", lambda config: config)
    LocalEngine(EngineConfig(BUNDLE, placement=PlacementConfig(decoders=2, decoder_threads=2)))._plan_workers()
    assert {name: spec.cpus for name, spec in specs.items()} == {
        "vision": (4,),
        "decoder 0": (0, 1),
        "decoder 1": (2, 3),
    }


def test_a_worker_goes_to_its_cpus_before_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[int, ...]] = []
    monkeypatch.setattr(worker, "keep_on", kept.append)
    spec = DecoderSpec("/nowhere", "b", GenerationConfig(), slots=1, threads=1, max_visual_tokens=4, cpus=(5, 6))
    with pytest.raises(BundleError):
        worker._build(spec, None)  # type: ignore[arg-type]
    assert kept == [(5, 6)]


def test_lists_of_cpus() -> None:
    assert cpu_list([3, 0, 1, 8, 2]) == "0-3,8"
    assert cpu_list([]) == ""
    keep_on([])  # nothing to do here
