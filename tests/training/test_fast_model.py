"""The training's forward pass is transformers' own, and its rounding is ONNX Runtime's."""

import numpy as np
import pytest
import torch
from onnxruntime.capi._pybind_state import quantize_matmul_4bits
from tokenizers import Tokenizer
from transformers import Qwen3VLForConditionalGeneration

from batchcap.export.demo import demo_checkpoint
from training.fast_model import round_int4, use_fake_int4
from training.train import assert_fast_equals_stock

SCALE_TOLERANCE = 1e-6
# Half-way values go up in one and to the even neighbour in the other.
TIE_SHARE = 0.001


@pytest.fixture(scope="module")
def model() -> Qwen3VLForConditionalGeneration:
    return Qwen3VLForConditionalGeneration.from_pretrained(demo_checkpoint(), dtype=torch.float32)


def test_the_fast_forward_is_the_stock_one(model: Qwen3VLForConditionalGeneration) -> None:
    assert_fast_equals_stock(model, Tokenizer.from_file(str(demo_checkpoint() / "tokenizer.json")))


@pytest.mark.parametrize("block_size", [32, 128])
def test_rounding_is_onnx_runtimes(block_size: int) -> None:
    rows, columns = 24, 256
    weight = np.random.default_rng(3).normal(0, 0.05, (rows, columns)).astype(np.float32)
    weight[5, :block_size] = 0
    blocks = columns // block_size
    packed = np.zeros((rows, blocks, block_size // 2), np.uint8)
    scales = np.zeros(rows * blocks, np.float32)
    unused = np.zeros(rows * ((blocks + 1) // 2), np.uint8)
    by_column = np.ascontiguousarray(weight.T)
    quantize_matmul_4bits(packed, by_column, scales, unused, block_size, rows, columns, True)
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, blocks, block_size).astype(np.float32)
    theirs = ((nibbles - 8) * scales.reshape(rows, blocks, 1)).reshape(rows, columns)
    ours = round_int4(torch.from_numpy(weight), block_size).numpy()
    assert (np.abs(ours - theirs) > SCALE_TOLERANCE).mean() <= TIE_SHARE


def test_rounding_lets_gradients_pass_and_can_be_switched_off(model: Qwen3VLForConditionalGeneration) -> None:
    layer = model.model.language_model.layers[0].mlp.up_proj
    values = torch.randn(3, layer.in_features)
    plain = layer(values)
    use_fake_int4(model, on=True)
    rounded = layer(values)
    rounded.sum().backward()
    use_fake_int4(model, on=False)
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().sum() > 0
    layer.weight.grad = None
    assert not torch.equal(plain, rounded)
    assert torch.equal(plain, layer(values))
