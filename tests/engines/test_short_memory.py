"""The engine with a real vision worker whose memory is limited: what is too large for it fails, and nothing else."""

import io
import resource
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from batchcap.config import GenerationConfig, PlacementConfig, VisionBackend, VisionConfig, VisionDtype
from batchcap.core.errors import ErrorKind
from batchcap.core.machine import MIB
from batchcap.core.records import Failure, ImageRow, Outcome, Request
from batchcap.core.sources import Bytes
from batchcap.engines import process
from batchcap.engines.config import EngineConfig
from batchcap.engines.drive import drive
from batchcap.engines.local import LocalEngine
from batchcap.model.bundle import Bundle

PATIENCE_S = 120.0
GENERATION = GenerationConfig()
SPARE_BYTES = 450 * MIB
LARGE_SIDE_PX = 12_000  # 576 MB as Pillow holds it


def encoded(side_px: int, value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L" if side_px == LARGE_SIDE_PX else "RGB", (side_px, side_px), value).save(buffer, "PNG")
    return buffer.getvalue()


def taken_bytes(pid: int) -> int:
    """Address space that a process has taken."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


def test_an_image_too_large_for_the_memory_fails_alone(
    tiny_bundle_fp32: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    limit_bytes: list[int] = []
    made = process._popen

    def limited(command: list[str], socket_fd: int, sign_fd: int | None) -> "subprocess.Popen[bytes]":
        started.append(made(command, socket_fd, sign_fd))
        if limit_bytes:
            resource.prlimit(started[-1].pid, resource.RLIMIT_AS, (limit_bytes[0], limit_bytes[0]))
        return started[-1]

    monkeypatch.setattr(process, "_popen", limited)
    vision = VisionConfig(dtype=VisionDtype.FP32, backend=VisionBackend.ONNX, max_visual_tokens=16)
    placement = PlacementConfig(slots=2, decoder_threads=1, vision_threads=1)
    images = [encoded(LARGE_SIDE_PX if index == 2 else 64, index) for index in range(6)]
    rows = [ImageRow(index, f"row-{index}", "s", index, Bytes(image)) for index, image in enumerate(images)]
    found: dict[int, Outcome] = {}
    engine = LocalEngine(EngineConfig(tiny_bundle_fp32, GENERATION, vision, placement))
    try:
        engine.start(lambda: False)
        vision_pid = started[0].pid
        limit_bytes.append(taken_bytes(vision_pid) + SPARE_BYTES)
        resource.prlimit(vision_pid, resource.RLIMIT_AS, (limit_bytes[0], limit_bytes[0]))
        ends_s = time.monotonic() + PATIENCE_S
        drive(
            engine,
            (Request(row, GENERATION.prompts, GENERATION.sampling) for row in rows),
            lambda outcomes: found.update({outcome.row.index: outcome for outcome in outcomes}),
            lambda: time.monotonic() > ends_s,
        )
    finally:
        engine.close()
    assert sorted(found) == list(range(6))
    failure = found.pop(2).result
    assert all(isinstance(outcome.result, tuple) for outcome in found.values())
    assert isinstance(failure, Failure)
    assert failure.kind is ErrorKind.CRASHED
    assert "MemoryError" in failure.message
    assert "lower --slots" in failure.message
    assert len(started) == 4, "vision, decoder, and a successor after each end"
