"""The encoder's backend and arithmetic follow the machine, and deciding them loads no model library."""

import subprocess
import sys

import pytest

from batchcap.config import VisionBackend, VisionConfig, VisionDtype
from batchcap.core.errors import UsageError
from batchcap.vision import dtype as dtype_module
from batchcap.vision.dtype import cpu_has_bf16, resolve_backend, resolve_dtype, resolve_encoder

TORCH, ONNX = VisionBackend.TORCH, VisionBackend.ONNX


def config(backend: VisionBackend, dtype: VisionDtype = VisionDtype.AUTO) -> VisionConfig:
    return VisionConfig(dtype=dtype, backend=backend)


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtype_module, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ({"avx512_bf16"}, VisionDtype.BF16),
        ({"amx_bf16", "avx2"}, VisionDtype.BF16),
        ({"avx512f"}, VisionDtype.FP32),
        (set(), VisionDtype.FP32),
    ],
)
def test_auto_follows_the_cpu(monkeypatch: pytest.MonkeyPatch, flags: set[str], dtype: VisionDtype) -> None:
    monkeypatch.setattr(dtype_module, "cpu_flags", lambda: frozenset(flags))
    assert resolve_dtype(config(TORCH)) is dtype
    assert resolve_dtype(config(ONNX)) is VisionDtype.FP32
    assert cpu_has_bf16() is (dtype is VisionDtype.BF16)
    for asked in (VisionDtype.BF16, VisionDtype.FP32):
        assert resolve_dtype(config(TORCH, asked)) is asked
    for asked in (VisionDtype.INT8, VisionDtype.FP32):
        assert resolve_dtype(config(ONNX, asked)) is asked


def test_arithmetic_that_a_backend_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="--vision-backend torch computes in bf16 or fp32, not in int8"):
        resolve_dtype(config(TORCH, VisionDtype.INT8))
    with pytest.raises(UsageError, match="--vision-backend onnx computes in fp32 or int8, not in bf16"):
        resolve_dtype(config(ONNX, VisionDtype.BF16))


def test_arithmetic_of_one_backend_implies_it() -> None:
    assert resolve_encoder(config(VisionBackend.AUTO, VisionDtype.INT8)) == (ONNX, VisionDtype.INT8)
    assert resolve_encoder(config(VisionBackend.AUTO, VisionDtype.BF16)) == (TORCH, VisionDtype.BF16)
    assert resolve_encoder(config(VisionBackend.AUTO, VisionDtype.FP32)) == (TORCH, VisionDtype.FP32)


@pytest.mark.usefixtures("without_torch")
def test_without_torch_int8_works_and_bf16_says_what_it_needs() -> None:
    assert resolve_encoder(config(VisionBackend.AUTO, VisionDtype.INT8)) == (ONNX, VisionDtype.INT8)
    assert resolve_encoder(config(VisionBackend.AUTO, VisionDtype.FP32)) == (ONNX, VisionDtype.FP32)
    with pytest.raises(
        UsageError, match="PyTorch is not installed: install torch, or use another --vision-dtype than bf"
    ):
        resolve_encoder(config(VisionBackend.AUTO, VisionDtype.BF16))


def test_auto_is_torch_where_it_is_installed() -> None:
    assert [resolve_backend(one) for one in VisionBackend] == [TORCH, TORCH, ONNX]


@pytest.mark.usefixtures("without_torch")
def test_auto_is_onnx_elsewhere() -> None:
    assert resolve_backend(VisionBackend.AUTO) is ONNX
    with pytest.raises(UsageError, match=r"PyTorch is not installed.*--vision-backend onnx"):
        resolve_backend(TORCH)


def test_the_coordinator_loads_no_model_library() -> None:
    code = "import sys, batchcap.job.run; print(sorted({'torch', 'transformers', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
