"""Owns what both vision encoders share: the interface, the rotary table they read, and the features they give."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from batchcap.core.errors import BundleError
from batchcap.core.records import Features, Float32Array, Patches
from batchcap.model.bundle import Bundle


class Encoder(Protocol):
    """Patches in, features out."""

    def encode(self, batch: Sequence[Patches], lanes: int = 1) -> list[Features]:
        """Encode images of any sizes in the calling thread and its share of the encoder's; for several threads.

        Args:
            batch: one or more of them.
            lanes: calls that the encoder's threads are shared by, this one among them; never changes a feature.

        Returns:
            Their features, in the same order. `vision_ms` is this lane's share of the time, shared out by patches.

        Raises:
            FloatingPointError: a feature is not finite: no caption of it would mean anything.
        """


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
        raise BundleError(f"{bundle.rotary_table_path} does not fit the bundle's geometry: export the bundle again")
    return table


def features_of(
    batch: Sequence[Patches], arrays: Sequence[Float32Array], merge: int, vision_ms: float
) -> list[Features]:
    """The records of images with what the encoder saw.

    Args:
        batch: what was encoded.
        arrays: [1 + L, T, H] float32 of each image, the embeddings and each DeepStack level.
        merge: side of a merge block in patches.
        vision_ms: the encoder's time for the batch, which is shared out by patches.

    Raises:
        FloatingPointError: a number is not finite.
    """
    ms_per_patch = vision_ms / sum(len(image.values) for image in batch)
    return [
        _record(image, array, merge, ms_per_patch * len(image.values))
        for image, array in zip(batch, arrays, strict=True)
    ]


def _record(image: Patches, array: Float32Array, merge: int, vision_ms: float) -> Features:
    if not np.isfinite(array).all():
        raise FloatingPointError("the vision encoder gave numbers that are not finite")
    return Features(
        index=image.index,
        embeds=array[0],
        deepstack=array[1:],
        grid=(image.grid[0] // merge, image.grid[1] // merge),
        width=image.width,
        height=image.height,
        sha256=image.sha256,
        read_ms=image.read_ms,
        vision_ms=vision_ms,
    )
