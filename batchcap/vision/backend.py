"""Owns the choice between the two vision encoders; light, so that a run with ONNX Runtime never loads PyTorch."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from batchcap.bundle import Bundle
from batchcap.config import VisionBackend, VisionConfig
from batchcap.errors import BundleError, UsageError
from batchcap.records import Features, Float32Array, Patches
from batchcap.vision.dtype import resolve_backend


class Encoder(Protocol):
    """Patches in, features out."""

    @property
    def lanes(self) -> int:
        """Pictures that are encoded side by side: a batch of fewer leaves cores idle."""

    def encode(self, batch: Sequence[Patches]) -> list[Features]:
        """Encode pictures of any sizes.

        Args:
            batch: one or more of them.

        Returns:
            Their features, in the same order. `vision_ms` is the batch's time shared out by patches.

        Raises:
            FloatingPointError: a feature is not finite: no caption of it would mean anything.
        """


def load_encoder(bundle: Bundle, config: VisionConfig, threads: int) -> Encoder:
    """The vision encoder that the configuration asks for.

    Args:
        bundle: where geometry and weights come from.
        config: backend and arithmetic.
        threads: threads of the encoder in this process; never changes a feature.

    Raises:
        BundleError: the weights are missing, broken, or not of the bundle's geometry.
        UsageError: fewer than one thread, or the backend is not installed.
    """
    if threads < 1:
        raise UsageError(f"the vision encoder needs at least one thread, not {threads}")
    if resolve_backend(config.backend) is VisionBackend.ONNX:
        from batchcap.vision.onnx_encoder import OnnxVisionEncoder  # noqa: PLC0415

        return OnnxVisionEncoder(bundle, config, threads)
    from batchcap.vision.encoder import VisionEncoder  # noqa: PLC0415

    return VisionEncoder(bundle, config, threads)


def read_rotary_table(bundle: Bundle) -> Float32Array:
    """The bundle's rotary table [2, positions, a / 4] float32.

    Raises:
        BundleError: it is missing or of another shape.
    """
    try:
        table: Float32Array = np.load(bundle.rotary_table_path)
    except (OSError, ValueError) as error:
        raise BundleError(
            f"the rotary table {bundle.rotary_table_path} can't be read ({error}): export again"
        ) from None
    if table.ndim != 3 or table.shape[::2] != (2, bundle.geometry.vision.head_dim // 4):
        raise BundleError(f"{bundle.rotary_table_path} is of another geometry: export the bundle again")
    return table


def features_of(picture: Patches, array: Float32Array, merge: int, vision_ms: float) -> Features:
    """A picture's record with what the encoder saw.

    Args:
        picture: what was encoded.
        array: [1 + L, T, H] float32, the embeddings and each DeepStack level.
        merge: side of a merge block in patches.
        vision_ms: the picture's share of the encoder's time.

    Raises:
        FloatingPointError: a number is not finite.
    """
    if not np.isfinite(array).all():
        raise FloatingPointError("the vision encoder gave numbers that are not finite")
    return Features(
        index=picture.index,
        embeds=array[0],
        deepstack=array[1:],
        grid=(picture.grid[0] // merge, picture.grid[1] // merge),
        width=picture.width,
        height=picture.height,
        sha256=picture.sha256,
        read_ms=picture.read_ms,
        vision_ms=vision_ms,
    )
