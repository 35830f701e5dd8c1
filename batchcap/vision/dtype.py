"""Owns the choice of the vision encoder's backend and arithmetic; light: decided without loading either."""

from importlib.util import find_spec

from batchcap.config import VisionBackend, VisionConfig, VisionDtype
from batchcap.errors import UsageError
from batchcap.machine import cpu_flags

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware; PyTorch's x86 builds have the kernels for it."""
    return bool(BF16_FLAGS & cpu_flags())


def resolve_backend(wanted: VisionBackend) -> VisionBackend:
    """The encoder to use: `auto` is PyTorch where it is installed, else ONNX Runtime.

    Raises:
        UsageError: PyTorch was asked for and is not installed.
    """
    installed = find_spec("torch") is not None
    if wanted is VisionBackend.TORCH and not installed:
        raise UsageError("PyTorch is not installed: install torch, or use --vision-backend onnx")
    if wanted is not VisionBackend.AUTO:
        return wanted
    return VisionBackend.TORCH if installed else VisionBackend.ONNX


def resolve_dtype(config: VisionConfig) -> VisionDtype:
    """The arithmetic to use: `auto` is bf16 in PyTorch where the CPU has it, else fp32.

    Raises:
        UsageError: the backend has no such arithmetic.
    """
    backend = resolve_backend(config.backend)
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
    return resolve_backend(config.backend), resolve_dtype(config)
