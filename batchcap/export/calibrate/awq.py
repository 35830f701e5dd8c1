"""Owns the search for the scales of activation-aware rounding, one decoder layer at a time.

For a group of matrices that read the same numbers, column k is scaled by `mean |x_k| ** alpha`; alpha is the one of a
grid that changes the matrices' outputs least when they are rounded (AWQ, Lin et al. 2023, arXiv 2306.00978, section
3.2). The products are computed as ONNX Runtime's kernel does, which rounds its input to 8 bits, too.

Letters used for shapes: T tokens recorded, K inputs and N outputs of a matrix.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from batchcap.core.records import Float32Array, Int64Array
from batchcap.export.calibrate.layers import LayerStream
from batchcap.export.checkpoint.checkpoint import Checkpoint
from batchcap.export.checkpoint.matrix_names import matrix_name
from batchcap.export.checkpoint.options import WHOLE_ROW, ExportOptions, Rounding
from batchcap.export.checkpoint.quantize import MatrixInMemory, Rows, quantize_matrix
from batchcap.export.checkpoint.scaling import Group, Scales, expanded, head_group, layer_groups
from batchcap.export.quality.rollout import ImagePrompt
from batchcap.model.geometry import TextGeometry

ALPHAS = tuple(step / 20 for step in range(1, 21))  # 0 is no scaling
MAX_TOKENS = 512
SEARCH_ROWS = 1024  # outputs of a matrix that the search looks at; the best alpha is then proven on all of them
SMALLEST_MAGNITUDE = 1e-4  # of a column's mean, as a part of the largest
_PIECE_VALUES = 1 << 22
# In the order of `layer_groups`: whose input a group reads.
_LISTENED = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")


@dataclass(frozen=True, slots=True)
class Reader:
    """A matrix [N, K] of a group, and how it will be rounded."""

    matrix: Rows
    rounding: Rounding


def find_scales(checkpoint: Checkpoint, prompts: Sequence[ImagePrompt], options: ExportOptions) -> Scales:
    """The scales of every group that rounding gets closer with; the others are left out.

    Args:
        checkpoint: the model.
        prompts: what it reads for the user's images, answers included.
        options: how its matrices will be rounded.

    Returns:
        By the name of the divided tensor, as `scaling` describes. Never worse than none: a group's scales are kept
        only where the error of its outputs over the recorded tokens gets smaller.
    """
    text = checkpoint.geometry.text
    stream = LayerStream(checkpoint, prompts)
    kept = [_kept_tokens(prompt, MAX_TOKENS // len(prompts), first=not index) for index, prompt in enumerate(prompts)]
    scales: Scales = {}
    layers = tqdm(stream.layers(), "scaling", text.layers, unit="layer", disable=None, leave=False)
    for index, layer in enumerate(layers):
        recorded = _record(stream, layer, kept)
        for group, inputs in zip(layer_groups(index, text), recorded, strict=True):
            matrices = [layer.get_parameter(name.split(".", 3)[3]).numpy() for name in group.readers]
            readers = [
                Reader(MatrixInMemory(matrix), options.rounding(matrix_name(name), text.layers))
                for name, matrix in zip(group.readers, matrices, strict=True)
            ]
            scales |= _best(group, readers, inputs, text)
    group = head_group(checkpoint.tensors)
    rounding = options.rounding(matrix_name(group.readers[0]), text.layers)
    answers = [
        hidden[prompt.prefix + prompt.visual :][-MAX_TOKENS // len(prompts) :]
        for hidden, prompt in zip(stream.head_inputs(), prompts, strict=True)
    ]
    head = Reader(checkpoint.tensors[group.readers[0]], rounding)
    return scales | _best(group, [head], torch.cat(answers), text)


def _kept_tokens(prompt: ImagePrompt, count: int, *, first: bool) -> Int64Array:
    """Up to `count` places of a prompt, in order: text after the image, then as many of the image as fit.

    The text before the image is the same in every prompt, and so is what becomes of it: the first prompt tells it.
    """
    after = np.arange(prompt.prefix + prompt.visual, len(prompt.embeds))[-max(1, count // 2) :]
    room = min(prompt.visual, max(1, count - len(after)))
    image = prompt.prefix + np.arange(room) * prompt.visual // room
    before = np.arange(prompt.prefix if first else 0)
    return np.concatenate([before, image, after])


def _record(stream: LayerStream, layer: nn.Module, kept: Sequence[Int64Array]) -> list[Tensor]:
    """Run all prompts through a layer; gives what each group reads at the kept places, [T, K] each."""
    heard: dict[str, list[Tensor]] = {name: [] for name in _LISTENED}

    def listen(name: str, inputs: Tensor) -> None:
        heard[name].append(inputs[torch.from_numpy(kept[len(heard[name])])].clone())

    stream.pass_through(layer, _LISTENED, listen)
    return [torch.cat(heard[name]) for name in _LISTENED]


def _best(group: Group, readers: list[Reader], inputs: Tensor, text: TextGeometry) -> Scales:
    """The scales of a group, or nothing where unscaled matrices are at least as close."""
    magnitudes = inputs.abs().mean(0).numpy()
    if group.per_head > 1:
        shape = (text.kv_heads, group.per_head, text.head_dim)
        magnitudes = magnitudes.reshape(shape).mean(1).reshape(-1)
    magnitudes = np.maximum(magnitudes, SMALLEST_MAGNITUDE * magnitudes.max())
    if not magnitudes.any():
        return {}
    samples = [_sample(reader.matrix) for reader in readers]
    outputs = [inputs @ torch.from_numpy(sample).T for sample in samples]
    sampled = [Reader(MatrixInMemory(one), reader.rounding) for one, reader in zip(samples, readers, strict=True)]
    candidates = [_scales_of(magnitudes, alpha) for alpha in ALPHAS]
    best = min(candidates, key=lambda one: output_error(sampled, inputs, expanded(one, group, text), outputs))
    columns = expanded(best, group, text)
    closer = output_error(readers, inputs, columns) < output_error(readers, inputs, np.ones_like(columns))
    return {group.divided: best} if closer else {}


def _scales_of(magnitudes: Float32Array, alpha: float) -> Float32Array:
    """Scales about 1, of 8 significant bits: the last bits of a sum must not decide a bundle's bytes."""
    raw = magnitudes.astype(np.float64) ** alpha
    raw /= np.sqrt(raw.max() * raw.min())
    bits = raw.astype(np.float32).view(np.uint32)
    rounded: Float32Array = ((bits + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return rounded


def _sample(matrix: Rows) -> Float32Array:
    """Up to `SEARCH_ROWS` rows of a matrix, evenly spread."""
    step = -(-matrix.shape[0] // SEARCH_ROWS)
    height = max(step, _PIECE_VALUES // matrix.shape[1] // step * step)
    pieces = [matrix.rows(start, stop)[::step] for start, stop in _spans(matrix.shape[0], height)]
    return np.concatenate(pieces)


def _spans(count: int, height: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, height):
        yield start, min(start + height, count)


def output_error(
    readers: Sequence[Reader], inputs: Tensor, scales: Float32Array, outputs: Sequence[Tensor] | None = None
) -> float:
    """Squared error of the outputs of scaled and rounded matrices, relative to the outputs; summed over the matrices.

    Args:
        readers: matrices of the same inputs.
        inputs: [T, K] float32.
        scales: [K].
        outputs: [T, N] of each matrix as it is, where they are known already.
    """
    total = 0.0
    scaled = inputs / torch.from_numpy(scales)
    rounded = {size: _rounded_inputs(scaled, size) for size in {reader.rounding.block_size for reader in readers}}
    for index, reader in enumerate(readers):
        error = size = 0.0
        for start, stop in _spans(reader.matrix.shape[0], max(1, _PIECE_VALUES // reader.matrix.shape[1])):
            rows = reader.matrix.rows(start, stop)
            weights = quantize_matrix(MatrixInMemory(rows * scales), reader.rounding).values(rows.shape[1])
            expected = inputs @ torch.from_numpy(rows).T if outputs is None else outputs[index][:, start:stop]
            found = rounded[reader.rounding.block_size] @ torch.from_numpy(weights).T
            error += float((found - expected).square().sum())
            size += float(expected.square().sum())
        total += error / size if size else 0.0
    return total


def _rounded_inputs(inputs: Tensor, block_size: int) -> Tensor:
    """Inputs [T, K] as the kernels round them: 8 bits about zero, one scale for each block or for all of a token."""
    tokens, width = inputs.shape
    block_size = width if block_size == WHOLE_ROW else block_size
    blocks = nn.functional.pad(inputs, (0, -width % block_size)).reshape(tokens, -1, block_size)
    steps = blocks.abs().amax(-1, keepdim=True) / 127
    rounded = torch.where(steps > 0, (blocks / steps).round() * steps, blocks)
    return rounded.reshape(tokens, -1)[:, :width]
