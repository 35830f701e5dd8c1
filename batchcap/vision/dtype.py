"""Owns the choice of the vision encoder's backend and arithmetic; light: decided without loading either."""

from importlib.util import find_spec

from batchcap.config import VisionBackend, VisionConfig, VisionDtype
from batchcap.core.errors import UsageError
from batchcap.core.machine import cpu_flags

# Arithmetic that only one backend has, so that asking for it asks for the backend.
ONLY_BACKEND = {VisionDtype.BF16: VisionBackend.TORCH, VisionDtype.INT8: VisionBackend.ONNX}
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware; PyTorch's x86 builds have the kernels for it."""
    return bool(BF16_FLAGS & cpu_flags())


def resolve_backend(wanted: VisionBackend, dtype: VisionDtype = VisionDtype.AUTO) -> VisionBackend:
    """The encoder to use: `auto` is the one that has the arithmetic, else PyTorch where it is installed.

    Raises:
        UsageError: PyTorch was asked for, or bf16, and it is not installed.
    """
    installed = find_spec("torch") is not None
    chosen = ONLY_BACKEND.get(dtype, wanted) if wanted is VisionBackend.AUTO else wanted
    if chosen is VisionBackend.TORCH and not installed:
        instead = "--vision-backend onnx" if wanted is VisionBackend.TORCH else f"another --vision-dtype than {dtype}"
        raise UsageError(f"PyTorch is not installed: install torch, or use {instead}")
    if chosen is not VisionBackend.AUTO:
        return chosen
    return VisionBackend.TORCH if installed else VisionBackend.ONNX


def resolve_dtype(config: VisionConfig) -> VisionDtype:
    """The arithmetic to use: `auto` is bf16 in PyTorch where the CPU has it, else fp32.

    Raises:
        UsageError: the backend has no such arithmetic.
    """
    backend = resolve_backend(config.backend, config.dtype)
    known = {
        VisionBackend.TORCH: (VisionDtype.BF16, VisionDtype.FP32),
        VisionBackend.ONNX: (VisionDtype.FP32, VisionDtype.INT8),
    }[backend]
    if config.dtype is VisionDtype.AUTO:
        return VisionDtype.BF16 if backend is VisionBackend.TORCH and cpu_has_bf16() else VisionDtype.FP32
    if config.dtype not in known:
        raise UsageError(
            f"--vision-backend {backend} computes in {' or '.join(known)}, not in {config.dtype}: "
            "change --vision-dtype or --vision-backend"
        )
    return config.dtype


def resolve_encoder(config: VisionConfig) -> tuple[VisionBackend, VisionDtype]:
    """Backend and arithmetic to use.

    Raises:
        UsageError: they are not installed, or do not go together.
    """
    return resolve_backend(config.backend, config.dtype), resolve_dtype(config)
