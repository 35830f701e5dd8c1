"""Owns the checks that every new bundle passes.

The token embeddings are finite, the vision graphs run, and the decoder's graph runs, listens to DeepStack, and agrees
with itself.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx.helper
import onnx.numpy_helper
import onnxruntime

from batchcap.config import VisionBackend, VisionConfig, VisionDtype
from batchcap.core.errors import CheckpointError
from batchcap.core.machine import available_cores
from batchcap.core.records import Float32Array, Int64Array, Patches
from batchcap.export.checkpoint.options import Precision
from batchcap.export.graph.int8_matmul import ROUNDING
from batchcap.model.bundle import Bundle
from batchcap.model.geometry import Geometry
from batchcap.vision.backend import load_encoder

PROMPT_TOKENS = 12
IMAGE_TOKENS = (2, 3)  # down and across
TOKENS_A_LOOK = 1024
SEED = 0
# Largest difference of a logit between one prefill and a prefill with a decode step, as a part of the largest logit.
# In int4 and int8 activations are rounded too, and one row goes through another kernel than twelve: random weights
# amplify that to some percent. A cache that is read wrongly gives differences as large as the logits.
FP32_SPLIT_TOLERANCE = 1e-3
ROUNDED_SPLIT_TOLERANCE = 0.5
# Where ONNX Runtime finds the weights of a graph that it is given as bytes (onnxruntime_session_options_config_keys.h).
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
# Of the products that ONNX Runtime makes of DequantizeLinear and MatMul by itself; 1 is float32.
_ACCURACY_LEVEL = "session.qdq_matmulnbits_accuracy_level"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What the check measured, on seeded random embeddings.

    Attributes:
        logits_scale: largest magnitude of the last token's logits.
        deepstack_change: largest change of a logit when the DeepStack features are zeroed.
        split_difference: largest difference between one prefill and a prefill followed by one decode step.
    """

    logits_scale: float
    deepstack_change: float
    split_difference: float

    def to_dict(self) -> dict[str, float]:
        """Plain JSON types, so coarse that the last bits of a kernel do not show."""
        content = {name: float(f"{value:.2g}") for name, value in asdict(self).items()}
        return {**content, "split_difference": decade_above(self.split_difference)}


def decade_above(value: float) -> float:
    """The power of ten that a difference stays below."""
    return float(f"1e{math.floor(math.log10(value)) + 1}") if value else 0.0


class DecoderRun:
    """The decoder's graph, run with plain arrays: for checks, not for speed.

    Args:
        graph: the ONNX file; its weights lie beside it.
        geometry: the model's shape.
        exact: multiply rounded weights in float32, where the graph asks for activations of 8 bits.
    """

    def __init__(self, graph: Path, geometry: Geometry, *, exact: bool = False) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        model: str | bytes = str(graph)
        if exact:
            model = _with_plain_inputs(graph)
            options.add_session_config_entry(_WEIGHTS_FOLDER, str(graph.parent))
            options.add_session_config_entry(_ACCURACY_LEVEL, "1")
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        text = geometry.text
        self._names = [f"{layer}.{kind}" for layer in range(text.layers) for kind in ("key", "value")]
        self._no_cache = np.zeros((1, text.kv_heads, 0, text.head_dim), np.float32)

    def __call__(
        self,
        embeds: Float32Array,
        deepstack: list[Float32Array],
        positions: Int64Array,
        cache: list[Float32Array] | None = None,
    ) -> tuple[Float32Array, int, list[Float32Array]]:
        """Run one prompt, or the tokens after `cache`.

        Args:
            embeds: [S, H] float32.
            deepstack: one [S, H] float32 for each DeepStack level.
            positions: [3, S] int64.
            cache: keys and values of each layer in turn, as returned.

        Returns:
            The last token's logits [V], the graph's `next_token`, and the cache [1, kv_heads, M, head_dim] of each.
        """
        past = cache or [self._no_cache for _name in self._names]
        feed: dict[str, Any] = {
            "inputs_embeds": np.ascontiguousarray(embeds[None]),
            "attention_mask": np.ones((1, past[0].shape[2] + len(embeds)), np.int64),
            "position_ids": np.ascontiguousarray(positions[:, None]),
        }
        feed |= {
            f"deepstack_embeds.{index}": np.ascontiguousarray(level[None]) for index, level in enumerate(deepstack)
        }
        feed |= {f"past_key_values.{name}": value for name, value in zip(self._names, past, strict=True)}
        outputs = self._session.run(["logits", "next_token", *(f"present.{name}" for name in self._names)], feed)
        return outputs[0].reshape(-1), int(outputs[1].item()), outputs[2:]


def _with_plain_inputs(graph: Path) -> bytes:
    """The graph with products that read float32 and not 8-bit activations; its weights stay where they are."""
    model = onnx.load(graph, load_external_data=False)
    nodes = list(model.graph.node)
    made_by = {output: node for node in nodes for output in node.output}
    scaled_by = {name: node for node in nodes if node.op_type == "Mul" for name in node.input}
    del model.graph.node[:]
    replaced = set[str]()
    for node in nodes:
        if node.op_type == "MatMulNBits":  # without its wish for a kernel of a certain accuracy
            kept = [attribute for attribute in node.attribute if attribute.name != "accuracy_level"]
            del node.attribute[:]
            node.attribute.extend(kept)
        if node.op_type == "MatMulIntegerToFloat":
            scaled = scaled_by[node.output[0]]
            model.graph.node.extend(_plain_product(node, _rounded_from(node.input[0], made_by), scaled.output[0]))
            replaced.add(scaled.name)
        elif node.op_type == "ArgMax":  # of a product before it is scaled, which is no more
            source = made_by[node.input[0]]
            if source.op_type == "MatMulIntegerToFloat":
                node.input[0] = scaled_by[source.output[0]].output[0]
            model.graph.node.append(node)
        elif node.name not in replaced:
            model.graph.node.append(node)
    content: bytes = model.SerializeToString()
    return content


def _rounded_from(value: str, made_by: dict[str, onnx.NodeProto]) -> str:
    """What the bytes of a product of integers were rounded from."""
    while value in made_by and ROUNDING in made_by[value].name:
        value = made_by[value].input[0]
    return value


def _plain_product(product: onnx.NodeProto, read: str, written: str) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """A product of integers as one of float32: its weights times their scales, [K, N], and a MatMul."""
    _bytes, weight, _one, scales = product.input[:4]
    floats = f"{product.name}/weight"
    return (
        onnx.helper.make_node("DequantizeLinear", [weight, scales], [floats], floats, axis=1),
        onnx.helper.make_node("MatMul", [read, floats], [written], f"{product.name}/plain"),
    )


def check_embeddings(unfinished: Bundle) -> None:
    """Look at every token's embeddings; one that is damaged shows in captions only where the token comes up.

    Raises:
        CheckpointError: a number is not finite.
    """
    table, tokens = unfinished.embeddings(), unfinished.geometry.text.vocab_size
    for start in range(0, tokens, TOKENS_A_LOOK):
        ids = np.arange(start, min(start + TOKENS_A_LOOK, tokens))
        sound = np.isfinite(table.lookup(ids)).all(1)
        if not sound.all():
            raise CheckpointError(
                f"the embeddings of token {ids[~sound][0]} are not finite: the weights may be damaged"
            )


def check_encoder(unfinished: Bundle, dtype: VisionDtype) -> None:
    """Run a vision graph on random patches.

    Args:
        unfinished: a bundle whose vision parts are there.
        dtype: which of its graphs, FP32 or INT8.

    Raises:
        CheckpointError: it gives numbers that are not finite.
    """
    vision = unfinished.geometry.vision
    grid = (IMAGE_TOKENS[0] * vision.merge_size, IMAGE_TOKENS[1] * vision.merge_size)
    values = np.random.default_rng(SEED).standard_normal((grid[0] * grid[1], vision.patch_values), np.float32)
    image = Patches(0, values, grid, width=0, height=0, sha256="", read_ms=0.0)
    encoder = load_encoder(unfinished, VisionConfig(dtype=dtype, backend=VisionBackend.ONNX), available_cores())
    try:
        encoder.encode([image])
    except FloatingPointError as error:
        raise CheckpointError(f"{error}: the weights may be damaged") from None


def check_decoder(graph: Path, geometry: Geometry, precision: Precision) -> CheckResult:
    """Run the decoder's graph on random input.

    Raises:
        CheckpointError: it gives numbers that are not finite, ignores DeepStack, reads its cache wrongly, or its
            `next_token` is not the arg-max of its logits.
    """
    run = DecoderRun(graph, geometry)
    random = np.random.default_rng(SEED)
    shape = (PROMPT_TOKENS, geometry.text.hidden_size)
    embeds = random.standard_normal(shape, np.float32)
    deepstack = [random.standard_normal(shape, np.float32) for _level in geometry.vision.deepstack_levels]
    positions = np.broadcast_to(np.arange(PROMPT_TOKENS), (3, PROMPT_TOKENS)).astype(np.int64)
    whole, token, _cache = run(embeds, deepstack, positions)
    without, _token, _cache = run(embeds, [np.zeros_like(level) for level in deepstack], positions)
    head, last = slice(None, -1), slice(-1, None)
    _logits, _token, cache = run(embeds[head], [level[head] for level in deepstack], positions[:, head])
    split, _token, _cache = run(embeds[last], [level[last] for level in deepstack], positions[:, last], cache)
    if not (np.isfinite(whole).all() and np.isfinite(split).all()):
        raise CheckpointError("the exported decoder gives numbers that are not finite: the weights may be damaged")
    result = CheckResult(
        logits_scale=float(np.abs(whole).max()),
        deepstack_change=float(np.abs(whole - without).max()),
        split_difference=float(np.abs(whole - split).max()),
    )
    if deepstack and result.deepstack_change == 0:
        raise CheckpointError("the exported decoder ignores its DeepStack inputs")
    if token != int(whole.argmax()):
        raise CheckpointError("the exported decoder's next_token is not the arg-max of its logits")
    tolerance = FP32_SPLIT_TOLERANCE if precision is Precision.FP32 else ROUNDED_SPLIT_TOLERANCE
    if result.split_difference > tolerance * result.logits_scale:
        raise CheckpointError("the exported decoder's decode steps disagree with its prefill")
    return result
