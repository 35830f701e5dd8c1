"""The vision worker: what each lane takes, that none waits for another, and an image that the encoder chokes on."""

import dataclasses
import hashlib
import io
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from batchcap.config import InputConfig, VisionBackend, VisionConfig, VisionDtype
from batchcap.core.errors import ErrorKind
from batchcap.core.prompts import Prompt, Sampling
from batchcap.core.records import Duplicate, EncodedImage, Failure, Features, ImageRow, Patches, Request
from batchcap.core.sources import Bytes, FileAt, ImageRef
from batchcap.engines import vision_worker
from batchcap.engines.busy_flag import make_sign_file
from batchcap.engines.dedup import SeenImages
from batchcap.engines.messages import Captioned, Fatal, Ready, StageTime, VisionSpec
from batchcap.engines.supervisor import WorkerSupervisor
from batchcap.engines.vision_worker import VisionWorker, lane_count
from batchcap.inputs.discover import discover
from batchcap.inputs.encoded import read_image
from batchcap.inputs.registry import READERS
from batchcap.job.plan import Plan
from batchcap.model.bundle import Bundle
from batchcap.store.journal import Journal
from batchcap.vision.torch_encoder import VisionEncoder
from tests.engines.doubles import EndlessInbox, seen_elsewhere
from tests.fake_engine import request_of
from tests.inputs.blobs import BlobLists, write_blobs
from tests.vision.towers import image

SIDES = [(4, 4), (4, 4), (8, 8), (2, 2), (30, 30), (2, 2)]
PATIENCE_S = 60.0


def make_worker(
    bundle: Bundle,
    patch_budget: int,
    *,
    threads: int = 1,
    backend: VisionBackend = VisionBackend.AUTO,
    **told: Any,
) -> tuple[VisionWorker, Connection]:
    """A worker, and the other end of its connection."""
    ours, theirs = Pipe()
    config = VisionConfig(dtype=VisionDtype.FP32, backend=backend)
    spec = VisionSpec(str(bundle.folder), bundle.id, config, threads, patch_budget, **told)
    return VisionWorker(spec, theirs), ours


def images(bundle: Bundle) -> list[Patches]:
    return [image(bundle.geometry.vision, grid, index) for index, grid in enumerate(SIDES)]


class FakeEncoder:
    """Features without a tower; remembers the indices of each call and the lanes it was told.

    Args:
        during: what is done in each call, with the indices of its images.
    """

    def __init__(self, during: Callable[[list[int]], object] = lambda _indices: None) -> None:
        self.calls: list[tuple[list[int], int]] = []
        self._during = during

    def encode(self, batch: Sequence[Patches], lanes: int = 1) -> list[Features]:
        indices = [one.index for one in batch]
        self.calls.append((indices, lanes))
        self._during(indices)
        nothing = np.zeros((1, 1, 1), np.float32)
        return [Features(index, nothing[0], nothing, (1, 1), 1, 1, "", 0.0, 1.0) for index in indices]


def serve(worker: VisionWorker, encoder: FakeEncoder, inbox: EndlessInbox) -> None:
    worker._encoder = encoder

    def run() -> None:
        with suppress(BrokenPipeError):  # the test has seen enough
            worker.run(inbox)  # type: ignore[arg-type]

    threading.Thread(target=run, daemon=True).start()


def row(index: int) -> Request:
    """A row whose image no other has."""
    return asked(index, Bytes(encoded((index % 250, index // 250, 7))))


def asked(index: int, image: ImageRef | None = None) -> Request:
    return request_of(ImageRow(index, f"row-{index}", "s", index, image))


def received(ours: Connection, rows: int) -> list[object]:
    """All messages up to the answer of the last of so many rows."""
    messages: list[object] = []
    while sum(not isinstance(message, StageTime) for message in messages) < rows:
        assert ours.poll(PATIENCE_S), "the worker has gone silent"
        messages.append(ours.recv())
    return messages


def answers(ours: Connection, rows: int) -> list[int]:
    return [message.index for message in received(ours, rows) if not isinstance(message, StageTime)]  # type: ignore[attr-defined]


def taken(worker: VisionWorker) -> list[list[int]]:
    """The batches that lanes make of what is loaded."""
    batches = []
    while worker._loaded:
        batches.append([one.index for one in worker._next_batch()])
    return batches


@pytest.mark.parametrize(("threads", "lanes"), [(1, 1), (2, 2), (4, 4), (5, 4), (64, 4)])
def test_a_lane_for_each_thread_up_to_four(threads: int, lanes: int) -> None:
    assert lane_count(threads) == lanes


@pytest.mark.parametrize(
    ("patch_budget", "threads", "batches"),
    [
        (68, 1, [[0, 1], [2, 3], [4], [5]]),
        (1, 1, [[0], [1], [2], [3], [4], [5]]),
        (10_000, 1, [[0, 1, 2, 3, 4, 5]]),
        (10_000, 2, [[0, 1, 2], [3, 4], [5]]),  # half of what is there, each time
        (10_000, 4, [[0, 1], [2], [3], [4], [5]]),
        (80, 2, [[0, 1], [2], [3], [4], [5]]),  # up to 40 patches
        (1, 2, [[0], [1], [2], [3], [4], [5]]),
    ],
)
def test_a_lane_takes_its_share_of_images_and_budget_in_order(
    tiny_bundle_fp32: Bundle, patch_budget: int, threads: int, batches: list[list[int]]
) -> None:
    worker, _ours = make_worker(tiny_bundle_fp32, patch_budget, threads=threads)
    worker._loaded.extend(images(tiny_bundle_fp32))
    assert taken(worker) == batches


def test_a_pass_is_no_larger_than_pays(tiny_bundle_fp32: Bundle) -> None:
    worker, _ours = make_worker(tiny_bundle_fp32, 1_000_000)
    worker._loaded.extend(image(tiny_bundle_fp32.geometry.vision, (16, 16), index) for index in range(5))
    assert taken(worker) == [[0, 1, 2, 3], [4]]


def test_two_lanes_work_side_by_side(tiny_bundle_fp32: Bundle) -> None:
    met = threading.Barrier(2, timeout=PATIENCE_S)  # breaks, and the rows fail, unless two lanes are inside at once
    worker, ours = make_worker(tiny_bundle_fp32, 1, threads=2)
    serve(worker, FakeEncoder(lambda _indices: met.wait()), EndlessInbox(*map(row, range(4))))
    found = received(ours, 4)
    assert sorted(message.index for message in found if isinstance(message, Features)) == [0, 1, 2, 3]


def test_no_lane_waits_for_the_end_of_the_others_batch(tiny_bundle_fp32: Bundle) -> None:
    over = threading.Event()

    def linger(indices: list[int]) -> None:
        if 0 in indices:
            assert over.wait(PATIENCE_S)

    worker, ours = make_worker(tiny_bundle_fp32, 1, threads=2)
    serve(worker, FakeEncoder(linger), EndlessInbox(*map(row, range(8))))
    assert sorted(answers(ours, 7)) == [1, 2, 3, 4, 5, 6, 7]
    over.set()
    assert answers(ours, 1) == [0]


def test_a_lane_that_hangs_is_noticed_while_the_other_goes_on(tiny_bundle_fp32: Bundle) -> None:
    timeout_s = 1.0
    worker, ours = make_worker(tiny_bundle_fp32, 1, threads=2)
    inbox = EndlessInbox()
    spec = VisionSpec("", "", VisionConfig(), 2, 1)
    stand_in: Any = SimpleNamespace(send=inbox.put)
    supervisor = WorkerSupervisor("vision", spec, timeout_s, lambda _name, _spec: stand_in)
    supervisor.start()
    supervisor.ready()
    serve(worker, FakeEncoder(lambda indices: 0 in indices and threading.Event().wait()), inbox)
    index, began_s, answered_s = 0, time.monotonic(), 0.0
    while not supervisor.is_hung():
        assert time.monotonic() < began_s + PATIENCE_S
        while supervisor.rows < 4:
            supervisor.give(row(index))
            index += 1
        while ours.poll(0.01):
            message = ours.recv()
            supervisor.heard(message)
            if not isinstance(message, StageTime):
                supervisor.answered(message.index)
                answered_s = time.monotonic()
                break
    assert index > 10
    assert 0 in supervisor.assigned
    assert answered_s > began_s + timeout_s / 2, "the other lane went on"


def test_every_image_is_encoded_once(tiny_bundle_fp32: Bundle) -> None:
    rows = 400
    encoder = FakeEncoder()
    worker, ours = make_worker(tiny_bundle_fp32, 4096, threads=4)
    serve(worker, encoder, EndlessInbox(*map(row, range(rows))))
    assert sorted(answers(ours, rows)) == list(range(rows))
    assert sorted(index for indices, _lanes in encoder.calls for index in indices) == list(range(rows))


def test_an_image_alone_gets_all_threads(tiny_bundle_fp32: Bundle) -> None:
    """And with others about, read or not, its lane's share of them."""
    over = threading.Event()
    encoder = FakeEncoder(lambda indices: 1 in indices and over.wait(PATIENCE_S))
    worker, ours = make_worker(tiny_bundle_fp32, 1, threads=2)
    inbox = EndlessInbox(row(0))
    serve(worker, encoder, inbox)
    assert answers(ours, 1) == [0]
    inbox.put(row(1))
    while len(encoder.calls) < 2:
        threading.Event().wait(0.01)
    inbox.put(row(2))
    assert answers(ours, 1) == [2]
    over.set()
    assert answers(ours, 1) == [1]
    inbox.put(asked(3, Bytes(b"")))
    assert answers(ours, 1) == [3]
    inbox.put(row(4))
    assert answers(ours, 1) == [4]
    assert encoder.calls == [([0], 1), ([1], 1), ([2], 2), ([4], 1)]


def test_an_image_is_not_alone_while_another_is_read(tiny_bundle_fp32: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded_first = threading.Event()

    def slow(one: ImageRow) -> EncodedImage:
        assert one.index == 0 or encoded_first.wait(PATIENCE_S)
        return read_image(one)

    monkeypatch.setattr(vision_worker, "read_image", slow)
    encoder = FakeEncoder(lambda _indices: encoded_first.set())
    worker, ours = make_worker(tiny_bundle_fp32, 1, threads=2)
    inbox = EndlessInbox(row(1), row(0))
    serve(worker, encoder, inbox)
    assert answers(ours, 2) == [0, 1]
    assert encoder.calls[0] == ([0], 2)


def test_a_lanes_second_is_its_share_of_the_workers(tiny_bundle_fp32: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100, 8))
    monkeypatch.setattr(vision_worker.time, "perf_counter", lambda: next(clock))
    worker, ours = make_worker(tiny_bundle_fp32, 1, threads=4)
    worker._encoder = FakeEncoder()
    for lanes in (1, 4):
        worker._encode(images(tiny_bundle_fp32)[:2], lanes)
    told = [message for message in received(ours, 4) if isinstance(message, StageTime)]
    assert worker._answered == 4
    assert [one.seconds for one in told if one.stage == "vision"] == [8, 2]
    assert [one.seconds for one in told if one.stage == "read"] == [0.002, 0.002], "readers are not lanes"


def test_the_sign_is_up_until_the_last_lane_is_done(tiny_bundle_fp32: Bundle) -> None:
    sign_file, over = make_sign_file(), {index: threading.Event() for index in range(2)}

    worker, ours = make_worker(tiny_bundle_fp32, 1, threads=2, sign_file=sign_file)
    assert not seen_elsewhere(sign_file)
    encoder = FakeEncoder(lambda indices: over[indices[0]].wait(PATIENCE_S))
    serve(worker, encoder, EndlessInbox(row(0), row(1)))
    while len(encoder.calls) < 2:
        threading.Event().wait(0.01)
    assert seen_elsewhere(sign_file)
    over[0].set()
    assert answers(ours, 1) == [0]
    assert seen_elsewhere(sign_file)
    over[1].set()
    assert answers(ours, 1) == [1]
    ends = time.monotonic() + PATIENCE_S
    while seen_elsewhere(sign_file):
        assert time.monotonic() < ends
    os.close(sign_file)


def test_a_lane_that_can_not_go_on_ends_the_worker(tiny_bundle_fp32: Bundle) -> None:
    class Stop(BaseException):
        """Not an image's fault."""

    def fail(indices: list[int]) -> None:
        if 5 in indices:
            raise Stop

    worker, ours = make_worker(tiny_bundle_fp32, 1, threads=2)
    worker._encoder = FakeEncoder(fail)
    with pytest.raises(Stop):
        worker.run(EndlessInbox(*map(row, range(40))))  # type: ignore[arg-type]
    while ours.poll():
        assert isinstance(ours.recv(), StageTime | Features), "whole messages"
    assert worker._sending.locked(), "nothing comes between the worker's last word and its end"


NO_MEMORY = [
    MemoryError(),
    RuntimeError("std::bad_alloc"),
    RuntimeError("Failed to allocate memory for requested buffer of size 99"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
@pytest.mark.parametrize("stage", ["reading", "encoding"])
def test_lack_of_memory_is_no_rows_fault(
    tiny_bundle_fp32: Bundle, monkeypatch: pytest.MonkeyPatch, stage: str, error: Exception
) -> None:
    def fail(*_given: object) -> None:
        raise error

    worker, ours = make_worker(tiny_bundle_fp32, 10_000)
    worker._encoder = encoder = FakeEncoder(fail)
    if stage == "reading":
        monkeypatch.setattr(vision_worker, "patches_of", fail)
    with pytest.raises(type(error)):
        worker.run(EndlessInbox(row(0)))  # type: ignore[arg-type]
    assert not ours.poll(), "the row has no answer"
    assert len(encoder.calls) == (stage == "encoding")


def test_a_worker_of_less_does_less_at_once(tiny_bundle_fp32: Bundle) -> None:
    pieces = []
    for divisor in (1, 2, 4, 64):
        worker, _ours = make_worker(tiny_bundle_fp32, 1_000_000, threads=4, divisor=divisor)
        pieces.append((worker._lanes, worker._readers, worker._lane_patches))
    assert pieces == [(4, 2, 1024), (2, 1, 512), (1, 1, 256), (1, 1, 16)]


@pytest.mark.parametrize("backend", list(VisionBackend)[:0:-1])
def test_less_at_once_gives_the_same_features(tiny_bundle_fp32: Bundle, backend: VisionBackend) -> None:
    seen = []
    for divisor in (1, 4):
        worker, ours = make_worker(tiny_bundle_fp32, 4096, threads=2, divisor=divisor, backend=backend)
        threading.Thread(target=worker.run, args=(EndlessInbox(*map(row, range(6))),), daemon=True).start()
        found = [message for message in received(ours, 6) if isinstance(message, Features)]
        seen.append([one.embeds.tobytes() for one in sorted(found, key=lambda one: one.index)])
    assert len(seen[0]) == 6
    assert seen[0] == seen[1]


def test_an_inbox_that_fails_ends_the_worker(tiny_bundle_fp32: Bundle) -> None:
    class Broken:
        def get(self) -> object:
            raise MemoryError("no room for a row")

    worker, _ours = make_worker(tiny_bundle_fp32, 1, threads=2)
    with pytest.raises(MemoryError, match="no room for a row"):
        worker.run(Broken())  # type: ignore[arg-type]


def test_the_process_ends_quietly_while_lanes_are_at_work(tiny_bundle_fp32: Bundle) -> None:
    """Python's own end would stop threads inside of native code, which aborts the process with a word on stderr."""
    bundle, (our_end, its_end) = tiny_bundle_fp32, socket.socketpair()
    command = [sys.executable, "-m", "batchcap.engines.worker", str(its_end.fileno())]
    process = subprocess.Popen(command, pass_fds=[its_end.fileno()], stderr=subprocess.PIPE)
    its_end.close()
    ours = Connection(our_end.detach())
    ours.send(VisionSpec(str(bundle.folder), bundle.id, VisionConfig(dtype=VisionDtype.FP32), 2, 4096))
    assert isinstance(ours.recv(), Ready)
    for index in range(60):
        ours.send(asked(index, Bytes(encoded((index, 0, 7), (640, 480)))))
    for _image in range(3):
        answers(ours, 1)
    ours.send_bytes(b"no message")
    messages = [ours.recv()]
    while not isinstance(messages[-1], Fatal):
        messages.append(ours.recv())
    with pytest.raises(EOFError):
        ours.recv()
    _nothing, told = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, told) == (0, b"")


def test_failures_and_duplicates_wait_for_no_lane(tiny_bundle_fp32: Bundle) -> None:
    over = threading.Event()
    worker, ours = make_worker(tiny_bundle_fp32, 10_000)
    first = row(0)
    inbox = EndlessInbox(first)
    encoder = FakeEncoder(lambda _indices: over.wait(PATIENCE_S))
    serve(worker, encoder, inbox)
    while not encoder.calls:
        threading.Event().wait(0.01)
    inbox.put(dataclasses.replace(first, row=dataclasses.replace(first.row, index=1)))
    assert [type(message) for message in received(ours, 1)] == [Duplicate]
    inbox.put(asked(2, Bytes(b"no image")))
    assert [type(message) for message in received(ours, 1)] == [Failure]
    over.set()
    assert answers(ours, 1) == [0]


def test_equal_images_are_decoded_once(tiny_bundle_fp32: Bundle, tmp_path: Path) -> None:
    data = {name: encoded(colour) for name, colour in (("red", (200, 9, 9)), ("blue", (9, 9, 200)))}
    (tmp_path / "red.png").write_bytes(data["red"])
    rows = [
        asked(3, Bytes(data["red"])),
        asked(4, Bytes(data["blue"])),
        asked(5, FileAt(str(tmp_path / "red.png"))),
        asked(6, Bytes(data["red"][:50])),
        asked(7, Bytes(data["red"][:50])),
        asked(8),
        asked(9),
    ]
    worker, ours = make_worker(tiny_bundle_fp32, 10_000)
    for row in rows:
        worker._read(row)
    batch = worker._next_batch()
    assert [one.index for one in batch] == [3, 4]
    passed = [ours.recv() for _row in range(5)]
    assert [(type(one), one.index) for one in passed] == [
        (Duplicate, 5), (Failure, 6), (Duplicate, 7), (Failure, 8), (Failure, 9)
    ]  # fmt: skip
    assert (passed[0].of, passed[2].of) == (3, 6)
    assert passed[0].read_ms >= 0


def test_images_inside_of_a_file_are_read(
    tiny_bundle_fp32: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a kind of input says that the worker does not know: found, planned, read and cut into patches."""
    monkeypatch.setitem(READERS, BlobLists.kind, BlobLists)
    red, blue = encoded((200, 9, 9)), encoded((9, 9, 200))
    write_blobs(tmp_path / "a.offsets", [red, blue, b"no image", red])
    config = InputConfig((str(tmp_path / "a.offsets"),))
    with closing(Journal.open(tmp_path / "journal.sqlite")) as journal:
        plan = Plan(journal, config)
        assert plan.extend(discover(config, tmp_path / "out"), 3, 0) == 4
        rows = [row for shard in plan.shards() for row in plan.shard_rows(shard)]
    worker, ours = make_worker(tiny_bundle_fp32, 10_000)
    for row in rows:
        worker._read(request_of(row))
    digests = [hashlib.sha256(data).hexdigest() for data in (red, blue)]
    assert [(one.index, one.sha256) for one in worker._next_batch()] == list(enumerate(digests))
    failed, twin = ours.recv(), ours.recv()
    assert (failed.index, failed.kind) == (2, ErrorKind.NOT_AN_IMAGE)
    assert (twin.index, twin.of) == (3, 0)


def test_images_of_earlier_runs_are_known(tiny_bundle_fp32: Bundle) -> None:
    red, blue = encoded((200, 9, 9)), encoded((9, 9, 200))
    worker, ours = make_worker(tiny_bundle_fp32, 10_000)
    rows = [asked(7, Bytes(red)), asked(8, Bytes(blue))]
    key = rows[0].caption_key
    assert key is not None
    messages: list[object] = [Captioned(key, [(hashlib.sha256(red).hexdigest(), 2)]), *rows]

    class Hand:
        def get(self) -> object:
            if not messages:
                raise EOFError
            return messages.pop(0)

    with pytest.raises(EOFError):
        worker._dispatch(Hand())  # type: ignore[arg-type]
    while not worker._requests.empty():
        worker._read(worker._requests.get())
    assert [one.index for one in worker._next_batch()] == [8]
    duplicate = ours.recv()
    assert (duplicate.index, duplicate.of) == (7, 2)


def test_nothing_is_a_duplicate_where_draws_differ(tiny_bundle_fp32: Bundle) -> None:
    worker, _ours = make_worker(tiny_bundle_fp32, 10_000)
    for index in range(3):
        one = asked(index, Bytes(encoded((200, 9, 9))))
        worker._read(dataclasses.replace(one, sampling=Sampling(8, temperature=0.5)))
    assert [one.index for one in worker._next_batch()] == [0, 1, 2]


def test_the_images_met_longest_ago_are_forgotten() -> None:
    known = SeenImages(capacity=3)
    names = {name: hashlib.sha256(name.encode()).hexdigest() for name in "abcde"}
    key = "0" * 64
    assert [known.first_row(names[name], key, index) for index, name in enumerate("abcaa")] == [0, 1, 2, 0, 0]
    assert known.first_row(names["d"], key, 5) == 5
    assert known.first_row(names["a"], key, 6) == 0, "met a moment ago"
    assert known.first_row(names["b"], key, 7) == 7, "forgotten"


def test_equal_images_of_which_other_things_are_asked_are_not_equal(tiny_bundle_fp32: Bundle) -> None:
    worker, ours = make_worker(tiny_bundle_fp32, 10_000)
    first = asked(0, Bytes(encoded((200, 9, 9))))
    for index in range(6):
        one = dataclasses.replace(first, row=dataclasses.replace(first.row, index=index))
        if index % 3 == 1:
            one = dataclasses.replace(one, prompts=(Prompt("Where is it?"),))
        elif index % 3 == 2:
            one = dataclasses.replace(one, sampling=Sampling(8))
        worker._read(one)
    assert [one.index for one in worker._next_batch()] == [0, 1, 2]
    assert [(one.index, one.of) for one in received(ours, 3)] == [(3, 0), (4, 1), (5, 2)]  # type: ignore[attr-defined]


def encoded(colour: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_that_can_not_be_encoded_fails_alone(tiny_bundle_fp32: Bundle) -> None:
    worker, ours = make_worker(tiny_bundle_fp32, 10_000)
    batch = images(tiny_bundle_fp32)[:4]
    batch[1].values[3, 5] = np.nan
    worker._encode(batch, 1)
    messages = []
    while ours.poll():
        messages.append(ours.recv())
    found = [message for message in messages if not isinstance(message, StageTime)]
    assert [(type(one), one.index) for one in found] == [(Features, 0), (Failure, 1), (Features, 2), (Features, 3)]
    assert found[1].kind is ErrorKind.INTERNAL
    assert "not finite" in found[1].message


def test_an_encoder_that_can_not_work_ends_the_job_at_its_start(
    tiny_bundle_fp32: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_encoder: VisionEncoder, _batch: list[Patches], _lanes: int = 1) -> list[Features]:
        raise RuntimeError("no kernel for bf16")

    monkeypatch.setattr(VisionEncoder, "encode", fail)
    with pytest.raises(RuntimeError, match="no kernel"):
        make_worker(tiny_bundle_fp32, 10_000)
