"""Owns matrices that a checkpoint holds in few bits already, by GPTQ or AWQ: read as stored, never rounded again.

Layouts, for a matrix of N outputs and K inputs, g inputs to a group, all integers packed into int32, lowest bits first
(read like ONNX Runtime GenAI's model builder reads them, models/loaders/gptq.py and awq.py):

* GPTQ: `qweight` [K · bits / 32, N] packed along K; `scales` [K / g, N]; `qzeros` [K / g, N · bits / 32] of zero points
  less 1; `g_idx` [K], the group of each input.
* AWQ: `qweight` [K, N / 8] and `qzeros` [K / g, N / 8], 4 bits, eight outputs in the order 0 2 4 6 1 3 5 7; `scales`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchcap.core.errors import CheckpointError, UsageError
from batchcap.core.records import Float32Array
from batchcap.export.checkpoint.inventory import FLOAT_BYTES
from batchcap.export.checkpoint.kinds import PREQUANTIZED
from batchcap.export.checkpoint.options import BLOCK_SIZES, Rounding, RoundingAlgorithm
from batchcap.export.checkpoint.quantize import QuantizedMatrix, UInt8Array, pack
from batchcap.model.tensors import EMBEDDINGS, FLOAT_TYPES, VISION, StoredTensor

METHODS = PREQUANTIZED
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_WORD_BITS = 32
_NOT_QUANTIZED = "take the checkpoint that it was made from"


@dataclass(frozen=True, slots=True)
class _Scheme:
    """How all matrices of a checkpoint are packed."""

    method: str
    bits: int
    group_size: int


@dataclass(frozen=True, slots=True)
class PackedMatrix(StoredTensor):
    """A matrix [N, K] in few bits; read by rows it gives the numbers that the bits stand for.

    The fields of a `StoredTensor` say what it would be in floating point, but for `path` and `start` of the bits.

    Attributes:
        scheme: how it is packed.
        qweight: its integers.
        qzeros: its zero points.
        scales: its scales.
    """

    scheme: _Scheme
    qweight: StoredTensor
    qzeros: StoredTensor
    scales: StoredTensor

    @property
    def rounding(self) -> Rounding:
        """Bits and block as stored; the algorithm is not known any more, and not used."""
        return Rounding(self.scheme.bits, self.scheme.group_size, RoundingAlgorithm.DEFAULT)

    def quantized(self) -> QuantizedMatrix:
        """The stored integers, scales and zero points, in the order in which MatMulNBits reads them."""
        bits, (outputs, _inputs) = self.scheme.bits, self.shape
        zeros = _unpacked(_words(self.qzeros), bits)
        if self.scheme.method == "gptq":
            levels = _unpacked(_words(self.qweight).T, bits)  # [N, K]
            zeros = (zeros + np.uint8(1)) & np.uint8((1 << bits) - 1)
        else:
            levels, zeros = _in_order(_unpacked(_words(self.qweight), bits)).T, _in_order(zeros)
        blocks = zeros.shape[0]
        plain = bool((zeros == 1 << bits - 1).all())  # the middle, which needs no telling
        return QuantizedMatrix(
            packed=pack(np.ascontiguousarray(levels).reshape(outputs, blocks, -1), bits),
            scales=np.ascontiguousarray(self.scales.rows(0, blocks).T),
            zero_points=None if plain else pack(np.ascontiguousarray(zeros.T), bits),
            bits=bits,
        )

    def rows(self, start: int, stop: int) -> Float32Array:
        """Rows `start` to `stop` in float32; the whole matrix is unpacked each time."""
        return self.quantized().values(self.shape[1])[start:stop]


def unpack_names(tensors: dict[str, StoredTensor], config: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """A checkpoint's tensors with a `PackedMatrix` called `….weight` for each group of tensors that make one up.

    Raises:
        CheckpointError: it is packed in a way that the model builder does not read, or a part is missing.
    """
    quantization = config.get("quantization_config")
    if not quantization:
        return tensors
    scheme = _scheme(quantization)
    result = {name: tensor for name, tensor in tensors.items() if not name.endswith(("qweight", "qzeros", "scales"))}
    for name, qweight in tensors.items():
        stem = name.removesuffix("qweight")
        if stem == name:
            continue
        for part in ("qzeros", "scales"):
            if stem + part not in tensors:
                raise CheckpointError(f"the checkpoint has no tensor {stem}{part}: copy it again")
        index = result.pop(stem + "g_idx", None)
        result[stem + "weight"] = _matrix(stem, tensors, qweight, scheme)
        if index is not None:
            _require_plain_order(stem, index, scheme)
    return result


def stored_facts(tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """What `bundle.json` says of matrices that keep the checkpoint's own few bits; nothing where there are none."""
    schemes = [tensor.scheme for tensor in tensors.values() if isinstance(tensor, PackedMatrix)]
    if not schemes:
        return {}
    scheme = schemes[0]
    return {"stored": {"method": scheme.method, "bits": scheme.bits, "block_size": scheme.group_size}}


def require_unquantized(tensors: Mapping[str, StoredTensor], what: str) -> None:
    """Refuse what needs the checkpoint's own numbers or a reference in transformers.

    Raises:
        UsageError: the checkpoint is quantized already.
    """
    if any(isinstance(tensor, PackedMatrix) for tensor in tensors.values()):
        raise UsageError(f"{what} needs a checkpoint in BF16, F16 or F32; this one was quantized before")


def _scheme(quantization: Mapping[str, Any]) -> _Scheme:
    method = str(quantization.get("quant_method"))
    bits, group_size = int(quantization.get("bits", 0)), int(quantization.get("group_size", 0))
    layout = quantization.get("version" if method == "awq" else "checkpoint_format", "")
    allowed = {"awq": ("", "gemm"), "gptq": ("", "gptq")}
    problems = {
        f"{bits} bits": bits not in ((4,) if method == "awq" else (4, 8)),
        f"groups of {group_size}": group_size not in BLOCK_SIZES,
        f"the layout {layout}": str(layout).lower() not in allowed.get(method, ()),
        "other bits for some matrices": bool(quantization.get("dynamic")),
    }
    for problem, met in problems.items():
        if met:
            raise CheckpointError(f"the checkpoint was quantized with {method}, {problem}: {_NOT_QUANTIZED}")
    return _Scheme(method, bits, group_size)


def _matrix(stem: str, tensors: Mapping[str, StoredTensor], qweight: StoredTensor, scheme: _Scheme) -> PackedMatrix:
    if stem.startswith(VISION) or stem + "weight" == EMBEDDINGS:
        raise CheckpointError(f"{stem}weight is quantized, which batchcap reads in the decoder only: {_NOT_QUANTIZED}")
    per_word = _WORD_BITS // scheme.bits
    scales, qzeros = tensors[stem + "scales"], tensors[stem + "qzeros"]
    rows, columns = qweight.shape if len(qweight.shape) == 2 else (0, 0)
    shape = (columns, rows * per_word) if scheme.method == "gptq" else (columns * per_word, rows)
    groups = shape[1] // scheme.group_size
    sound = (
        qweight.dtype == qzeros.dtype == "I32"
        and scales.dtype in FLOAT_TYPES
        and shape[1] % scheme.group_size == 0
        and scales.shape == (groups, shape[0])
        and qzeros.shape == (groups, -(-shape[0] // per_word))
    )
    if not sound:
        raise CheckpointError(
            f"the parts of {stem}weight don't fit together ({scheme.method}, {scheme.bits} bits, groups of "
            f"{scheme.group_size}): {_NOT_QUANTIZED}"
        )
    place = (qweight.path, scales.dtype, shape, qweight.start, math.prod(shape) * FLOAT_BYTES[scales.dtype])
    return PackedMatrix(*place, scheme=scheme, qweight=qweight, qzeros=qzeros, scales=scales)


def _require_plain_order(stem: str, index: StoredTensor, scheme: _Scheme) -> None:
    """GPTQ may group inputs by their weight (`desc_act`), and no longer by their place, as the kernel has them."""
    groups = _words(index)
    if not np.array_equal(groups, np.arange(len(groups)) // scheme.group_size):
        raise CheckpointError(
            f"the inputs of {stem}weight are grouped out of order (GPTQ with desc_act), which batchcap can't run: "
            f"{_NOT_QUANTIZED}, or one quantized without desc_act"
        )


def _words(tensor: StoredTensor) -> NDArray[np.uint32]:
    """An int32 tensor, read as what it holds: bits."""
    count = math.prod(tensor.shape)
    words = np.fromfile(tensor.path, "<u4", count, offset=tensor.start)
    if len(words) != count:
        raise CheckpointError(f"{tensor.path} got shorter while it was read: copy the checkpoint again")
    return words.reshape(tensor.shape)


def _unpacked(words: NDArray[np.uint32], bits: int) -> UInt8Array:
    """The integers in words along the last axis, lowest bits first."""
    shifts = np.arange(0, _WORD_BITS, bits, dtype=np.uint32)
    values = (words[..., None] >> shifts) & np.uint32((1 << bits) - 1)
    return values.astype(np.uint8).reshape(*words.shape[:-1], -1)


def _in_order(values: UInt8Array) -> UInt8Array:
    """AWQ's eight outputs of a word in their order."""
    return values.reshape(len(values), -1, 8)[:, :, np.argsort(_AWQ_ORDER)].reshape(values.shape)
