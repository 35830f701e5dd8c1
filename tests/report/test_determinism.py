"""The check that captions are the same everywhere: it finds what breaks the promise, and nothing here does."""

from dataclasses import replace

import pytest

from batchcap.config import InputConfig, JobConfig, PlacementConfig, VisionBackend, VisionConfig, VisionDtype
from batchcap.core.records import Features, Patches
from batchcap.model.bundle import Bundle
from batchcap.report import determinism
from batchcap.report.determinism import check_determinism
from batchcap.vision import backend

ENCODERS = [
    (VisionBackend.TORCH, VisionDtype.FP32),
    (VisionBackend.TORCH, VisionDtype.BF16),
    (VisionBackend.ONNX, VisionDtype.FP32),
    (VisionBackend.ONNX, VisionDtype.INT8),
]


def job(
    backend: VisionBackend = VisionBackend.ONNX, dtype: VisionDtype = VisionDtype.FP32, slots: int = 16
) -> JobConfig:
    return JobConfig(
        InputConfig(("p",)),
        "o",
        placement=PlacementConfig(slots=slots),
        vision=VisionConfig(256, dtype, backend=backend),
    )


@pytest.mark.parametrize("name", ["tiny_bundle_int4", "tiny_bundle_int8", "tiny_bundle_fp32", "tiny_bundle_w8a8"])
def test_every_precision_keeps_it(name: str, request: pytest.FixtureRequest) -> None:
    found = check_determinism(request.getfixturevalue(name), job(slots=48))
    assert found.problems == []
    assert "equal in batches of 1 to 48" in found.facts["decoder"]


@pytest.mark.parametrize(("backend", "dtype"), ENCODERS)
def test_every_encoder_keeps_it(tiny_bundle_int4: Bundle, backend: VisionBackend, dtype: VisionDtype) -> None:
    found = check_determinism(tiny_bundle_int4, job(backend, dtype))
    assert found.problems == []
    assert "equal for images alone and together" in found.facts["vision"]


class SeesNeighbours:
    """An encoder whose features know how many images were in the pass."""

    def __init__(self, bundle: Bundle, config: VisionConfig, threads: int, lanes: int) -> None:
        self._real = backend.load_encoder(bundle, config, threads, lanes)

    def encode(self, batch: list[Patches], lanes: int = 1) -> list[Features]:
        return [replace(one, embeds=one.embeds + len(batch) * 1e-6) for one in self._real.encode(batch, lanes)]


def test_what_breaks_it_is_named(tiny_bundle_int4: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(determinism, "rows_stay_equal", lambda *_: False)
        (problem,) = check_determinism(tiny_bundle_int4, job()).problems
        assert "not batch-invariant on this CPU: decoder rows differ with the size of their batch" in problem
    with monkeypatch.context() as patched:
        bits = iter((b"one", b"other"))
        patched.setattr(determinism, "available_cores", lambda: 2)
        patched.setattr(determinism, "probe", lambda *_: next(bits))
        (problem,) = check_determinism(tiny_bundle_int4, job()).problems
        assert "the decoder differs with its number of threads (with 1 and 2 threads)" in problem
    with monkeypatch.context() as patched:
        patched.setattr(determinism, "a_split_shows", lambda *_: True)
        patched.setattr(determinism, "load_encoder", SeesNeighbours)
        split, beside = check_determinism(tiny_bundle_int4, job()).problems
        assert "prompts differ when they are prefilled in parts" in split
        assert "images differ when they are encoded beside others" in beside
