"""Checkpoints quantized with GPTQ or AWQ keep their numbers: the builder's, and transformers' on what they mean."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime_genai.models.loaders.quant_model import QuantModel
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLForConditionalGeneration

from batchcap.core.errors import CheckpointError, UsageError
from batchcap.export.checkpoint.checkpoint import open_checkpoint
from batchcap.export.checkpoint.options import ExportOptions, Precision
from batchcap.export.export import export_bundle
from batchcap.export.graph.check import DecoderRun
from batchcap.export.graph.parity import _compare, _prompts
from batchcap.export.quality.images import ImageChoice
from batchcap.model.bundle import Bundle
from tests.checkpoints import Shape, make_checkpoint

GROUP = 32
SHAPE = Shape(layers=2, levels=(0, 1), vision_depth=2, tied=False)
OPTIONS = ExportOptions(context=256)
TOLERANCE = 1e-4  # of a logit, as a part of the largest one, with products in float32
METHODS = ("gptq", "awq")
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def packed(values: NDArray[np.uint32], bits: int) -> torch.Tensor:
    """Integers along the last axis, lowest bits first, in int32."""
    per_word = 32 // bits
    words = np.zeros((*values.shape[:-1], values.shape[-1] // per_word), np.uint32)
    for place in range(per_word):
        words |= values[..., place::per_word] << np.uint32(bits * place)
    return torch.from_numpy(words.view(np.int32).copy())


def shuffled(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Outputs [rows, N] in the order that AWQ packs them in."""
    return values.reshape(len(values), -1, 8)[:, :, list(AWQ_ORDER)].reshape(values.shape)


def quantized(weight: torch.Tensor, method: str, bits: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The parts that stand for a matrix [N, K] on the disk, and the numbers [N, K] that they stand for."""
    outputs, inputs = weight.shape
    blocks = weight.float().numpy().reshape(outputs, -1, GROUP)
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    scales = ((high - low) / (2**bits - 1)).astype(np.float16)
    wide = scales.astype(np.float32)
    zeros = np.clip(np.round(-low / wide), 1, 2**bits - 1).astype(np.uint32)
    levels = np.clip(np.round(blocks / wide[..., None]) + zeros[..., None], 0, 2**bits - 1).astype(np.uint32)
    meant = (levels.astype(np.float32) - zeros[..., None]) * wide[..., None]
    levels = levels.reshape(outputs, inputs)
    parts = {"scales": torch.from_numpy(np.ascontiguousarray(scales.T))}
    if method == "gptq":
        parts["qweight"] = packed(levels, bits).T.contiguous()
        parts["qzeros"] = packed(zeros.T - np.uint32(1), bits)
        parts["g_idx"] = torch.arange(inputs, dtype=torch.int32) // GROUP
    else:
        parts["qweight"] = packed(shuffled(np.ascontiguousarray(levels.T)), bits)
        parts["qzeros"] = packed(shuffled(np.ascontiguousarray(zeros.T)), bits)
    return parts, torch.from_numpy(meant.reshape(outputs, inputs).astype(np.float32))


def quantize_checkpoint(checkpoint: Path, target: Path, method: str, bits: int = 4) -> tuple[Path, Path]:
    """A checkpoint as a quantizer leaves it, and one in float32 that means the same."""
    few, meant = (shutil.copytree(checkpoint, target / name) for name in ("few", "meant"))
    tensors = load_file(checkpoint / "model.safetensors")
    parts, plain = dict(tensors), dict(tensors)
    for name in tensors:
        if (name.endswith("_proj.weight") and "language_model" in name) or name == "lm_head.weight":
            found, plain[name] = quantized(parts.pop(name), method, bits)
            parts |= {name.removesuffix("weight") + part: values for part, values in found.items()}
    save_file(parts, few / "model.safetensors", {"format": "pt"})
    save_file(plain, meant / "model.safetensors", {"format": "pt"})
    edit_quantization(few, quant_method=method, bits=bits, group_size=GROUP)
    return few, meant


def edit_quantization(folder: Path, **entries: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {**config.get("quantization_config", {}), **entries}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("stored") / "plain", SHAPE)


def matrices_of(bundle: Bundle) -> dict[str, list[NDArray[Any]]]:
    """Packed integers, scales and zero points of every product, by its place."""
    graph = onnx.load(bundle.decoder_path).graph
    stored = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    return {
        node.name.removesuffix("_Q4").removesuffix("_Q8"): [stored[name] for name in node.input[1:] if name]
        for node in graph.node
        if node.op_type == "MatMulNBits"
    }


@pytest.mark.parametrize(("method", "bits"), [("gptq", 4), ("gptq", 8), ("awq", 4)])
def test_numbers_are_the_model_builders(method: str, bits: int, checkpoint: Path, tmp_path: Path) -> None:
    few, _meant = quantize_checkpoint(checkpoint, tmp_path, method, bits)
    bundle = export_bundle(str(few), tmp_path / "b", OPTIONS)
    assert bundle.precision == f"{method} int{bits} block {GROUP}, others int4 block 128 rtn"
    attributes = {"config": {"bits": bits, "group_size": GROUP}, "use_g_idx": False}
    text = bundle.geometry.text
    sizes = (text.heads * text.head_dim, text.kv_heads * text.head_dim, SHAPE.intermediate, text.layers)
    theirs = QuantModel.from_pretrained(
        method,
        input_path=str(few),
        quant_attrs=attributes,
        q_size=sizes[0],
        kv_size=sizes[1],
        intermediate_size=sizes[2],
        num_layers=sizes[3],
    )
    found = matrices_of(bundle)
    modules = {"/lm_head/MatMul": theirs.lm_head}
    for layer in theirs.layers:
        for kind in "qkvo":
            modules[f"/model/layers.{layer.layer_id}/attn/{kind}_proj/MatMul"] = getattr(
                layer.self_attn, f"{kind}_proj"
            )
        for kind in ("gate", "up", "down"):
            modules[f"/model/layers.{layer.layer_id}/mlp/{kind}_proj/MatMul"] = getattr(layer.mlp, f"{kind}_proj")
    assert found.keys() == modules.keys()
    for name, module in modules.items():
        levels, scales, zeros = found[name]
        np.testing.assert_array_equal(levels, module.qweight.numpy(), name)
        np.testing.assert_array_equal(scales.reshape(-1), module.scales.float().numpy(), name)
        np.testing.assert_array_equal(zeros.reshape(-1), module.qzeros.numpy(), name)


@pytest.mark.parametrize("precision", [Precision.INT4, Precision.FP32])
@pytest.mark.parametrize("method", METHODS)
def test_logits_are_those_of_what_the_bits_mean(
    method: str, precision: Precision, checkpoint: Path, tmp_path: Path
) -> None:
    few, meant = quantize_checkpoint(checkpoint, tmp_path, method)
    bundle = export_bundle(str(few), tmp_path / "b", ExportOptions(precision=precision, context=256))
    model = Qwen3VLForConditionalGeneration.from_pretrained(meant, dtype=torch.float32)
    run = DecoderRun(bundle.decoder_path, bundle.geometry, exact=True)
    for prompt in _prompts(model, bundle.embeddings(), bundle.geometry):
        parity = _compare(run, prompt)
        assert parity.difference < TOLERANCE * parity.scale


def test_zero_points_in_the_middle_are_not_told(checkpoint: Path, tmp_path: Path) -> None:
    few, _meant = quantize_checkpoint(checkpoint, tmp_path, "gptq")
    tensors = load_file(few / "model.safetensors")
    name = "model.language_model.layers.0.mlp.up_proj"
    tensors[f"{name}.qzeros"].fill_(0x77777777)  # 8, less 1
    save_file(tensors, few / "model.safetensors", {"format": "pt"})
    found = matrices_of(export_bundle(str(few), tmp_path / "b", OPTIONS))
    assert len(found["/model/layers.0/mlp/up_proj/MatMul"]) == 2
    assert len(found["/model/layers.0/mlp/gate_proj/MatMul"]) == 3


def out_of_order(tensors: dict[str, torch.Tensor]) -> None:
    index = tensors["model.language_model.layers.1.self_attn.o_proj.g_idx"]
    index[0], index[-1] = int(index[-1]), int(index[0])


def without_scales(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.language_model.layers.1.self_attn.o_proj.scales"]


def cut_zeros(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.language_model.layers.1.self_attn.o_proj.qzeros"
    tensors[name] = tensors[name][:-1].contiguous()


def flat_integers(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.language_model.layers.1.self_attn.o_proj.qweight"
    tensors[name] = tensors[name].flatten()


def few_bits_elsewhere(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    """Make a matrix quantized that the quantizers leave alone."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        parts, _meant = quantized(tensors.pop(f"{name}.weight"), "gptq", 4)
        tensors.update({f"{name}.{part}": values for part, values in parts.items()})

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (flat_integers, r"the parts of language_model\.layers\.1\.self_attn\.o_proj\.weight don't fit together"),
        (few_bits_elsewhere("model.visual.blocks.0.attn.proj"), r"visual\.blocks\.0\.attn\.proj\.weight is quantized"),
        (few_bits_elsewhere("model.language_model.embed_tokens"), r"language_model\.embed_tokens\.weight is quantized"),
        (out_of_order, r"layers\.1\.self_attn\.o_proj\.weight are grouped out of order \(GPTQ with desc_act\)"),
        (without_scales, r"no tensor language_model\.layers\.1\.self_attn\.o_proj\.scales: copy it again"),
        (cut_zeros, r"the parts of language_model\.layers\.1\.self_attn\.o_proj\.weight don't fit together"),
    ],
)
def test_parts_that_cannot_be_kept(
    edit: Callable[[dict[str, torch.Tensor]], None], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    few, _meant = quantize_checkpoint(checkpoint, tmp_path, "gptq")
    tensors = load_file(few / "model.safetensors")
    edit(tensors)
    save_file(tensors, few / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(few))


@pytest.mark.parametrize(
    ("method", "entries", "message"),
    [
        ("gptq", {"bits": "few"}, r"config\.json has a missing or invalid setting: invalid literal"),
        ("awq", {"group_size": None}, r"config\.json has a missing or invalid setting:"),
        ("gptq", {"bits": 3}, r"gptq, 3 bits: take the checkpoint that it was made from"),
        ("awq", {"bits": 8}, r"awq, 8 bits"),
        ("gptq", {"group_size": -1}, r"gptq, groups of -1"),
        ("gptq", {"checkpoint_format": "gptq_v2"}, r"the layout gptq_v2"),
        ("awq", {"version": "gemv"}, r"the layout gemv"),
        ("gptq", {"dynamic": {"+:.*up_proj": {"bits": 8}}}, r"other bits for some matrices"),
    ],
)
def test_schemes_that_are_refused(
    method: str, entries: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    few = shutil.copytree(checkpoint, tmp_path / "few")
    edit_quantization(few, quant_method=method, bits=4, group_size=GROUP)
    edit_quantization(few, **entries)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(few))


def test_a_quantized_checkpoint_is_not_scaled(checkpoint: Path, tmp_path: Path) -> None:
    few, _meant = quantize_checkpoint(checkpoint, tmp_path, "awq")
    with pytest.raises(UsageError, match=r"--calibrate needs a checkpoint in BF16, F16 or F32; this one was quantized"):
        export_bundle(str(few), tmp_path / "b", OPTIONS, calibrate=ImageChoice())
