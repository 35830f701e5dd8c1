"""Scaling before rounding: exact in float32, never worse than none, the same bytes again, told in the bundle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from batchcap.core.errors import UsageError
from batchcap.core.records import Float32Array
from batchcap.export.calibrate import awq
from batchcap.export.calibrate.awq import Reader, find_scales, output_error
from batchcap.export.calibrate.calibration import image_prompts
from batchcap.export.calibrate.layers import LayerStream
from batchcap.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from batchcap.export.checkpoint.options import ExportOptions, Precision, Rounding, RoundingAlgorithm
from batchcap.export.checkpoint.quantize import MatrixInMemory
from batchcap.export.checkpoint.scaling import (
    SCALES_FILE,
    Scales,
    all_groups,
    expanded,
    layer_groups,
    read_scales,
    scaled_tensors,
)
from batchcap.export.export import export_bundle
from batchcap.export.graph.check import DecoderRun
from batchcap.export.graph.decoder import GRAPH_FILE, Drawing, draw_decoder, fill_decoder
from batchcap.export.quality.images import ImageChoice, load_images
from batchcap.export.quality.rollout import ImagePrompt, Rollout
from batchcap.model.bundle import BUNDLE_FILE, Bundle
from tests.checkpoints import Shape, make_checkpoint

FP32_TOLERANCE = 2e-5  # of a logit, as a part of the largest one
STREAM_TOLERANCE = 1e-4  # likewise, between two programs
# A few channels a hundred times as loud as the others, as large language models have them.
SHAPE = Shape(layers=3, heads=6, kv_heads=2, intermediate=192, levels=(0, 2), std=0.06)
LOUD_CHANNELS, LOUDNESS = (3, 40, 77), 30.0
CONTEXT = 512
OPTIONS = ExportOptions(block_size=32, context=CONTEXT)
CHOICE = ImageChoice(count=4, max_visual_tokens=16)

pytestmark = pytest.mark.usefixtures("threads_put_back")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights whose norms put out a few loud channels."""
    folder = make_checkpoint(tmp_path_factory.mktemp("awq") / "loud", SHAPE, seed=3)
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight")):
            tensors[name][list(LOUD_CHANNELS)] *= LOUDNESS
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def opened(checkpoint: Path) -> Checkpoint:
    return open_checkpoint(str(checkpoint))


def export(checkpoint: Path, output: Path, options: ExportOptions, choice: ImageChoice | None = None) -> Bundle:
    return export_bundle(str(checkpoint), output, options, calibrate=choice)


@pytest.fixture(scope="module")
def exact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(
        checkpoint, tmp_path_factory.mktemp("exact") / "b", ExportOptions(precision=Precision.FP32, context=CONTEXT)
    )


@pytest.fixture(scope="module")
def drawing(opened: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Drawing:
    return draw_decoder(opened, CONTEXT, tmp_path_factory.mktemp("drawing"))


@pytest.fixture(scope="module")
def plain(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(checkpoint, tmp_path_factory.mktemp("plain") / "b", OPTIONS)


@pytest.fixture(scope="module")
def scaled(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(checkpoint, tmp_path_factory.mktemp("scaled") / "b", OPTIONS, CHOICE)


@pytest.fixture(scope="module")
def prompts(exact: Bundle) -> list[ImagePrompt]:
    images = load_images(CHOICE, exact.geometry, exact.folder)
    return image_prompts(exact, images, CHOICE.prompt)


def logits_of(bundle_or_graph: Path, bundle: Bundle, prompts: list[ImagePrompt]) -> Float32Array:
    run = DecoderRun(bundle_or_graph, bundle.geometry)
    return np.stack([run(one.embeds, list(one.deepstack), one.positions)[0] for one in prompts])


def random_scales(opened: Checkpoint) -> Scales:
    random = np.random.default_rng(0)
    return {
        group.divided: np.exp(random.normal(0, 1, opened.tensors[group.divided].shape[0])).astype(np.float32)
        for group in all_groups(opened.tensors, opened.geometry.text)
    }


def test_any_scales_are_exact_in_float32(
    opened: Checkpoint, exact: Bundle, prompts: list[ImagePrompt], drawing: Drawing, tmp_path: Path
) -> None:
    """Grouped queries, a tied head, norms, values and the MLP: all of them at once."""
    tensors = scaled_tensors(opened.tensors, random_scales(opened), opened.geometry.text)
    fill_decoder(drawing, tensors, ExportOptions(precision=Precision.FP32, context=CONTEXT), tmp_path / "decoder")
    found = logits_of(tmp_path / "decoder" / GRAPH_FILE, exact, prompts)
    expected = logits_of(exact.decoder_path, exact, prompts)
    assert 0 < np.abs(found - expected).max() < FP32_TOLERANCE * np.abs(expected).max()


def test_a_missing_fold_would_show(
    opened: Checkpoint, exact: Bundle, prompts: list[ImagePrompt], drawing: Drawing, tmp_path: Path
) -> None:
    tensors = scaled_tensors(opened.tensors, random_scales(opened), opened.geometry.text)
    name = layer_groups(1, opened.geometry.text)[1].divided
    tensors[name] = opened.tensors[name]
    fill_decoder(drawing, tensors, ExportOptions(precision=Precision.FP32, context=CONTEXT), tmp_path / "decoder")
    found = logits_of(tmp_path / "decoder" / GRAPH_FILE, exact, prompts)
    expected = logits_of(exact.decoder_path, exact, prompts)
    assert np.abs(found - expected).max() > 100 * FP32_TOLERANCE * np.abs(expected).max()


def test_a_bias_is_divided_with_its_rows(opened: Checkpoint) -> None:
    values = layer_groups(0, opened.geometry.text)[1].divided
    bias = values.removesuffix("weight") + "bias"
    width = opened.tensors[values].shape[0]
    tensors = {**opened.tensors, bias: MatrixInMemory(np.ones(width, np.float32))}
    scales = {values: np.linspace(1, 2, width, dtype=np.float32)}
    found = scaled_tensors(tensors, scales, opened.geometry.text)[bias].rows(0, width)
    np.testing.assert_array_equal(found, 1 / scales[values])


def test_layers_one_at_a_time_are_the_model(opened: Checkpoint, exact: Bundle, prompts: list[ImagePrompt]) -> None:
    stream = LayerStream(opened, prompts)
    heard: list[tuple[int, ...]] = []
    for layer in stream.layers():
        stream.pass_through(layer, ["mlp.down_proj"], lambda _name, inputs: heard.append(tuple(inputs.shape)))
    assert heard == [(len(one.embeds), SHAPE.intermediate) for one in prompts] * SHAPE.layers
    head = opened.tensors["language_model.embed_tokens.weight"]
    matrix = torch.from_numpy(head.rows(0, head.shape[0]))
    found = torch.stack([matrix @ inputs[-1] for inputs in stream.head_inputs()]).numpy()
    expected = logits_of(exact.decoder_path, exact, prompts)
    assert np.abs(found - expected).max() < STREAM_TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("loudness", [1.0, 40.0])
@pytest.mark.parametrize("algorithm", RoundingAlgorithm)
def test_scales_are_never_worse_than_none(loudness: float, algorithm: RoundingAlgorithm, opened: Checkpoint) -> None:
    random = np.random.default_rng(1)
    inputs = random.standard_normal((64, SHAPE.hidden), np.float32)
    inputs[:, list(LOUD_CHANNELS)] *= loudness
    rounding = Rounding(4, 32, algorithm)
    readers = [Reader(MatrixInMemory(random.standard_normal((96, SHAPE.hidden), np.float32)), rounding)]
    group = layer_groups(0, opened.geometry.text)[2]
    found = awq._best(group, readers, torch.from_numpy(inputs), opened.geometry.text)
    unscaled = output_error(readers, torch.from_numpy(inputs), np.ones(SHAPE.hidden, np.float32))
    for scales in found.values():
        assert output_error(readers, torch.from_numpy(inputs), scales) < unscaled
    if loudness > 1:
        (scales,) = found.values()
        assert output_error(readers, torch.from_numpy(inputs), scales) < 0.5 * unscaled
        assert min(scales[list(LOUD_CHANNELS)]) > 2 * np.median(scales)


def test_scales_are_shared_by_the_queries_of_a_head(opened: Checkpoint) -> None:
    text = opened.geometry.text
    group = layer_groups(0, text)[1]
    scales = np.arange(text.kv_heads * text.head_dim, dtype=np.float32)
    columns = expanded(scales, group, text).reshape(text.heads, text.head_dim)
    for head in range(text.heads):
        np.testing.assert_array_equal(columns[head], scales.reshape(text.kv_heads, -1)[head // group.per_head])


def test_rounded_answers_get_closer(
    opened: Checkpoint, exact: Bundle, prompts: list[ImagePrompt], drawing: Drawing, tmp_path: Path
) -> None:
    """With 8 bits, whose errors stay small enough to add up: those of 4 bits drown in random weights."""
    options = ExportOptions(precision=Precision.INT8, context=CONTEXT)
    expected = logits_of(exact.decoder_path, exact, prompts)
    errors = []
    for scales in ({}, find_scales(opened, prompts, options)):
        target = tmp_path / f"decoder-{len(scales)}"
        fill_decoder(drawing, scaled_tensors(opened.tensors, scales, opened.geometry.text), options, target)
        errors.append(np.abs(logits_of(target / GRAPH_FILE, exact, prompts) - expected).mean())
    assert errors[1] < 0.5 * errors[0]


def test_the_same_images_give_the_same_bytes(checkpoint: Path, scaled: Bundle, tmp_path: Path) -> None:
    again = export(checkpoint, tmp_path / "again", OPTIONS, CHOICE)
    assert again.id == scaled.id
    assert (again.folder / BUNDLE_FILE).read_bytes() == (scaled.folder / BUNDLE_FILE).read_bytes()


def test_the_bundle_tells_what_was_done(opened: Checkpoint, scaled: Bundle, plain: Bundle) -> None:
    content: dict[str, Any] = json.loads((scaled.folder / BUNDLE_FILE).read_text())
    assert scaled.precision == "int4 block 32 rtn, awq"
    assert content["precision"]["awq"]["pictures"] == CHOICE.count
    assert SCALES_FILE in content["files"]
    assert read_scales(plain.folder) == {}
    # Each matrix of the graph is the scaled tensor, rounded: within half a step.
    tensors = scaled_tensors(opened.tensors, read_scales(scaled.folder), opened.geometry.text)
    graph = onnx.load(scaled.decoder_path).graph
    stored = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    node = next(one for one in graph.node if one.name.startswith("/model/layers.1/mlp/down_proj"))
    packed, steps = (stored[name] for name in node.input[1:3])
    values = np.stack([packed & 15, packed >> 4], -1).reshape(*steps.shape, -1).astype(np.float32) - 8
    found = (values * steps[..., None]).reshape(len(packed), -1)
    expected = tensors["language_model.layers.1.mlp.down_proj.weight"].rows(0, len(packed))
    assert np.abs(found - expected).max() < 0.51 * steps.max()
    unscaled = opened.tensors["language_model.layers.1.mlp.down_proj.weight"].rows(0, len(packed))
    assert np.abs(found - unscaled).max() > 2 * steps.max()


def test_fp32_has_nothing_to_calibrate(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--calibrate improves rounding, but --precision fp32"):
        export(checkpoint, tmp_path / "b", ExportOptions(precision=Precision.FP32), CHOICE)


def test_rollouts_say_what_they_are_told(plain: Bundle, prompts: list[ImagePrompt]) -> None:
    rollout = Rollout(plain.decoder_path, plain.geometry, plain.embeddings(), threads=1)
    said = rollout.greedy(prompts, 6)
    assert len(set(said)) > 1, "the images must matter, or this test can't fail"
    forced = list(rollout.forced(prompts, [tokens or (0,) for tokens in said]))
    for tokens, logits in zip(said, forced, strict=True):
        assert tuple(logits.argmax(-1)[: len(tokens)]) == tokens
    run = DecoderRun(plain.decoder_path, plain.geometry)
    first = prompts[0]
    alone, _token, _cache = run(first.embeds, list(first.deepstack), first.positions)
    np.testing.assert_allclose(forced[0][0], alone, atol=1e-5)
    assert rollout.step_s(3) > 0
