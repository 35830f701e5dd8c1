"""Owns the machine's measured ceiling, and the arithmetic that a captioned image needs.

usage: python -m peers.ceiling THREADS   (prints the rates as one line of JSON)
"""

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from batchcap.core.machine import cpu_flags

# A product of the decoder's size: rows of a prefill, hidden size, intermediate size.
ROWS, DEPTH, COLUMNS = 480, 2048, 6144
READ_BYTES = 1 << 29
ROUNDS = 8
INT8_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8"}
BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


@dataclass(frozen=True, slots=True)
class ImageSize:
    """What of an image decides its arithmetic: patches, tokens of the whole prompt, tokens of the caption."""

    patches: int
    prompt_tokens: int
    new_tokens: int


def arithmetic_ops(config: dict[str, Any], image: ImageSize) -> float:
    """Multiplications and additions of one captioned image, from the checkpoint's `config.json`.

    Matrix products of the vision tower, its mergers and the decoder, and of their attention; the head once a new token.
    Norms, activations and rotary embeddings are left out: they are a thousandth of it.
    """
    return vision_ops(config["vision_config"], image.patches) + text_ops(config["text_config"], image)


def vision_ops(config: dict[str, Any], patches: int) -> float:
    """Of the vision tower and its mergers (one at the end, one a DeepStack level)."""
    width, depth, merge = config["hidden_size"], config["depth"], config["spatial_merge_size"] ** 2
    patch_values = config["in_channels"] * config["temporal_patch_size"] * config["patch_size"] ** 2
    block = 4 * width * width + 2 * width * config["intermediate_size"] + 2 * patches * width
    merger = (merge * width) ** 2 + merge * width * config["out_hidden_size"]
    mergers = 1 + len(config["deepstack_visual_indexes"])
    return float(2 * patches * (patch_values * width + depth * block + mergers * merger / merge))


def text_ops(config: dict[str, Any], image: ImageSize) -> float:
    """Of the decoder: a token attends to itself and to those before it."""
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    layer = 2 * width * queries + 2 * width * keys + 3 * width * config["intermediate_size"]
    tokens = image.prompt_tokens + image.new_tokens - 1  # the last token is not fed back
    attention = queries * tokens * (tokens + 1)  # two products with 1, 2, … tokens
    head = image.new_tokens * width * config["vocab_size"]
    return float(2 * (layers * (tokens * layer + attention) + head))


def measure(threads: int) -> dict[str, float]:
    """Rates of matrix products in 1e9 operations a second, and of reading memory in 1e9 bytes a second: the best times.

    A kind without instructions of its own on this CPU is measured all the same where that takes no minutes.
    """
    torch.set_num_threads(threads)
    flags = cpu_flags()
    rates = {"fp32_gops": _product(torch.float32)}
    if flags & BF16_FLAGS:
        rates["bf16_gops"] = _product(torch.bfloat16)
    rates["int8_gops"] = max(_int8_products(with_int_mm=bool(flags & INT8_FLAGS)), default=0.0)
    values = torch.ones(READ_BYTES // 4)
    rates["memory_gb_per_s"] = READ_BYTES / 1e9 / _best_s(values.sum)
    return {name: round(rate, 1) for name, rate in rates.items()}


def _product(dtype: torch.dtype) -> float:
    rows, weights = torch.randn(ROWS, DEPTH, dtype=dtype), torch.randn(COLUMNS, DEPTH, dtype=dtype)
    return _rate(lambda: torch.nn.functional.linear(rows, weights))


def _int8_products(*, with_int_mm: bool) -> Iterable[float]:
    if with_int_mm:  # a plain loop without them: a second a product
        rows = torch.randint(-127, 127, (ROWS, DEPTH), dtype=torch.int8)
        weights = torch.randint(-127, 127, (COLUMNS, DEPTH), dtype=torch.int8).t()
        yield _rate(lambda: torch._int_mm(rows, weights))  # noqa: SLF001
    activations = torch.randn(ROWS, DEPTH)
    for engine in torch.backends.quantized.supported_engines:
        if engine in ("fbgemm", "onednn"):
            torch.backends.quantized.engine = engine
            layer: torch.nn.Module = torch.ao.nn.quantized.dynamic.Linear(DEPTH, COLUMNS)  # type: ignore[no-untyped-call]
            yield _rate(partial(layer, activations))


def _rate(product: Callable[[], object]) -> float:
    return 2 * ROWS * DEPTH * COLUMNS / 1e9 / _best_s(product)


def _best_s(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(ROUNDS):
        started_s = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started_s)
    return min(seconds)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # torch announces that its quantized layers will move to another package
    print(json.dumps(measure(int(sys.argv[1]))))
