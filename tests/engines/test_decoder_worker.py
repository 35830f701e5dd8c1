"""The decoder worker with a real decoder: a row that can't be admitted is a failed row, and the others go on."""

import dataclasses
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from batchcap.config import GenerationConfig
from batchcap.core.errors import ErrorKind
from batchcap.core.records import Caption, Failure, Features, ImageRow, Request
from batchcap.decoder.scheduler import ContinuousBatcher
from batchcap.decoder.slots import Slots
from batchcap.engines import decoder_lane
from batchcap.engines.busy_flag import BusyFlag, make_sign_file
from batchcap.engines.decoder_worker import DecoderWorker, lane_count
from batchcap.engines.messages import DecoderSpec, DecodeWork, StageTime
from batchcap.engines.supervisor import WorkerSupervisor
from batchcap.model.bundle import Bundle
from tests.engines.doubles import EndlessInbox

PATIENCE_S = 60.0
GENERATION = GenerationConfig("What is it?", max_new_tokens=5, loop_stop=False)
SHORT = GenerationConfig(max_new_tokens=3)


class Hand:
    """An inbox with these messages in it, and then the end of the worker."""

    def __init__(self, *messages: DecodeWork) -> None:
        self._messages = list(messages)

    def get_within(self, _seconds: float) -> DecodeWork | None:
        return self._messages.pop(0) if self._messages else None

    def get(self) -> DecodeWork:
        if not self._messages:
            raise EOFError
        return self._messages.pop(0)


def image(bundle: Bundle, index: int) -> Features:
    hidden, levels = bundle.geometry.text.hidden_size, len(bundle.geometry.vision.deepstack_levels)
    random = np.random.default_rng(index)
    embeds = random.standard_normal((6, hidden), np.float32)
    return Features(index, embeds, random.standard_normal((levels, 6, hidden), np.float32), (2, 3), 0, 0, "", 0.0, 0.0)


def work(features: Features, generation: GenerationConfig = GENERATION) -> DecodeWork:
    row = ImageRow(features.index, f"row-{features.index}", "s", features.index)
    return DecodeWork(Request(row, generation.prompts, generation.sampling), features)


def images(bundle: Bundle, count: int, generation: GenerationConfig = GENERATION) -> list[DecodeWork]:
    return [work(image(bundle, index), generation) for index in range(count)]


def outcomes(ours: Connection, rows: int) -> dict[int, tuple[Caption, ...] | Failure]:
    """What the worker says of each row, by its index."""
    found: dict[int, tuple[Caption, ...] | Failure] = {}
    while len(found) < rows:
        assert ours.poll(PATIENCE_S), "the worker has gone silent"
        message = ours.recv()
        if not isinstance(message, StageTime):
            index = message.index if isinstance(message, Failure) else message[0].index
            assert index not in found
            found[index] = message
    return found


def run_to_the_end(worker: DecoderWorker, hand: Any) -> None:
    with suppress(EOFError, BrokenPipeError):  # no more messages, or nobody who reads any more
        worker.run(hand)


def serve(
    worker: DecoderWorker, ours: Connection, work: Sequence[DecodeWork]
) -> dict[int, tuple[Caption, ...] | Failure]:
    """The outcomes of this work from a worker that ends after it."""
    thread = threading.Thread(target=run_to_the_end, args=(worker, Hand(*work)), daemon=True)
    thread.start()
    found = outcomes(ours, len(work))
    thread.join(PATIENCE_S)
    return found


def test_a_row_that_can_not_be_admitted_fails_alone(tiny_bundle_fp32: Bundle) -> None:
    bundle = tiny_bundle_fp32
    good, other = image(bundle, 0), image(bundle, 4)
    narrow = dataclasses.replace(image(bundle, 1), embeds=good.embeds[:, :-1])
    larger = dataclasses.replace(image(bundle, 2), embeds=np.repeat(good.embeds, 4, 0), grid=(4, 6))
    levelless = dataclasses.replace(image(bundle, 3), deepstack=good.deepstack[:0])
    given = [work(one, SHORT) for one in (narrow, good, larger, levelless, other)]
    ours, theirs = Pipe()
    spec = DecoderSpec(str(bundle.folder), bundle.id, SHORT, 2, 1, 16)
    worker = DecoderWorker(spec, theirs)

    found = serve(worker, ours, given)
    assert {index for index, one in found.items() if isinstance(one, tuple)} == {0, 4}
    failures = [one for one in found.values() if isinstance(one, Failure)]
    assert {one.kind for one in failures} == {ErrorKind.INTERNAL}
    assert "24 visual tokens" in next(one.message for one in failures if one.index == 2)


ASKED = {"whole": "Describe this image.", "what": "What is it?", "colours": "Name the colours."}
ASKING = GenerationConfig(ASKED, max_new_tokens=5, loop_stop=False)


def make_asking(bundle: Bundle, slots: int) -> tuple[DecoderWorker, Connection]:
    ours, theirs = Pipe()
    worker = DecoderWorker(DecoderSpec(str(bundle.folder), bundle.id, ASKING, slots, 1, 16), theirs)
    return worker, ours


@pytest.mark.parametrize("slots", [1, 2, 7])
def test_a_row_comes_out_with_an_answer_to_each_prompt(tiny_bundle_fp32: Bundle, slots: int) -> None:
    worker, ours = make_asking(tiny_bundle_fp32, slots)
    found = serve(worker, ours, images(tiny_bundle_fp32, 4, ASKING))
    for captions in found.values():
        assert isinstance(captions, tuple)
        assert [caption.prompt for caption in captions] == [0, 1, 2]
    assert not worker.lanes[0]._open


def test_a_prompt_that_can_not_be_prefilled_fails_its_row_alone(
    tiny_bundle_fp32: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, ours = make_asking(tiny_bundle_fp32, slots=2)
    prefilled = ContinuousBatcher._prefilled

    def fail(decoder: ContinuousBatcher, given: Any, prompt: int, slot: int) -> Any:
        if given.request.features.index == 1 and prompt == 2:
            raise RuntimeError("odd")
        return prefilled(decoder, given, prompt, slot)

    monkeypatch.setattr(ContinuousBatcher, "_prefilled", fail)
    found = serve(worker, ours, images(tiny_bundle_fp32, 3, ASKING))
    failure = found[1]
    assert isinstance(failure, Failure)
    assert "RuntimeError: odd" in failure.message
    assert isinstance(found[0], tuple)
    assert isinstance(found[2], tuple)
    assert not worker.lanes[0]._open


def test_each_row_is_asked_what_its_request_says(tiny_bundle_fp32: Bundle) -> None:
    worker, ours = make_asking(tiny_bundle_fp32, slots=3)
    asked = [ASKING, GENERATION, SHORT, GenerationConfig("Describe <|image_pad|>."), GENERATION, ASKING]
    given = [work(image(tiny_bundle_fp32, index), one) for index, one in enumerate(asked)]
    found = serve(worker, ours, given)
    refused = found.pop(3)
    assert isinstance(refused, Failure)
    assert "the special token" in refused.message
    assert {index: len(one) for index, one in found.items() if isinstance(one, tuple)} == {0: 3, 1: 1, 2: 1, 4: 1, 5: 3}
    alone, ours = make_lanes(tiny_bundle_fp32, 3)
    for index, outcome in serve(alone, ours, [given[1], given[4]]).items():
        assert written(outcome) == written(found[index])
        assert written(outcome)[0] == written(serve_one(tiny_bundle_fp32, index))[1]
    assert not worker.lanes[0]._open


def serve_one(bundle: Bundle, index: int) -> tuple[Caption, ...] | Failure:
    """What comes of an image alone, of which three things are asked."""
    worker, ours = make_asking(bundle, slots=1)
    return serve(worker, ours, [work(image(bundle, index), ASKING)])[index]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("Failed to allocate memory for requested buffer")])
def test_lack_of_memory_is_no_rows_fault(
    tiny_bundle_fp32: Bundle, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_given: object) -> None:
        raise error

    bundle = tiny_bundle_fp32
    spec = DecoderSpec(str(bundle.folder), bundle.id, SHORT, 2, 1, 16)
    _ours, theirs = Pipe()
    worker = DecoderWorker(spec, theirs)
    monkeypatch.setattr(worker.lanes[0]._decoder, "add_request", fail)
    with pytest.raises(type(error)):
        worker.run(Hand(*images(bundle, 1, SHORT)))  # type: ignore[arg-type]


def make_lanes(
    bundle: Bundle, slots: int, sign_file: int | None = None, generation: GenerationConfig = GENERATION
) -> tuple[DecoderWorker, Connection]:
    """A worker of two threads, and the other end of its connection."""
    ours, theirs = Pipe()
    spec = DecoderSpec(str(bundle.folder), bundle.id, generation, slots, 2, 16, sign_file=sign_file)
    return DecoderWorker(spec, theirs), ours


@pytest.mark.parametrize(
    ("threads", "slots", "lanes"), [(1, 16, 1), (2, 16, 2), (4, 5, 2), (2, 3, 1), (5, 16, 1), (64, 48, 1)]
)
def test_lanes_are_for_few_threads_and_enough_slots(threads: int, slots: int, lanes: int) -> None:
    assert lane_count(threads, slots) == lanes


def written(outcome: tuple[Caption, ...] | Failure) -> list[tuple[int, ...]]:
    assert isinstance(outcome, tuple)
    return [caption.token_ids for caption in outcome]


def test_two_lanes_write_what_one_writes(tiny_bundle_fp32: Bundle) -> None:
    bundle = tiny_bundle_fp32
    given = images(bundle, 23)
    texts = []
    for slots in (3, 5):
        worker, ours = make_lanes(bundle, slots)
        inbox: Any = EndlessInbox(*given)
        threading.Thread(target=run_to_the_end, args=(worker, inbox), daemon=True).start()
        found = outcomes(ours, len(given))
        texts.append({index: written(outcome) for index, outcome in found.items()})
        assert [lane._decoder.free_slots for lane in worker.lanes] == ([3] if slots == 3 else [2, 3])
    assert texts[0] == texts[1]


def test_a_lane_that_hangs_is_noticed_while_the_other_goes_on(
    tiny_bundle_fp32: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, timeout_s = tiny_bundle_fp32, 2.0
    worker, ours = make_lanes(bundle, 4)
    monkeypatch.setattr(worker.lanes[1]._decoder, "step", lambda: threading.Event().wait())  # as in native code
    inbox: Any = EndlessInbox()
    spec = DecoderSpec(str(bundle.folder), bundle.id, GenerationConfig(), 4, 2, 16)
    stand_in: Any = SimpleNamespace(send=inbox.put)
    supervisor = WorkerSupervisor("decoder 0", spec, timeout_s, lambda _name, _spec: stand_in)
    supervisor.start()
    supervisor.ready()
    threading.Thread(target=run_to_the_end, args=(worker, inbox), daemon=True).start()
    index, ends_s, last_s = 0, time.monotonic() + PATIENCE_S, {0: 0.0, 1: 0.0}
    while not supervisor.is_hung():
        assert time.monotonic() < ends_s
        while supervisor.rows < 6:  # there is always a next row, so that the lane that is well is never silent
            supervisor.give(work(image(bundle, index)))
            index += 1
        while ours.poll(0.01):
            message = ours.recv()
            supervisor.heard(message)
            if isinstance(message, StageTime):
                last_s[message.lane] = time.monotonic()
            else:
                supervisor.answered(message[0].index)
                break
    assert index > 10
    assert last_s[0] > last_s[1] + timeout_s / 2


def test_lanes_that_have_nothing_to_do_say_so(tiny_bundle_fp32: Bundle) -> None:
    worker, ours = make_lanes(tiny_bundle_fp32, 4)
    inbox: Any = EndlessInbox(*images(tiny_bundle_fp32, 3))
    threading.Thread(target=run_to_the_end, args=(worker, inbox), daemon=True).start()
    last: dict[int, StageTime] = {}
    rows = 0
    while rows < 3 or len(last) < 2 or not all(one.is_idle for one in last.values()):
        assert ours.poll(PATIENCE_S)
        message = ours.recv()
        if isinstance(message, StageTime):
            last[message.lane] = message
        else:
            rows += 1


def test_each_lane_asks_all_prompts_of_its_images(tiny_bundle_fp32: Bundle) -> None:
    worker, ours = make_lanes(tiny_bundle_fp32, 4, generation=ASKING)
    inbox: Any = EndlessInbox(*images(tiny_bundle_fp32, 9, ASKING))
    threading.Thread(target=run_to_the_end, args=(worker, inbox), daemon=True).start()
    for captions in outcomes(ours, 9).values():
        assert isinstance(captions, tuple)
        assert [caption.prompt for caption in captions] == [0, 1, 2]


def test_a_lane_that_can_not_go_on_ends_the_worker(tiny_bundle_fp32: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise MemoryError("no room")

    worker, ours = make_lanes(tiny_bundle_fp32, 4)
    monkeypatch.setattr(worker.lanes[1]._decoder, "step", fail)
    inbox: Any = EndlessInbox(*images(tiny_bundle_fp32, 40))
    with pytest.raises(MemoryError, match="no room"):
        worker.run(inbox)
    while ours.poll():
        assert isinstance(ours.recv(), StageTime | tuple), "whole messages"
    assert worker._sending.locked(), "nothing comes between the worker's last word and its end"


HOLDS_SIGN = (
    "import sys; from batchcap.engines.busy_flag import BusyFlag\n"
    "with BusyFlag(int(sys.argv[1])).hold():\n"
    "    print(flush=True); sys.stdin.read()"
)


def test_no_step_of_few_rows_while_the_encoder_is_at_work(tiny_bundle_fp32: Bundle) -> None:
    bundle, sign_file = tiny_bundle_fp32, make_sign_file()
    worker, ours = make_lanes(bundle, 4, sign_file)
    inbox: Any = EndlessInbox(*images(bundle, 1))
    command = [sys.executable, "-c", HOLDS_SIGN, str(sign_file)]
    encoder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[sign_file])
    assert encoder.stdout is not None
    encoder.stdout.readline()
    threading.Thread(target=run_to_the_end, args=(worker, inbox), daemon=True).start()
    for _message in range(5):  # prefilled, and then it waits, but says so
        assert ours.poll(PATIENCE_S)
        told = ours.recv()
        assert isinstance(told, StageTime)
        assert told.stage == "prefill" or told.seconds == 0
    encoder.kill()  # however it ends: the sign comes down
    assert outcomes(ours, 1).keys() == {0}
    encoder.wait()


def test_a_lane_loses_patience(tiny_bundle_fp32: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that is frozen must not hold up what can be written without it."""
    monkeypatch.setattr(decoder_lane, "PATIENCE_S", 0.2)
    monkeypatch.setattr(BusyFlag, "is_set", lambda _sign: True)
    worker, ours = make_lanes(tiny_bundle_fp32, 4)
    inbox: Any = EndlessInbox(*images(tiny_bundle_fp32, 1))
    threading.Thread(target=run_to_the_end, args=(worker, inbox), daemon=True).start()
    assert outcomes(ours, 1).keys() == {0}


def test_a_split_that_shows_is_said(
    tiny_bundle_fp32: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prefill = Slots.prefill

    def rounding(slots: Slots, *given: Any, past: int = 0) -> Any:
        outputs = prefill(slots, *given, past=past)
        if past and outputs.logits is not None:
            outputs.logits[0, 0, 5] += np.float32(1e-5)
        return outputs

    monkeypatch.setattr(Slots, "prefill", rounding)
    with caplog.at_level(logging.WARNING):
        make_asking(tiny_bundle_fp32, slots=8)
    assert caplog.text.count("may depend on the prompts beside it") == 1
    caplog.clear()
    make_lanes(tiny_bundle_fp32, 8)
    assert not caplog.records
