"""The engine of this machine with worker processes that work, fail, die, talk nonsense, or never get ready."""

import errno
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from batchcap.config import GenerationConfig
from batchcap.core.errors import BatchcapError, ErrorKind, ExitCode, WorkerError
from batchcap.core.records import Duplicate, Failure, ImageRow, Outcome, Request
from batchcap.core.sources import Bytes
from batchcap.engines import local, process
from batchcap.engines import supervisor as supervisor_module
from batchcap.engines.local import LocalEngine
from batchcap.engines.messages import DecoderSpec, Fatal
from tests.engines.doubles import engine, hurry, popen_of
from tests.fake_engine import request_of

PATIENCE_S = 60.0


def remembered_specs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What workers are built from, in the order they are started."""
    specs: list[Any] = []
    made = process.Worker.__init__

    def remembered(self: process.Worker, name: str, spec: Any) -> None:
        specs.append(spec)
        made(self, name, spec)

    monkeypatch.setattr(process.Worker, "__init__", remembered)
    return specs


def never() -> bool:
    return False


def row(index: int, name: str = "good") -> Request:
    return request_of(ImageRow(index, f"{name}-{index}", "/in", index, Bytes(b"x" * 1000)))


def duplicate(index: int, of: int) -> Request:
    return request_of(ImageRow(index, f"duplicate-{index}", "/in", of))


def collect(running: LocalEngine, count: int) -> dict[int, Outcome]:
    found: dict[int, Outcome] = {}
    ends_s = time.monotonic() + PATIENCE_S
    while len(found) < count and time.monotonic() < ends_s:
        for outcome in running.poll(0.1):
            assert outcome.row.index not in found, "an outcome came twice"
            found[outcome.row.index] = outcome
    return found


def test_every_row_has_one_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine(monkeypatch, decoders=2, slots=2) as running:
        running.start(never)
        rows = [row(index, "bad" if index % 3 == 0 else "good") for index in range(20)]
        for one in rows:
            running.submit(one)
        assert running.in_flight == 20
        found = collect(running, 20)
        assert running.in_flight == 0
        load = running.load()
    assert sorted(found) == list(range(20))
    for index, outcome in found.items():
        if index % 3 == 0:
            assert isinstance(outcome.result, Failure)
            assert outcome.facts is None
        else:
            assert isinstance(outcome.result, tuple)
            assert [caption.text for caption in outcome.result] == [f"of good-{index}"]
            assert outcome.facts is not None
            assert (outcome.facts.width, outcome.facts.height, outcome.facts.vision_ms) == (64, 48, 2.0)
        assert outcome.row.image is None, "images must not pile up here"
    assert load.busy_s == {"read": 0.0, "vision": 13 * 0.5, "prefill": 0.0, "decode": 13 * 0.25}
    assert (load.reading_rows, load.queue_rows, load.queue_mib, load.decoding_rows) == (0, 0, 0.0, 0)


def test_duplicates_come_after_the_row_they_are_duplicates_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine(monkeypatch, slots=2) as running:
        running.start(never)
        rows = [row(0), row(1, "bad"), *[duplicate(index, index % 2) for index in range(2, 12)]]
        for one in rows:
            running.submit(one)
        found = collect(running, 12)
        order = list(found)
        running.seed_dedup("0" * 64, [("0" * 64, 0)])
        late = duplicate(12, 0)
        running.submit(late)
        found |= collect(running, 1)
        assert running.in_flight == 0
        assert not running._ledger.duplicates
        assert running.has_room
    for index in range(2, 13):
        result = found[index].result
        assert isinstance(result, Duplicate)
        assert (result.index, result.of) == (index, index % 2)
        assert found[index].row.id == f"duplicate-{index}"
        if index < 12:
            assert order.index(index) > order.index(index % 2)


def test_short_memory_lowers_the_rows_at_work_and_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = SimpleNamespace(slots=1, is_short=True, check=lambda: None)
    monkeypatch.setattr(local, "MemoryGuard", lambda _slots: guard)
    with engine(monkeypatch, decoders=2, slots=4) as running:
        running.start(never)
        assert running.has_room, "one row at a time goes on however short memory is"
        for index in range(12):
            running.submit(row(index))
        assert not running.has_room
        seen, most = dict[int, Outcome](), 0
        ends_s = time.monotonic() + PATIENCE_S
        while len(seen) < 6 and time.monotonic() < ends_s:
            seen |= {outcome.row.index: outcome for outcome in running.poll(0.1)}
            most = max(most, *(one.rows for one in running._decoders))
        assert most == 1
        guard.slots, guard.is_short = 4, False
        seen |= collect(running, 12 - len(seen))
        assert running.has_room
    assert sorted(seen) == list(range(12))


def test_duplicates_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "DUPLICATE_WINDOW_ROWS", 5)
    with engine(monkeypatch, decoder="never ready") as waiting:
        waiting._start_workers()
        waiting.submit(row(0))
        given = 0
        ends_s = time.monotonic() + PATIENCE_S
        while waiting._ledger.duplicates_waiting < 5 and time.monotonic() < ends_s:
            if waiting.has_room:
                given += 1
                waiting.submit(duplicate(given, 0))
            while waiting._vision.worker.connection.poll(0.05):
                message = waiting._vision.worker.receive()
                if isinstance(message, Duplicate):
                    waiting._take(waiting._vision, message)
        assert waiting._ledger.duplicates_waiting >= 5
        assert not waiting.has_room


def test_a_decoder_holds_no_more_rows_than_its_slots_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = {"a": "A.", "b": "B.", "c": "C."}
    with engine(monkeypatch, slots=7) as one:
        one._plan_workers()
        assert one._decoder_rows(one._decoders[0]) == 7 + local.DECODER_AHEAD_ROWS
    with engine(monkeypatch, slots=7, generation=GenerationConfig(prompts)) as three:
        three._plan_workers()
        assert three._decoder_rows(three._decoders[0]) == 3 + local.DECODER_AHEAD_ROWS


def test_slots_are_fitted_to_the_memory_when_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = remembered_specs(monkeypatch)
    with engine(monkeypatch, slots=9) as made:
        fewer = lambda config: replace(config, placement=replace(config.placement, slots=4))  # noqa: E731
        monkeypatch.setattr(local, "_fitted", fewer)
        made.start(never)
        assert [spec.slots for spec in specs if isinstance(spec, DecoderSpec)] == [4]
        assert made._decoder_rows(made._decoders[0]) == 4 + local.DECODER_AHEAD_ROWS


@pytest.mark.parametrize(("decoders", "share"), [(1, False), (2, True)])
def test_several_decoders_share_their_weights(monkeypatch: pytest.MonkeyPatch, decoders: int, share: bool) -> None:
    specs = remembered_specs(monkeypatch)
    with engine(monkeypatch, decoders=decoders) as made:
        made._start_workers()
        assert [spec.share_weights for spec in specs[1:]] == [share] * decoders


def test_room_is_bounded_by_what_features_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine(monkeypatch, vision="never ready", queue_mib=1) as waiting:
        waiting._start_workers()
        waiting._largest_bytes = 400 * 1024  # two of them fit into one MiB
        given = 0
        while waiting.has_room:
            waiting.submit(row(given))
            given += 1
    assert given == 2


def test_an_image_larger_than_the_queue_passes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine(monkeypatch, vision="never ready", queue_mib=1) as waiting:
        waiting._start_workers()
        waiting._largest_bytes = 5 * 1024 * 1024
        assert waiting.has_room
        waiting.submit(row(0))
        assert not waiting.has_room


@pytest.mark.parametrize("at_fault", ["vision", "decoder"])
@pytest.mark.parametrize(
    ("behaviour", "kind", "code", "message"),
    [
        ("exit", WorkerError, ExitCode.UNEXPECTED, "process ended with code 7. No finished caption is lost"),
        ("nonsense first", WorkerError, ExitCode.UNEXPECTED, "process began with str"),
        ("refuse", BatchcapError, ExitCode.USAGE, "process can't work: the prompt is too long"),
    ],
)
def test_workers_that_do_not_start(
    monkeypatch: pytest.MonkeyPatch,
    at_fault: str,
    behaviour: str,
    kind: type[BatchcapError],
    code: ExitCode,
    message: str,
) -> None:
    with engine(monkeypatch, **{at_fault: behaviour}) as running:  # type: ignore[arg-type]
        with pytest.raises(kind, match=message) as caught:
            running.start(never)
        assert caught.value.exit_code is code
        assert at_fault in str(caught.value)


def open_files() -> list[str]:
    return sorted(str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.exists())


def no_process(_command: list[str], _socket_fd: int, _sign_fd: int | None) -> "subprocess.Popen[bytes]":
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def test_the_constructor_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_files()
    monkeypatch.setattr(process, "_popen", no_process)
    with engine(monkeypatch, decoders=2) as made:
        assert open_files() == before
        assert made.memory_bytes() == 0
        made.close()


@pytest.mark.parametrize("fails", ["sign", "vision", "sharing", "decoder 0", "decoder 1", "thread", "connection"])
def test_a_start_that_fails_leaves_no_process_and_no_file(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    started: list[subprocess.Popen[bytes]] = []
    number = {"vision": 0, "decoder 0": 1, "decoder 1": 2, "thread": 1, "connection": 2}.get(fails, 9)

    def popen(command: list[str], socket_fd: int, sign_fd: int | None) -> "subprocess.Popen[bytes]":
        if len(started) == number and fails not in ("thread", "connection"):
            no_process(command, socket_fd, sign_fd)
        started.append(popen_of("work", "work")(command, socket_fd, sign_fd))
        return started[-1]

    def fail(*_given: object) -> bool:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def strike(made: Callable[..., Any], error: Exception) -> Callable[..., Any]:
        """Fails for the worker of this number."""

        def call(*given: Any) -> Any:
            if len(started) == number + 1:
                raise error
            return made(*given)

        return call

    with engine(monkeypatch, decoders=2) as running:
        before = open_files()
        monkeypatch.setattr(process, "_popen", popen)
        if fails in ("sign", "sharing"):
            monkeypatch.setattr(local, {"sign": "make_sign_file", "sharing": "_sharing"}[fails], fail)
        if fails == "thread":
            monkeypatch.setattr(
                process.threading.Thread, "start", strike(process.threading.Thread.start, RuntimeError())
            )
        if fails == "connection":
            monkeypatch.setattr(os, "dup", strike(os.dup, OSError(errno.EMFILE, os.strerror(errno.EMFILE))))
        with pytest.raises((WorkerError, OSError)):
            running.start(never)
        assert open_files() == before
        assert all(one.returncode is not None for one in started), "ended, and waited for"
        assert len(started) == {"sign": 0, "vision": 0, "sharing": 1, "thread": 2, "connection": 3}.get(fails, number)
        running.close()


def test_a_worker_that_never_gets_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "START_TIMEOUT_S", 0.2)
    message = r"no model loaded in .* s \(.*decoder 0.*\): is the disk"
    with engine(monkeypatch, decoder="never ready") as running, pytest.raises(WorkerError, match=message):
        running.start(never)


def test_a_stop_does_not_wait_for_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_s = time.monotonic() + 0.3
    with engine(monkeypatch, vision="never ready") as running:
        running.start(lambda: time.monotonic() > asked_s)
        assert time.monotonic() < asked_s + 5


@pytest.mark.parametrize("stage", ["vision", "decoder"])
@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("kills", "was killed by signal 9"),
        ("stops", "has not come to an end with a row in 2 s"),
        ("blocks", "has not come to an end with a row in 2 s"),
        ("stammers", "has sent half a message and nothing more for 1 s"),
        ("breaks", "can't go on: RuntimeError: bad allocation"),
    ],
)
def test_a_row_that_ends_two_workers_fails_and_the_others_do_not(
    monkeypatch: pytest.MonkeyPatch, stage: str, does: str, told: str
) -> None:
    monkeypatch.setattr(process, "MESSAGE_TIMEOUT_S", 1)
    hurry(monkeypatch, 4)
    culprits = (3, 4) if does in ("stops", "blocks", "stammers") else (3, 4, 17)
    with engine(monkeypatch, timeout_s=2.0 if does in ("stops", "blocks") else 60.0, decoders=2, slots=3) as running:
        running.start(never)
        for index in range(24):
            running.submit(row(index, f"{does} {stage}" if index in culprits else "good"))
        found = collect(running, 24)
        assert running.in_flight == 0
        assert running.has_room
        load = running.load()
    assert sorted(found) == list(range(24))
    for index, outcome in found.items():
        if index not in culprits:
            assert isinstance(outcome.result, tuple), outcome
            continue
        assert isinstance(outcome.result, Failure)
        assert outcome.result.kind is ErrorKind.CRASHED
        assert stage in outcome.result.message
        assert told in outcome.result.message
        assert ("lower --slots" in outcome.result.message) is (does in ("kills", "breaks"))
        assert (outcome.facts is None) is (stage == "vision")
    assert (load.reading_rows, load.queue_rows, load.queue_mib, load.decoding_rows) == (0, 0, 0.0, 0)


def test_duplicates_of_a_row_that_ends_workers_end_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine(monkeypatch) as running:
        running.start(never)
        for one in (row(0, "kills decoder"), duplicate(1, 0), duplicate(2, 0)):
            running.submit(one)
        found = collect(running, 3)
    assert isinstance(found[0].result, Failure)
    assert [found[index].result.of for index in (1, 2) if isinstance(found[index].result, Duplicate)] == [0, 0]


def test_duplicates_of_a_duplicate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new vision worker may call a row a duplicate that others were called duplicates of before."""
    with engine(monkeypatch, vision="never ready") as waiting:
        waiting._start_workers()
        for index in range(4):
            waiting.submit(row(index))
        taken = [waiting._take(waiting._vision, Duplicate(index, of, 0.5)) for index, of in ((2, 1), (3, 2), (1, 0))]
        assert taken == [[], [], []]
        outcomes = waiting._take(waiting._vision, Failure(0, ErrorKind.CORRUPT, "cut"))
        assert [outcome.row.index for outcome in outcomes] == [0, 1, 2, 3]
        assert (waiting.in_flight, waiting._ledger.duplicates_waiting) == (0, 0)


@pytest.mark.parametrize("at_fault", ["vision", "decoder 0"])
def test_a_worker_that_is_killed_from_outside(monkeypatch: pytest.MonkeyPatch, at_fault: str) -> None:
    specs = remembered_specs(monkeypatch)
    with engine(monkeypatch, slots=6) as running:
        running.start(never)
        struck = next(one for one in running._supervisors if one.name == at_fault)
        struck.worker.process.kill()
        for index in range(20):
            running.submit(row(index))
        found = collect(running, 20)
    assert all(isinstance(outcome.result, tuple) for outcome in found.values())
    assert len(found) == 20
    # What the kernel kills had too much memory: it comes back with fewer slots.
    slots = [spec.slots for spec in specs if isinstance(spec, DecoderSpec)]
    assert slots == ([6] if at_fault == "vision" else [6, 3])


@pytest.mark.parametrize("at_fault", ["vision", "decoder"])
def test_a_worker_that_always_ends(monkeypatch: pytest.MonkeyPatch, at_fault: str) -> None:
    monkeypatch.setattr(supervisor_module, "MAX_CONSECUTIVE_CRASHES", 4)
    with engine(monkeypatch, **{at_fault: "killed"}) as running:  # type: ignore[arg-type]
        running.start(never)
        for index in range(3):
            running.submit(row(index))
        assert list(collect(running, 1)) == [0], "what came before it goes out first"
        message = rf"{at_fault}.*, 4 times in a row .* was killed by signal 9.*same command"
        with pytest.raises(WorkerError, match=message):
            collect(running, 2)
        with pytest.raises(WorkerError):
            running.poll(0)


@pytest.mark.parametrize("at_fault", ["vision", "decoder"])
def test_a_successor_that_does_not_start(monkeypatch: pytest.MonkeyPatch, at_fault: str) -> None:
    with engine(monkeypatch) as running:
        running.start(never)
        running.submit(row(0, f"kills {at_fault}"))
        monkeypatch.setattr(process, "_popen", popen_of("exit", "exit"))
        with pytest.raises(WorkerError, match=rf"{at_fault}.* ended with code 7"):
            collect(running, 1)


@pytest.mark.parametrize("at_fault", ["vision", "decoder"])
def test_a_successor_that_the_system_has_no_process_for(monkeypatch: pytest.MonkeyPatch, at_fault: str) -> None:
    with engine(monkeypatch) as running:
        running.start(never)
        running.submit(row(0, f"kills {at_fault}"))
        monkeypatch.setattr(process, "_popen", no_process)
        with pytest.raises(WorkerError, match=rf"{at_fault}.* could not be started: Resource temporarily unavailable"):
            collect(running, 1)


def test_what_a_worker_has_not_taken_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine(monkeypatch, vision="never ready") as waiting:
        waiting._start_workers()
        for index in range(2000):  # more than a socket holds
            waiting.submit(row(index))
        time.sleep(0.2)
        sender = waiting._vision.worker._sender
        assert sender.is_alive()
        waiting._vision.worker.kill()
        sender.join(PATIENCE_S)
        assert not sender.is_alive()


@pytest.mark.parametrize("at_fault", ["vision", "decoder"])
def test_a_worker_that_talks_nonsense(monkeypatch: pytest.MonkeyPatch, at_fault: str) -> None:
    with engine(monkeypatch, **{at_fault: "nonsense"}) as running:  # type: ignore[arg-type]
        running.start(never)
        running.submit(row(0))
        with pytest.raises(WorkerError, match=rf"{at_fault}.* sent dict, which nobody expects"):
            collect(running, 1)


def test_modules_where_the_command_is_run_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("queue", "socket", "numpy", "onnxruntime"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    worker = process.Worker("decoder 0", DecoderSpec("absent", "0" * 64, GenerationConfig(), 1, 1, 16))
    try:
        assert worker.connection.poll(PATIENCE_S), "the worker says nothing"
        answer = worker.connection.recv()
    finally:
        worker.kill()
        worker.close()
    assert isinstance(answer, Fatal)
    assert "there is no bundle at absent" in answer.message
