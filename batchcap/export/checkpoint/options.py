"""Owns the choices of an export."""

from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from typing import Any

from batchcap.core.errors import UsageError
from batchcap.export.checkpoint.matrix_names import HEAD, in_sensitive_place


class Precision(StrEnum):
    """Numbers of the decoder's products: weights of 4 or 8 bits in blocks, products of 8-bit integers, or float32."""

    INT4 = "int4"
    INT8 = "int8"
    W8A8 = "w8a8"
    FP32 = "fp32"

    @property
    def bits(self) -> int:
        """Bits of one weight."""
        return {"int4": 4, "int8": 8, "w8a8": BY_ROWS.bits, "fp32": 32}[self]


class RoundingAlgorithm(StrEnum):
    """How weights are rounded to few bits, in the model builder's words.

    `default` takes the nearest of all 16 (256) values, `rtn` the nearest of 15 (255) about zero, `k_quant` searches
    each block for the scale and zero point that fit best, as llama.cpp does.
    """

    DEFAULT = "default"
    RTN = "rtn"
    K_QUANT = "k_quant"


class Int8Matrices(StrEnum):
    """Which matrices of an int4 decoder keep 8 bits.

    `head` is the matrix that gives the logits, `sensitive` the head and those that the model builder's `mixed_layers`
    names: values and the MLP's last product in the first eighth, the last eighth and every third layer between.
    """

    NONE = "none"
    HEAD = "head"
    SENSITIVE = "sensitive"


# Activations are rounded to 8 bits inside the products: the fast integer kernels of ONNX Runtime's CPU provider.
ACCURACY_LEVEL = 4
BLOCK_SIZES = (32, 64, 128, 256)
WHOLE_ROW = 0  # in the place of a block size
MIN_CONTEXT = 64
# Nats, the mean over tokens: two distributions so near give any token probabilities that differ by at most 0.07
# (Pinsker's inequality).
DEFAULT_MAX_KL = 0.01


@dataclass(frozen=True, slots=True)
class Rounding:
    """How one matrix is rounded.

    Attributes:
        bits: of one weight.
        block_size: weights that share a scale; `WHOLE_ROW`: all of an output.
        algorithm: which value a weight becomes.
    """

    bits: int
    block_size: int
    algorithm: RoundingAlgorithm


# Of products of integers: why seven bits, `batchcap.export.graph.int8_matmul` tells.
BY_ROWS = Rounding(bits=7, block_size=WHOLE_ROW, algorithm=RoundingAlgorithm.RTN)


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What the bundle shall be.

    Attributes:
        precision: weights of the decoder.
        block_size: weights that share one scale; larger is faster and smaller, less exact.
        algorithm: how weights are rounded.
        int8_matrices: which matrices of an int4 decoder keep 8 bits.
        context: positions of the decoder: longest prompt and caption together, in tokens.
    """

    precision: Precision = Precision.INT4
    block_size: int = 128
    algorithm: RoundingAlgorithm = RoundingAlgorithm.RTN
    int8_matrices: Int8Matrices = Int8Matrices.NONE
    context: int = 4096

    def __post_init__(self) -> None:
        if self.block_size not in BLOCK_SIZES:
            raise UsageError(f"--block-size must be one of {', '.join(map(str, BLOCK_SIZES))}, not {self.block_size}")
        if self.context < MIN_CONTEXT:
            raise UsageError(f"--context must be at least {MIN_CONTEXT} tokens, not {self.context}")

    def rounding(self, matrix: str, layers: int) -> Rounding:
        """How a matrix is rounded.

        Args:
            matrix: its name, as `matrix_name` gives it.
            layers: decoder layers of the model.
        """
        if self.precision is Precision.W8A8:
            return BY_ROWS
        wide = self.precision is Precision.INT4 and keeps_8_bits(matrix, layers, self.int8_matrices)
        return Rounding(8 if wide else self.precision.bits, self.block_size, self.algorithm)

    def precision_facts(self) -> dict[str, Any]:
        """What `bundle.json` says of the decoder's weights."""
        if self.precision is Precision.FP32:
            return {"bits": 32}
        if self.precision is Precision.W8A8:
            return {"bits": BY_ROWS.bits, "activation_bits": 8, "algorithm": str(BY_ROWS.algorithm)}
        mixed = {"int8_matrices": str(self.int8_matrices)} if self.precision is Precision.INT4 else {}
        return {
            "bits": self.precision.bits,
            "block_size": self.block_size,
            "algorithm": str(self.algorithm),
            **mixed,
            "accuracy_level": ACCURACY_LEVEL,
        }


def keeps_8_bits(matrix: str, layers: int, int8_matrices: Int8Matrices) -> bool:
    """Whether a matrix of an int4 decoder has 8 bits."""
    if int8_matrices is Int8Matrices.NONE:
        return False
    return matrix == HEAD or (int8_matrices is Int8Matrices.SENSITIVE and in_sensitive_place(matrix, layers))


def missing_packages() -> str:
    """The packages that an export needs and that are not installed, as text; captioning does without them."""
    modules = {"torch": "torch", "transformers": "transformers", "onnxruntime_genai": "onnxruntime-genai"}
    return ", ".join(package for module, package in modules.items() if find_spec(module) is None)
