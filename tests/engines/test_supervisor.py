"""Who is suspect when a worker has ended, when one hangs, and when it is nobody's fault but the machine's."""

from types import SimpleNamespace
from typing import Any

import pytest

from batchcap.config import GenerationConfig, VisionConfig
from batchcap.core.errors import ErrorKind, WorkerError
from batchcap.core.records import ImageRow, Request
from batchcap.engines import messages
from batchcap.engines import supervisor as supervisor_module
from batchcap.engines.messages import DecoderSpec, DecodeWork, StageTime, VisionSpec
from batchcap.engines.process import WorkerEndError
from batchcap.engines.supervisor import LOOK_S, SeenTime, WorkerSupervisor
from tests.fake_engine import request_of

VISION = VisionSpec("/bundle", "0" * 64, VisionConfig(), 1, 4096)
DECODER = DecoderSpec("/bundle", "0" * 64, GenerationConfig(), slots=8, threads=1, max_visual_tokens=16)
KILLED = WorkerEndError("was killed by signal 9", lacked_memory=True)
CRASHED = WorkerEndError("was killed by signal 11")


class Room:
    """Workers that only remember what they were sent, and a clock that stands still."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.sent: list[list[int]] = []
        self.specs: list[Any] = []

    def supervisor(self, spec: Any, timeout_s: float = 60.0) -> WorkerSupervisor:
        supervisor = WorkerSupervisor("it", spec, timeout_s, self.start, self.clock)
        supervisor.start()
        supervisor.ready()
        return supervisor

    def clock(self) -> float:
        return self.now_s

    def start(self, _name: str, spec: Any) -> Any:
        self.specs.append(spec)
        sent: list[int] = []
        self.sent.append(sent)
        send = lambda work: sent.append(work.index if isinstance(work, Request) else work.request.index)  # noqa: E731
        return SimpleNamespace(send=send, kill=lambda: None, close=lambda: None)


def row(index: int) -> Request:
    return request_of(ImageRow(index, str(index), "/in", index))


def work(index: int) -> DecodeWork:
    features: Any = SimpleNamespace(index=index)
    return DecodeWork(row(index), features)


def test_suspects_are_given_one_at_a_time_oldest_first() -> None:
    room = Room()
    supervisor = room.supervisor(VISION)
    for index in (5, 6, 7):
        supervisor.give(row(index))
    supervisor.answered(6)
    assert supervisor.restart_after(CRASHED) == []
    supervisor.ready()
    assert (supervisor.rows, supervisor.is_isolating) == (2, True)
    assert room.sent[1] == [5]
    supervisor.answered(5)
    assert room.sent[1] == [5, 7]
    assert supervisor.is_isolating
    supervisor.answered(7)
    assert (supervisor.rows, supervisor.is_isolating) == (0, False)


def test_the_second_end_is_the_doing_of_the_one_that_was_alone() -> None:
    room = Room()
    supervisor = room.supervisor(VISION)
    for index in (0, 1, 2):
        supervisor.give(row(index))
    supervisor.restart_after(CRASHED)
    supervisor.ready()
    supervisor.answered(0)
    (failure,) = supervisor.restart_after(CRASHED)
    assert (failure.index, failure.kind) == (1, ErrorKind.CRASHED)
    assert "the it process was killed by signal 11" in failure.message
    supervisor.ready()
    assert room.sent == [[0, 1, 2], [0, 1], [2]]
    supervisor.answered(2)
    assert not supervisor.is_isolating


def test_a_worker_that_ends_without_work_is_replaced() -> None:
    room = Room()
    supervisor = room.supervisor(DECODER)
    assert supervisor.restart_after(CRASHED) == []
    assert room.specs == [DECODER, DECODER]
    assert not supervisor.is_isolating


def test_a_decoder_without_memory_comes_back_with_fewer_slots() -> None:
    room = Room()
    supervisor = room.supervisor(DECODER)
    for slots in (4, 2, 1, 1):
        supervisor.restart_after(KILLED)
        supervisor.ready()
        assert supervisor.slots == slots
    supervisor.restart_after(CRASHED)
    assert [spec.slots for spec in room.specs] == [8, 4, 2, 1, 1, 1]


def test_a_vision_worker_without_memory_comes_back_with_less_at_once() -> None:
    room = Room()
    supervisor = room.supervisor(VISION)
    assert supervisor.window(32) == 32
    for divisor in (2, 4):
        supervisor.restart_after(KILLED)
        supervisor.ready()
        assert supervisor.window(32) == 32 // divisor
    supervisor.restart_after(CRASHED)
    assert [spec.divisor for spec in room.specs] == [1, 2, 4, 4]
    assert [supervisor.window(rows) for rows in (1, 3, 4)] == [1, 1, 1], "never none"


@pytest.mark.parametrize("spec", [VISION, DECODER])
def test_less_has_an_end(spec: VisionSpec | DecoderSpec) -> None:
    for _end in range(20):
        spec = spec.with_less()
    assert spec == spec.with_less()
    assert spec.slots == 1 if isinstance(spec, DecoderSpec) else spec.divisor == messages.MAX_DIVISOR


def test_a_row_that_lacks_memory_twice_fails_and_says_what_to_lower() -> None:
    room = Room()
    supervisor = room.supervisor(VISION)
    supervisor.give(row(0))
    assert supervisor.restart_after(KILLED) == []
    supervisor.ready()
    (failure,) = supervisor.restart_after(KILLED)
    assert failure.kind is ErrorKind.CRASHED
    assert "run out of memory: lower --slots, --decoders or --queue-mib, then run again with --retry" in failure.message


def test_too_many_ends_with_nothing_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "MAX_CONSECUTIVE_CRASHES", 3)
    supervisor = Room().supervisor(VISION)
    for _ in range(2):
        supervisor.give(row(0))
        supervisor.restart_after(CRASHED)
        supervisor.ready()
    supervisor.answered(0)  # one that was finished: the count begins anew
    for index in (1, 2):
        supervisor.give(row(index))
        supervisor.restart_after(CRASHED)
        supervisor.ready()
    with pytest.raises(WorkerError, match=r"the it process, 3 times in a row .*, was killed by signal 11. No finished"):
        supervisor.restart_after(CRASHED)


def test_a_successor_that_ends_while_it_loads() -> None:
    supervisor = Room().supervisor(VISION)
    supervisor.give(row(0))
    supervisor.restart_after(CRASHED)
    with pytest.raises(WorkerError, match="lower --slots"):
        supervisor.restart_after(KILLED)


def test_a_vision_worker_hangs_over_its_oldest_row_whatever_it_says_of_others() -> None:
    room = Room()
    supervisor = room.supervisor(VISION)
    assert not supervisor.is_hung()
    room.now_s += 1000
    assert not supervisor.is_hung(), "who has nothing to do may be silent"
    supervisor.give(row(0))
    supervisor.give(row(1))
    assert not supervisor.is_hung()
    room.now_s += 59
    supervisor.heard()
    supervisor.answered(1)
    assert not supervisor.is_hung()
    room.now_s += 2
    supervisor.heard()
    assert supervisor.is_hung()
    assert "in 60 s" in str(supervisor.hang_error())


def test_the_next_row_has_its_own_time() -> None:
    room = Room()
    supervisor = room.supervisor(VISION)
    supervisor.give(row(0))
    supervisor.give(row(1))
    assert not supervisor.is_hung()
    room.now_s += 50
    supervisor.answered(0)
    assert not supervisor.is_hung()
    room.now_s += 50
    assert not supervisor.is_hung()
    room.now_s += 11
    assert supervisor.is_hung()


def test_a_successor_has_the_whole_time_for_the_row_that_was_hung_over() -> None:
    room = Room()
    supervisor = room.supervisor(VISION)
    supervisor.give(row(0))
    assert not supervisor.is_hung()
    room.now_s += 61
    assert supervisor.is_hung()
    supervisor.restart_after(supervisor.hang_error())
    room.now_s += 20
    assert not supervisor.is_hung()
    supervisor.ready()
    assert not supervisor.is_hung()
    room.now_s += 59
    assert not supervisor.is_hung()
    room.now_s += 2
    assert supervisor.is_hung()


def test_a_decoder_hangs_when_it_is_silent() -> None:
    room = Room()
    supervisor = room.supervisor(DECODER)
    room.now_s += 1000
    supervisor.give(work(0))
    assert not supervisor.is_hung()
    for _ in range(10):
        room.now_s += 50
        supervisor.heard()  # a step
        assert not supervisor.is_hung()
    room.now_s += 61
    assert supervisor.is_hung()


def test_a_decoder_hangs_when_one_of_its_lanes_is_silent() -> None:
    room = Room()
    supervisor = room.supervisor(DECODER)
    supervisor.give(work(0))
    supervisor.give(work(1))
    for lane in (0, 1):
        supervisor.heard(StageTime("prefill", 0.0, lane))
    for _ in range(2):
        room.now_s += 29
        supervisor.heard(StageTime("decode", 1.0, 0))
    assert not supervisor.is_hung()
    room.now_s += 3
    supervisor.heard(StageTime("decode", 1.0, 0))
    assert supervisor.is_hung()
    supervisor.restart_after(supervisor.hang_error())
    supervisor.ready()
    assert not supervisor.is_hung(), "the lanes of its predecessor are gone"


def test_a_lane_without_work_may_be_silent() -> None:
    room = Room()
    supervisor = room.supervisor(DECODER)
    supervisor.give(work(0))
    supervisor.give(work(1))
    for lane in (0, 1):
        supervisor.heard(StageTime("prefill", 0.0, lane))
    supervisor.answered(1)
    supervisor.heard(StageTime("decode", 0.0, 1, is_idle=True))
    for _ in range(10):
        room.now_s += 50
        supervisor.heard(StageTime("decode", 1.0, 0))
        assert not supervisor.is_hung()
    supervisor.answered(0)
    room.now_s += 1000
    assert not supervisor.is_hung()
    supervisor.give(work(2))
    room.now_s += 59
    assert not supervisor.is_hung(), "what a lane said before it had nothing to do is long ago"
    room.now_s += 2
    assert supervisor.is_hung(), "nobody has taken the row"


def test_loading_has_a_time_of_its_own() -> None:
    room = Room()
    supervisor = room.supervisor(DECODER)
    supervisor.give(work(0))
    supervisor.restart_after(CRASHED)
    room.now_s += 300
    assert not supervisor.is_hung()
    room.now_s += 301
    assert supervisor.is_hung()
    assert "has not loaded its model in 600 s" in str(supervisor.hang_error())


def test_time_in_which_nobody_looked_on_is_nobodys_silence() -> None:
    room = Room()
    seen_s = SeenTime(room.clock)
    for _ in range(8):
        room.now_s += 0.25
        seen_s()
    assert seen_s() == 2.0
    room.now_s += 3600
    assert seen_s() == 2.0 + LOOK_S
    room.now_s += 1
    assert seen_s() == 3.0 + LOOK_S


def test_a_coordinator_that_was_stopped_calls_nobody_hanging() -> None:
    room = Room()
    supervisor = WorkerSupervisor("it", VISION, 60.0, room.start, SeenTime(room.clock))
    supervisor.start()
    supervisor.ready()
    supervisor.give(row(0))
    assert not supervisor.is_hung()
    room.now_s += 3600
    assert not supervisor.is_hung()
    for _ in range(11):
        room.now_s += 5
        assert not supervisor.is_hung()
    room.now_s += 5
    assert supervisor.is_hung()
