"""Owns the choice of the vision encoder's arithmetic; light, so that the coordinator decides without PyTorch."""

from batchcap.config import VisionDtype
from batchcap.machine import cpu_flags

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware; PyTorch's x86 builds have the kernels for it."""
    return bool(BF16_FLAGS & cpu_flags())


def resolve_dtype(wanted: VisionDtype) -> VisionDtype:
    """The arithmetic to use: `auto` is bf16 where the CPU has it, else fp32."""
    if wanted is not VisionDtype.AUTO:
        return wanted
    return VisionDtype.BF16 if cpu_has_bf16() else VisionDtype.FP32
