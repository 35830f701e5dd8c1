"""The decoder worker with a real decoder: a row that can't be admitted is a failed row, and the others go on."""

import dataclasses
import threading
from multiprocessing import Pipe

import numpy as np
import pytest

from batchcap.bundle import Bundle
from batchcap.config import GenerationConfig
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
