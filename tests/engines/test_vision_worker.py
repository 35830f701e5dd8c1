"""The vision worker with a real encoder: what goes into one pass, and a picture that the encoder chokes on."""

import hashlib
import io
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from batchcap.bundle import Bundle
from batchcap.config import VisionConfig, VisionDtype
from batchcap.engines.messages import Busy, Captioned, VisionSpec
from batchcap.engines.twins import KnownPictures
from batchcap.engines.vision_worker import VisionWorker
from batchcap.errors import ErrorKind
from batchcap.records import Failure, Features, ImageRow, Patches, Twin
from batchcap.vision.encoder import VisionEncoder
from tests.vision.towers import picture

SIDES = [(4, 4), (4, 4), (8, 8), (2, 2), (30, 30), (2, 2)]


def make_worker(bundle: Bundle, patch_budget: int, *, find_twins: bool = True) -> tuple[VisionWorker, Connection]:
    """A worker, and the other end of its connection."""
    ours, theirs = Pipe()
    config = VisionConfig(dtype=VisionDtype.FP32)
    spec = VisionSpec(str(bundle.folder), bundle.id, config, 1, patch_budget, find_twins)
    return VisionWorker(spec, theirs), ours


def pictures(bundle: Bundle) -> list[Patches]:
    return [picture(bundle.geometry.vision, grid, index) for index, grid in enumerate(SIDES)]


@pytest.mark.parametrize(
    ("patch_budget", "batches"),
    [(68, [[0, 1], [2, 3], [4], [5]]), (1, [[0], [1], [2], [3], [4], [5]]), (10_000, [[0, 1, 2, 3, 4, 5]])],
)
def test_a_pass_keeps_order_and_budget(tiny_bundle_fp32: Bundle, patch_budget: int, batches: list[list[int]]) -> None:
    worker, _ours = make_worker(tiny_bundle_fp32, patch_budget)
    for one in pictures(tiny_bundle_fp32):
        worker._loaded.put(one)
    assert [[one.index for one in worker._next_batch()] for _batch in batches] == batches
    assert worker._carried is None
    assert worker._loaded.empty()


def test_failures_pass_by(tiny_bundle_fp32: Bundle) -> None:
    worker, ours = make_worker(tiny_bundle_fp32, 10_000)
    failure = Failure(7, ErrorKind.CORRUPT, "cut")
    for one in (failure, *pictures(tiny_bundle_fp32)[:2]):
        worker._loaded.put(one)
    assert [one.index for one in worker._next_batch()] == [0, 1]
    assert ours.recv() == failure


def test_equal_pictures_are_decoded_once(tiny_bundle_fp32: Bundle, tmp_path: Path) -> None:
    data = {name: encoded(colour) for name, colour in (("red", (200, 9, 9)), ("blue", (9, 9, 200)))}
    (tmp_path / "red.png").write_bytes(data["red"])
    rows = [
        ImageRow(3, "a", "s", 0, data=data["red"]),
        ImageRow(4, "b", "s", 0, data=data["blue"]),
        ImageRow(5, "c", "s", 0, path=str(tmp_path / "red.png")),
        ImageRow(6, "d", "s", 0, data=data["red"][:50]),
        ImageRow(7, "e", "s", 0, data=data["red"][:50]),
        ImageRow(8, "f", "s", 0),
        ImageRow(9, "g", "s", 0),
    ]
    worker, ours = make_worker(tiny_bundle_fp32, 10_000)
    for row in rows:
        worker._read(row)
    batch = worker._next_batch()
    assert [one.index for one in batch] == [3, 4]
    passed = [ours.recv() for _row in range(5)]
    assert [(type(one), one.index) for one in passed] == [
        (Twin, 5), (Failure, 6), (Twin, 7), (Failure, 8), (Failure, 9)
    ]  # fmt: skip
    assert (passed[0].of, passed[2].of) == (3, 6)
    assert passed[0].read_ms >= 0


def test_pictures_of_earlier_runs_are_known(tiny_bundle_fp32: Bundle) -> None:
    red, blue = encoded((200, 9, 9)), encoded((9, 9, 200))
    worker, ours = make_worker(tiny_bundle_fp32, 10_000)
    rows = [ImageRow(7, "a", "s", 0, data=red), ImageRow(8, "b", "s", 0, data=blue)]
    messages: list[object] = [Captioned([(hashlib.sha256(red).hexdigest(), 2)]), *rows]

    class Hand:
        def get(self) -> object:
            if not messages:
                raise EOFError
            return messages.pop(0)

    with pytest.raises(EOFError):
        worker._dispatch(Hand())  # type: ignore[arg-type]
    worker._readers.shutdown()
    assert [one.index for one in worker._next_batch()] == [8]
    twin = ours.recv()
    assert (twin.index, twin.of) == (7, 2)


def test_nothing_is_a_twin_where_draws_differ(tiny_bundle_fp32: Bundle) -> None:
    worker, _ours = make_worker(tiny_bundle_fp32, 10_000, find_twins=False)
    for index in range(3):
        worker._read(ImageRow(index, "a", "s", 0, data=encoded((200, 9, 9))))
    assert [one.index for one in worker._next_batch()] == [0, 1, 2]


def test_the_pictures_met_longest_ago_are_forgotten() -> None:
    known = KnownPictures(capacity=3)
    names = {name: hashlib.sha256(name.encode()).hexdigest() for name in "abcde"}
    assert [known.first_row(names[name], index) for index, name in enumerate("abcaa")] == [0, 1, 2, 0, 0]
    assert known.first_row(names["d"], 5) == 5
    assert known.first_row(names["a"], 6) == 0, "met a moment ago"
    assert known.first_row(names["b"], 7) == 7, "forgotten"


def encoded(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_picture_that_can_not_be_encoded_fails_alone(tiny_bundle_fp32: Bundle) -> None:
    worker, ours = make_worker(tiny_bundle_fp32, 10_000)
    batch = pictures(tiny_bundle_fp32)[:4]
    batch[1].values[3, 5] = np.nan
    worker._encode(batch)
    messages = []
    while ours.poll():
        messages.append(ours.recv())
    found = [message for message in messages if not isinstance(message, Busy)]
    assert [(type(one), one.index) for one in found] == [(Features, 0), (Failure, 1), (Features, 2), (Features, 3)]
    assert found[1].kind is ErrorKind.INTERNAL
    assert "not finite" in found[1].message


def test_an_encoder_that_can_not_work_ends_the_job_at_its_start(
    tiny_bundle_fp32: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_encoder: VisionEncoder, _batch: list[Patches]) -> list[Features]:
        raise RuntimeError("no kernel for bf16")

    monkeypatch.setattr(VisionEncoder, "encode", fail)
    with pytest.raises(RuntimeError, match="no kernel"):
        make_worker(tiny_bundle_fp32, 10_000)
