"""Owns the choices of an export."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from batchcap.errors import UsageError


class Precision(StrEnum):
    """Weights of the decoder."""

    INT4 = "int4"
    INT8 = "int8"
    FP32 = "fp32"

    @property
    def bits(self) -> int:
        """Bits of one weight."""
        return {"int4": 4, "int8": 8, "fp32": 32}[self]


class RoundingAlgorithm(StrEnum):
    """How weights are rounded to few bits, in the model builder's words.

    `default` takes the nearest of all 16 (256) values, `rtn` the nearest of 15 (255) about zero, `k_quant` searches
    each block for the scale and zero point that fit best, as llama.cpp does.
    """

    DEFAULT = "default"
    RTN = "rtn"
    K_QUANT = "k_quant"


# Activations are rounded to 8 bits inside the products: the fast integer kernels of ONNX Runtime's CPU provider.
ACCURACY_LEVEL = 4
BLOCK_SIZES = (32, 64, 128, 256)
MIN_CONTEXT = 64


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What the bundle shall be.

    Attributes:
        precision: weights of the decoder.
        block_size: weights that share one scale; larger is faster and smaller, less exact.
        algorithm: how weights are rounded.
        context: positions of the decoder: longest prompt and caption together, in tokens.
    """

    precision: Precision = Precision.INT4
    block_size: int = 128
    algorithm: RoundingAlgorithm = RoundingAlgorithm.RTN
    context: int = 4096

    def __post_init__(self) -> None:
        if self.block_size not in BLOCK_SIZES:
            raise UsageError(f"--block-size must be one of {', '.join(map(str, BLOCK_SIZES))}, not {self.block_size}")
        if self.context < MIN_CONTEXT:
            raise UsageError(f"--context must be at least {MIN_CONTEXT} tokens, not {self.context}")

    def precision_facts(self) -> dict[str, Any]:
        """What `bundle.json` says of the decoder's weights."""
        if self.precision is Precision.FP32:
            return {"bits": 32}
        return {
            "bits": self.precision.bits,
            "block_size": self.block_size,
            "algorithm": str(self.algorithm),
            "accuracy_level": ACCURACY_LEVEL,
        }
