"""Owns the choice between the two vision encoders; light, so that a run with ONNX Runtime never loads PyTorch."""

from batchcap.config import VisionBackend, VisionConfig
from batchcap.core.errors import UsageError
from batchcap.model.bundle import Bundle
from batchcap.vision.dtype import resolve_backend
from batchcap.vision.features import Encoder


def load_encoder(bundle: Bundle, config: VisionConfig, threads: int, lanes: int = 1) -> Encoder:
    """The vision encoder that the configuration asks for.

    Args:
        bundle: where geometry and weights come from.
        config: backend and arithmetic.
        threads: threads of the encoder in this process; never changes a feature.
        lanes: the most calls of `encode` at once, at most as many as threads.

    Raises:
        BundleError: the weights are missing, broken, or not of the bundle's geometry.
        UsageError: fewer than one thread, or the backend is not installed.
    """
    if threads < 1:
        raise UsageError(f"the vision encoder needs at least one thread, not {threads}")
    if resolve_backend(config.backend, config.dtype) is VisionBackend.ONNX:
        from batchcap.vision.onnx_encoder import OnnxVisionEncoder  # noqa: PLC0415

        return OnnxVisionEncoder(bundle, config, threads, lanes)
    from batchcap.vision.torch_encoder import VisionEncoder  # noqa: PLC0415

    return VisionEncoder(bundle, config, threads)
