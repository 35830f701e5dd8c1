"""Dense Qwen3-VL of any geometry: every stage of an fp32 bundle gives what transformers gives.

Each of these few checkpoints is unusual in many ways at once, since drawing a decoder takes seconds. None of it is a
size that was published, but fine-tuned and pruned models have such.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from batchcap.config import VisionBackend
from batchcap.export.checkpoint.options import ExportOptions, Precision
from batchcap.export.export import export_bundle
from batchcap.export.graph.parity import compare_with_transformers
from batchcap.model.bundle import Bundle
from tests.checkpoints import Shape, make_checkpoint
from tests.export.pipeline import captions, encoded_image, features_of, reference

TOLERANCE = 1e-4  # largest difference of a logit, as a part of the largest logit; rounding gives about 1e-6
FAR = 0.03  # without DeepStack at least this part of the largest logit is lost
FEATURE_TOLERANCE = 1e-4  # largest difference between the two vision encoders, as a part of the largest feature
CONTEXT = 256
SIZES = [(64, 48), (120, 200), (333, 217), (40, 400), (97, 61), (250, 250)]
# What the model builder obeys and transformers' Qwen3-VL does not know.
FOREIGN_KEYS = {
    "attn_logit_softcapping": 1.0,
    "final_logit_softcapping": 1.0,
    "hidden_activation": "gelu",
    "layer_types": ["full_attention"] * 5,
    "partial_rotary_factor": 0.5,
    "sliding_window": None,
}
FOREIGN_OUTER_KEYS = {"rope_parameters": {"rope_type": "default", "rope_theta": 3.0}, "attn_logit_softcapping": 1.0}
FOREIGN_ROPE_KEYS = {"partial_rotary_factor": 0.5}  # likewise, where the rotation is described

SHAPES = {
    "5 heads of 5, 2 levels, 3 vision heads, patches of 14, fp16": Shape(
        layers=3,
        hidden=80,
        heads=5,
        kv_heads=5,
        head_dim=24,
        mrope_section=(2, 5, 5),
        vision_hidden=72,
        vision_heads=3,
        levels=(1, 3),
        patch_size=14,
        position_side=7,
        dtype=torch.float16,
    ),
    "3 heads of 1, 5 levels to the last layer, odd widths, merge 3, 3 frames, separate head, bf16": Shape(
        layers=5,
        hidden=97,
        heads=3,
        kv_heads=1,
        intermediate=131,
        vision_depth=6,
        levels=(0, 1, 2, 4, 5),
        patch_size=8,
        temporal_patch_size=3,
        merge_size=3,
        position_side=9,
        tied=False,
        dtype=torch.bfloat16,
    ),
    "biases, no level, heads of 8, merge 1, 1 frame, another activation": Shape(
        layers=2,
        heads=6,
        kv_heads=3,
        head_dim=8,
        mrope_section=(2, 1, 1),
        levels=(),
        temporal_patch_size=1,
        merge_size=1,
        attention_bias=True,
    ),
}
TEXT_KEYS: dict[str, dict[str, Any]] = {
    "3 heads of 1, 5 levels to the last layer, odd widths, merge 3, 3 frames, separate head, bf16": FOREIGN_KEYS,
    "biases, no level, heads of 8, merge 1, 1 frame, another activation": {
        "hidden_act": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-3,
    },
}


@dataclass(frozen=True)
class Made:
    """A checkpoint in shards, and its bundle."""

    shape: Shape
    checkpoint: Path
    bundle: Bundle


@pytest.fixture(scope="module", params=SHAPES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder, shape = tmp_path_factory.mktemp("geometry"), SHAPES[request.param]
    checkpoint = make_checkpoint(folder / "checkpoint", shape, seed=1, max_shard_size="300KB")
    assert len(list(checkpoint.glob("model-*.safetensors"))) > 1
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"] |= TEXT_KEYS.get(request.param, {})
    config["text_config"]["rope_parameters"] |= FOREIGN_ROPE_KEYS
    config |= FOREIGN_OUTER_KEYS
    (checkpoint / "config.json").write_text(json.dumps(config))
    options = ExportOptions(precision=Precision.FP32, context=CONTEXT)
    return Made(shape, checkpoint, export_bundle(str(checkpoint), folder / "bundle", options))


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return [encoded_image(size, seed) for seed, size in enumerate(SIZES)]


def test_the_decoder(made: Made) -> None:
    bundle = made.bundle
    assert len(bundle.geometry.vision.deepstack_levels) == len(made.shape.levels)
    for parity in compare_with_transformers(made.checkpoint, bundle.decoder_path, bundle.embeddings(), bundle.geometry):
        assert parity.difference < TOLERANCE * parity.scale
        assert (parity.difference_without_deepstack > FAR * parity.scale) == bool(made.shape.levels)


def test_captions(made: Made, images: list[bytes]) -> None:
    features = features_of(made.bundle, images)
    assert features[0].deepstack.shape == (len(made.shape.levels), *features[0].embeds.shape)
    assert len({one.grid for one in features}) > len(SIZES) // 2
    expected = reference(made.checkpoint, made.bundle, images)
    assert captions(made.bundle, features) == expected
    assert len(set(expected.values())) > len(SIZES) // 2, "the images must matter, or this test can't fail"


def test_the_encoder_in_onnx(made: Made, images: list[bytes]) -> None:
    torch_features = features_of(made.bundle, images)
    for found, expected in zip(features_of(made.bundle, images, VisionBackend.ONNX), torch_features, strict=True):
        for ours, theirs in ((found.embeds, expected.embeds), (found.deepstack, expected.deepstack)):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=FEATURE_TOLERANCE * np.abs(expected.embeds).max())
