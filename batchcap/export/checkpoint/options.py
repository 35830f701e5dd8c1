"""Owns the choices of an export."""

from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from typing import Any

from batchcap.config import DEFAULT_PROMPT
from batchcap.core.setting import Form, require_sense, setting
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
# Images that an export or a verification looks at, where there are more.
MAX_IMAGES = 24
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


def _block_size_fault(block_size: int) -> str:
    if block_size in BLOCK_SIZES:
        return ""
    return f"must be one of {', '.join(map(str, BLOCK_SIZES))}, not {block_size}"


def _context_fault(context: int) -> str:
    return f"must be at least {MIN_CONTEXT} tokens, not {context}" if context < MIN_CONTEXT else ""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What the bundle shall be; see the help of each setting."""

    precision: Precision = setting(
        Precision.INT4,
        "Weights of the decoder: int4 is small and fast, int8 closer to the original, fp32 exact and large; "
        "w8a8 rounds what the weights are multiplied with, too: twice as large as int4, fastest for many captions "
        "at once.",
    )
    block_size: int = setting(
        128,
        "Weights that share one scale: 32, 64, 128 or 256; fewer is closer and slower.",
        check=_block_size_fault,
    )
    algorithm: RoundingAlgorithm = setting(
        RoundingAlgorithm.RTN,
        "How weights are rounded: rtn, nearest of the values about zero; default, nearest of all values; "
        "k_quant, with the best scale of each block.",
    )
    int8_matrices: Int8Matrices = setting(
        Int8Matrices.NONE,
        "Matrices of an int4 decoder that keep 8 bits: head, the one that gives the words; sensitive, some of "
        "the layers' too.",
    )
    context: int = setting(4096, "Longest prompt and caption together, in tokens.", check=_context_fault)

    def __post_init__(self) -> None:
        require_sense(self)

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


@dataclass(frozen=True, slots=True)
class FitOptions:
    """By which images the rounding is fitted, if by any; see the help of each setting."""

    calibrate: tuple[str, ...] = setting(
        (),
        "Images to calibrate by (folder, files, tables; repeat the option for more): weights are scaled so "
        "that those which matter for such images are rounded in finer steps (AWQ). Takes minutes.",
        form=Form.REPEATED,
    )
    auto: bool = setting(
        False,
        "Choose precision, block size, rounding and scaling by measurement: the fastest decoder that stays "
        "within --max-kl of the checkpoint on the images of --calibrate, or on some that come with batchcap.",
        flags=("--auto",),
    )
    max_kl: float = setting(
        DEFAULT_MAX_KL,
        "With --auto, the mean Kullback-Leibler divergence of the next token from the checkpoint's that is "
        "allowed, in nats.",
    )
    prompt: str = setting(DEFAULT_PROMPT, "What will be asked about each image; for --calibrate and --auto.")


def keeps_8_bits(matrix: str, layers: int, int8_matrices: Int8Matrices) -> bool:
    """Whether a matrix of an int4 decoder has 8 bits."""
    if int8_matrices is Int8Matrices.NONE:
        return False
    return matrix == HEAD or (int8_matrices is Int8Matrices.SENSITIVE and in_sensitive_place(matrix, layers))


def missing_packages() -> str:
    """The packages that an export needs and that are not installed, as text; captioning does without them."""
    modules = {"torch": "torch", "transformers": "transformers", "onnxruntime_genai": "onnxruntime-genai"}
    return ", ".join(package for module, package in modules.items() if find_spec(module) is None)
