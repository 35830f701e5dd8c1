"""Owns the checks of the vision encoders: features beside the reference's, packed images beside single ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from batchcap.config import VisionBackend, VisionConfig, VisionDtype
from batchcap.core.machine import available_cores
from batchcap.core.records import Features, Float32Array, Patches
from batchcap.export.quality.metrics import relative_error
from batchcap.model.bundle import Bundle
from batchcap.verify.table import Row
from batchcap.vision.backend import load_encoder
from batchcap.vision.dtype import cpu_has_bf16

PACK = 4  # images a pass


@dataclass(frozen=True, slots=True)
class EncoderCheck:
    """One way to run the encoder, and how far its features may be from the reference.

    Attributes:
        backend: what runs it.
        dtype: arithmetic.
        tolerance: largest error of a feature, as a part of the level's largest feature of that image.
    """

    backend: VisionBackend
    dtype: VisionDtype
    tolerance: float

    @property
    def name(self) -> str:
        """For a person."""
        return f"{self.backend} {self.dtype}"


EXACT = EncoderCheck(VisionBackend.TORCH, VisionDtype.FP32, 1e-4)
ENCODERS = (
    EXACT,
    EncoderCheck(VisionBackend.TORCH, VisionDtype.BF16, 0.1),
    EncoderCheck(VisionBackend.ONNX, VisionDtype.FP32, 1e-4),
    EncoderCheck(VisionBackend.ONNX, VisionDtype.INT8, 0.3),
)


def runs_here(check: EncoderCheck) -> bool:
    """Whether an encoder is worth a look: bf16 without hardware for it takes minutes an image, and no job uses it."""
    return check.dtype is not VisionDtype.BF16 or cpu_has_bf16()


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """What one encoder makes of the images, and how many differ when they are packed."""

    features: list[Features]
    packed_differences: int


def encode_images(bundle: Bundle, check: EncoderCheck, images: Sequence[Patches]) -> EncodedImages:
    """Encode images alone, then several in a pass.

    Raises:
        BundleError: the encoder's files are missing or broken.
    """
    encoder = load_encoder(bundle, VisionConfig(dtype=check.dtype, backend=check.backend), available_cores())
    progress = tqdm(images, desc=f"vision, {check.name}", unit="image", disable=None, leave=False)
    alone = [encoder.encode([image])[0] for image in progress]
    packs = [images[start : start + PACK] for start in range(0, len(images), PACK)]
    packed = [features for pack in packs for features in encoder.encode(pack)]
    different = sum(
        not (np.array_equal(one.embeds, many.embeds) and np.array_equal(one.deepstack, many.deepstack))
        for one, many in zip(alone, packed, strict=True)
    )
    return EncodedImages(alone, different)


def check_features(
    check: EncoderCheck, found: EncodedImages, expected: Sequence[Features], names: Sequence[str]
) -> Iterator[Row]:
    """Compare features with the reference's: a row for the embeddings, one a DeepStack level, one for packing."""
    levels = len(expected[0].deepstack)
    for level, part in enumerate(("embeddings", *(f"DeepStack level {level}" for level in range(levels)))):
        errors = [
            relative_error(_part(reference, level), _part(features, level))
            for reference, features in zip(expected, found.features, strict=True)
        ]
        worst = int(np.argmax(errors))
        check_name = f"vision {check.name}, {part}"
        yield Row(check_name, errors[worst], check.tolerance, unit="of the largest", worst=names[worst])
    yield Row(f"vision {check.name}, packed against alone", found.packed_differences, 0, unit="images")


def _part(features: Features, level: int) -> Float32Array:
    """The embeddings, then the DeepStack levels."""
    part: Float32Array = features.deepstack[level - 1] if level else features.embeds
    return part
