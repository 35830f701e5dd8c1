"""The encoder's arithmetic follows the CPU, and deciding it loads no model library."""

import subprocess
import sys

import pytest

from batchcap.config import VisionDtype
from batchcap.vision import dtype as dtype_module
from batchcap.vision.dtype import cpu_has_bf16, resolve_dtype


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
    assert resolve_dtype(VisionDtype.AUTO) is dtype
    assert cpu_has_bf16() is (dtype is VisionDtype.BF16)
    for asked in (VisionDtype.BF16, VisionDtype.FP32):
        assert resolve_dtype(asked) is asked


def test_the_coordinator_loads_no_model_library() -> None:
    code = "import sys, batchcap.job; print(sorted({'torch', 'transformers', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
