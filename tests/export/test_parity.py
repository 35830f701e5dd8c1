"""The exported fp32 decoder gives transformers' logits, with DeepStack; unusual shapes are in test_geometries.py."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3VLForConditionalGeneration

from batchcap.export.graph.parity import GRIDS, compare_with_transformers
from batchcap.model.bundle import Bundle

TOLERANCE = 1e-4  # largest difference of a logit, as a part of the largest logit
FAR = 0.05  # without DeepStack at least this part of the largest logit is lost
ROUNDED_TOLERANCE = {"int4": 0.8, "int8": 0.05, "w8a8": 0.1}  # random weights amplify rounding


def assert_equal_to_transformers(checkpoint: Path, bundle: Bundle) -> None:
    found = compare_with_transformers(checkpoint, bundle.decoder_path, bundle.embeddings(), bundle.geometry)
    assert len(found) == len(GRIDS)
    for parity in found:
        assert parity.difference < TOLERANCE * parity.scale
        assert parity.difference_without_deepstack > FAR * parity.scale


def test_everyday_shape(tiny_checkpoint: Path, tiny_bundle_fp32: Bundle) -> None:
    assert_equal_to_transformers(tiny_checkpoint, tiny_bundle_fp32)


@pytest.mark.parametrize("precision", ROUNDED_TOLERANCE)
def test_rounded_decoders_stay_near(precision: str, tiny_checkpoint: Path, request: pytest.FixtureRequest) -> None:
    bundle: Bundle = request.getfixturevalue(f"tiny_bundle_{precision}")
    found = compare_with_transformers(tiny_checkpoint, bundle.decoder_path, bundle.embeddings(), bundle.geometry)
    assert all(parity.difference < ROUNDED_TOLERANCE[precision] * parity.scale for parity in found)


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_matrices_have_the_bits_that_were_asked_for(precision: str, request: pytest.FixtureRequest) -> None:
    bundle: Bundle = request.getfixturevalue(f"tiny_bundle_{precision}")
    bits = {
        attribute.i
        for node in onnx.load(bundle.decoder_path, load_external_data=False).graph.node
        if node.op_type == "MatMulNBits"
        for attribute in node.attribute
        if attribute.name == "bits"
    }
    assert bits == {int(precision.removeprefix("int"))}


def test_vision_weights_and_embeddings_are_those_of_the_checkpoint(
    tiny_checkpoint: Path, tiny_bundle_int4: Bundle
) -> None:
    model = Qwen3VLForConditionalGeneration.from_pretrained(tiny_checkpoint)
    expected = model.model.visual.state_dict()
    found = load_file(tiny_bundle_int4.vision_weights_path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    table = model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(tiny_bundle_int4.embeddings().lookup(np.arange(len(table))), table)
