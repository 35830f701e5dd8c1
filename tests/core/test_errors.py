"""Which errors say that memory is lacking, and what a person is told of a file that can't be loaded."""

import errno
import os

import numpy as np
import onnxruntime
import pytest

from batchcap.config import VisionBackend, VisionConfig, VisionDtype
from batchcap.core.errors import BatchcapError, BundleError, OutOfMemoryError, UsageError, lacks_memory, load_error
from batchcap.decoder.session import DecoderSession
from batchcap.model.bundle import Bundle
from batchcap.vision.backend import load_encoder

NO_MEMORY = [
    MemoryError(),
    np._core._exceptions._ArrayMemoryError((1, 2), np.dtype(np.float32)),  # type: ignore[attr-defined]
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    RuntimeError("std::bad_alloc"),
    RuntimeError("bad allocation"),
    RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : ... Failed to allocate memory for requested buffer"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes. Error code 12"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"
    ),
    RuntimeError("could not create a memory object: out of memory"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_lack_of_memory_is_known(error: Exception) -> None:
    assert lacks_memory(error)
    assert isinstance(load_error("it can't be loaded", error), OutOfMemoryError)
    assert lacks_memory(load_error("it can't be loaded", error))


@pytest.mark.parametrize(
    "error", [ValueError("/srv/allocations/7.jpg is cut"), OSError(errno.ENOSPC, "No space left"), RuntimeError("odd")]
)
def test_other_errors_are_not_lack_of_memory(error: Exception) -> None:
    assert not lacks_memory(error)
    assert isinstance(load_error("it can't be loaded", error), BundleError)


@pytest.mark.parametrize(
    ("cause", "kind", "advice"),
    [
        ("Secure canonicalization requires procfs at /proc/self/fd/6", UsageError, "mount /proc"),
        ("std::bad_alloc", OutOfMemoryError, "end other programs"),
        ("Protobuf parsing failed", BundleError, "export the bundle again"),
    ],
)
def test_graphs_that_can_not_be_loaded(
    tiny_bundle_fp32: Bundle, monkeypatch: pytest.MonkeyPatch, cause: str, kind: type[BatchcapError], advice: str
) -> None:
    def fail(*_given: object, **_named: object) -> None:
        raise RuntimeError(cause)

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(kind, match=advice):
        DecoderSession(tiny_bundle_fp32.decoder_path, tiny_bundle_fp32.geometry, 1)
    with pytest.raises(kind, match=advice):
        load_encoder(tiny_bundle_fp32, VisionConfig(dtype=VisionDtype.FP32, backend=VisionBackend.ONNX), 1)
