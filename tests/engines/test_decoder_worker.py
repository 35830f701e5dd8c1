"""The decoder worker with a real decoder: a row that can't be admitted is a failed row, and the others go on."""

import dataclasses
import threading
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest

from batchcap.bundle import Bundle
from batchcap.config import GenerationConfig
from batchcap.decoder.scheduler import Decoder
from batchcap.engines.decoder_worker import DecoderWorker
from batchcap.engines.messages import Busy, DecoderSpec, DecodeWork
from batchcap.errors import ErrorKind
from batchcap.records import Caption, Failure, Features

PATIENCE_S = 60.0


class Hand:
    """An inbox with these messages in it, and then the end of the worker."""

    def __init__(self, *messages: DecodeWork) -> None:
        self._messages = list(messages)

    def get_nowait(self) -> DecodeWork | None:
        return self._messages.pop(0) if self._messages else None

    def get(self) -> DecodeWork:
        if not self._messages:
            raise EOFError
        return self._messages.pop(0)


def picture(bundle: Bundle, index: int) -> Features:
    hidden, levels = bundle.geometry.text.hidden_size, len(bundle.geometry.vision.deepstack_levels)
    random = np.random.default_rng(index)
    embeds = random.standard_normal((6, hidden), np.float32)
    return Features(index, embeds, random.standard_normal((levels, 6, hidden), np.float32), (2, 3), 0, 0, "", 0.0, 0.0)


def test_a_row_that_can_not_be_admitted_fails_alone(tiny_bundle_fp32: Bundle) -> None:
    bundle = tiny_bundle_fp32
    good, other = picture(bundle, 0), picture(bundle, 4)
    narrow = dataclasses.replace(picture(bundle, 1), embeds=good.embeds[:, :-1])
    larger = dataclasses.replace(picture(bundle, 2), embeds=np.repeat(good.embeds, 4, 0), grid=(4, 6))
    levelless = dataclasses.replace(picture(bundle, 3), deepstack=good.deepstack[:0])
    work = [DecodeWork(f"row-{one.index}", one) for one in (narrow, good, larger, levelless, other)]
    ours, theirs = Pipe()
    spec = DecoderSpec(str(bundle.folder), bundle.id, GenerationConfig(max_new_tokens=3), 2, 1, 16)
    worker = DecoderWorker(spec, theirs)

    def serve() -> None:
        try:
            worker.run(Hand(*work))  # type: ignore[arg-type]
        except EOFError:
            theirs.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    found: dict[int, Caption | Failure] = {}
    while len(found) < len(work):
        assert ours.poll(PATIENCE_S), "the worker has gone silent"
        message = ours.recv()
        if not isinstance(message, Busy):
            one = message[0] if isinstance(message, tuple) else message
            assert one.index not in found
            found[one.index] = one
    thread.join(PATIENCE_S)
    assert {index for index, one in found.items() if isinstance(one, Caption)} == {0, 4}
    failures = [one for one in found.values() if isinstance(one, Failure)]
    assert {one.kind for one in failures} == {ErrorKind.INTERNAL}
    assert "24 visual tokens" in next(one.message for one in failures if one.index == 2)


ASKED = {"whole": "Describe this image.", "what": "What is it?", "colours": "Name the colours."}


def serve(
    bundle: Bundle, worker: DecoderWorker, ours: Connection, rows: int
) -> dict[int, tuple[Caption, ...] | Failure]:
    """The outcome of each row, by its index."""
    hand = Hand(*[DecodeWork(f"row-{index}", picture(bundle, index)) for index in range(rows)])
    thread = threading.Thread(target=run_to_the_end, args=(worker, hand), daemon=True)
    thread.start()
    found: dict[int, tuple[Caption, ...] | Failure] = {}
    while len(found) < rows:
        assert ours.poll(PATIENCE_S), "the worker has gone silent"
        message = ours.recv()
        if not isinstance(message, Busy):
            index = message.index if isinstance(message, Failure) else message[0].index
            assert index not in found
            found[index] = message
    thread.join(PATIENCE_S)
    return found


def run_to_the_end(worker: DecoderWorker, hand: Hand) -> None:
    with suppress(EOFError):
        worker.run(hand)  # type: ignore[arg-type]


def make_asking(bundle: Bundle, slots: int) -> tuple[DecoderWorker, Connection]:
    ours, theirs = Pipe()
    generation = GenerationConfig(ASKED, max_new_tokens=5, loop_stop=False)
    worker = DecoderWorker(DecoderSpec(str(bundle.folder), bundle.id, generation, slots, 1, 16), theirs)
    return worker, ours


@pytest.mark.parametrize("slots", [1, 2, 7])
def test_a_row_comes_out_with_an_answer_to_each_prompt(tiny_bundle_fp32: Bundle, slots: int) -> None:
    worker, ours = make_asking(tiny_bundle_fp32, slots)
    found = serve(tiny_bundle_fp32, worker, ours, rows=4)
    for captions in found.values():
        assert isinstance(captions, tuple)
        assert [caption.prompt for caption in captions] == [0, 1, 2]
    assert not worker._answers


def test_a_prompt_that_can_not_be_prefilled_fails_its_row_alone(
    tiny_bundle_fp32: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, ours = make_asking(tiny_bundle_fp32, slots=2)
    prefilled = Decoder._prefilled

    def fail(decoder: Decoder, given: Any, prompt: int, slot: int) -> Any:
        if given.features.index == 1 and prompt == 2:
            raise RuntimeError("odd")
        return prefilled(decoder, given, prompt, slot)

    monkeypatch.setattr(Decoder, "_prefilled", fail)
    found = serve(tiny_bundle_fp32, worker, ours, rows=3)
    failure = found[1]
    assert isinstance(failure, Failure)
    assert "RuntimeError: odd" in failure.message
    assert isinstance(found[0], tuple)
    assert isinstance(found[2], tuple)
    assert not worker._answers


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("Failed to allocate memory for requested buffer")])
def test_lack_of_memory_is_no_rows_fault(
    tiny_bundle_fp32: Bundle, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_given: object) -> None:
        raise error

    bundle = tiny_bundle_fp32
    spec = DecoderSpec(str(bundle.folder), bundle.id, GenerationConfig(max_new_tokens=3), 2, 1, 16)
    worker = DecoderWorker(spec, Pipe()[1])
    monkeypatch.setattr(worker._decoder, "admit", fail)
    with pytest.raises(type(error)):
        worker.run(Hand(DecodeWork("row-0", picture(bundle, 0))))  # type: ignore[arg-type]
