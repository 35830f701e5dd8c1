"""What is not a whole dense Qwen3-VL is refused before any work, with what to do."""

import json
import logging
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

from batchcap.core.errors import CheckpointError
from batchcap.export.checkpoint.checkpoint import open_checkpoint
from batchcap.export.checkpoint.requirements import VISION_ACTIVATIONS
from batchcap.export.graph.vision_graph import ACTIVATIONS as ONNX_ACTIVATIONS
from batchcap.vision.tower import ACTIVATIONS as TORCH_ACTIVATIONS
from tests.checkpoints import Shape, make_checkpoint

Config = dict[str, Any]
IMAGES = "preprocessor_config.json"


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may break."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def edit(folder: Path, change: Callable[[Config], Any], name: str = "config.json") -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def text(**values: object) -> Callable[[Config], None]:
    """An edit of config.json's text_config."""
    return lambda config: config["text_config"].update(values)


def vision(**values: object) -> Callable[[Config], None]:
    return lambda config: config["vision_config"].update(values)


def whole(**values: object) -> Callable[[Config], None]:
    return lambda config: config.update(values)


def rope(**values: object) -> Callable[[Config], None]:
    return lambda config: config["text_config"]["rope_parameters"].update(values)


def without(part: str, name: str) -> Callable[[Config], None]:
    return lambda config: config[part].pop(name)


def quantized(method: str) -> Callable[[Config], None]:
    return whole(quantization_config={"quant_method": method})


# What is wrong: the edit of config.json, and what the message must say.
REFUSED: dict[str, tuple[Callable[[Config], Any], str]] = {
    "mixture of experts": (whole(model_type="qwen3_vl_moe"), "mixture-of-experts"),
    "experts under a dense name": (text(num_experts=128), "mixture-of-experts"),
    "another family": (whole(model_type="qwen2_5_vl"), "of type 'qwen2_5_vl'; batchcap exports dense Qwen3-VL"),
    "text alone": (lambda config: config.pop("vision_config"), "has no vision_config: .*exports dense Qwen3-VL"),
    "no type": (lambda config: (config.pop("model_type"), config.pop("architectures")), "names no model type"),
    "fp8": (quantized("fp8"), r"was quantized before \(fp8\): give the checkpoint it was made from, in BF16"),
    "bitsandbytes": (quantized("bitsandbytes"), r"was quantized before \(bitsandbytes\)"),
    "quantized text": (text(quantization_config={"bits": 8}), r"was quantized before \(by a method it does not name\)"),
    "stretched positions": (rope(rope_type="yarn"), "uses RoPE scaling"),
    "no sections": (
        lambda config: config["text_config"]["rope_parameters"].pop("mrope_section"),
        "mrope_section must be three numbers",
    ),
    "no heads": (without("text_config", "num_attention_heads"), "config.json and the weights are of different models"),
    "no head": (text(num_attention_heads=0), "at least 1"),
    "layers in words": (text(num_hidden_layers="many"), "has a missing or invalid setting: .*many"),
    "no object": (whole(text_config=[]), "has no text_config: copy the one of the whole model"),
    "kv heads": (text(num_key_value_heads=3), "num_key_value_heads must divide num_attention_heads"),
    "sections": (rope(mrope_section=[6, 5, 4]), "mrope_section must be three numbers that add up to half of head_dim"),
    "two sections": (rope(mrope_section=[8, 8]), "mrope_section must be three numbers"),
    "narrow heads": (
        lambda config: (text(head_dim=12)(config), rope(mrope_section=[2, 2, 2])(config)),
        "head_dim must be a multiple of 8, not 12",
    ),
    "token ids": (whole(image_token_id=151655), "ids of the image's tokens must be below vocab_size"),
    "text activation": (text(hidden_act="quick_gelu"), "hidden_act of the language model is 'quick_gelu', not one of"),
    "vision activation": (vision(hidden_act="silu"), "hidden_act of the vision tower is 'silu', not one of"),
    "a window": (text(sliding_window=4096), "every decoder layer must attend to all tokens"),
    "a window in one layer": (text(layer_types=["full_attention", "sliding_attention"] * 2), "attend to all tokens"),
    "positions": (vision(num_position_embeddings=63), "num_position_embeddings must be a square"),
    "vision width": (vision(out_hidden_size=64), "out_hidden_size must be the language model's hidden_size"),
    "vision heads": (vision(num_heads=3), "num_heads must divide its hidden_size"),
    "narrow vision heads": (vision(num_heads=32), "vision tower's head size must be a multiple of 4, not 2"),
    "channels": (vision(in_channels=4), "images have 3 channels, not 4"),
    "levels in disorder": (vision(deepstack_visual_indexes=[2, 1]), "different blocks in rising order"),
    "a level too deep": (vision(deepstack_visual_indexes=[4]), "different blocks in rising order"),
    "more levels than layers": (text(num_hidden_layers=2), "a decoder layer for each of deepstack_visual_indexes"),
    "patches": (vision(patch_size=14), "patch_size is 16, and the vision tower has 14"),
    "merge": (vision(spatial_merge_size=4), "merge_size is 2, and the vision tower has 4"),
    "frames": (vision(temporal_patch_size=1), "temporal_patch_size is 2, and the vision tower has 1"),
    "a shape": (text(intermediate_size=300), r"gate_proj.weight has the shape \[256, 128\], and .* \[300, 128\]"),
    "a missing tensor": (text(num_hidden_layers=5), "no tensor language_model.layers.4.self_attn.q_proj.weight"),
    "a missing head": (whole(tie_word_embeddings=False), "no tensor lm_head.weight"),
    "an endless size": (
        text(hidden_size=float("inf")),
        "has a missing or invalid setting: .*'hidden_size' expected int, got float",
    ),
    "a vision tower that turns otherwise": (
        vision(rope_parameters={"rope_type": "axial", "rope_theta": 100.0}),
        "rope_theta of the vision tower must be 10000, not 100.0",
    ),
    "a missing bias": (text(attention_bias=True), "no tensor language_model.layers.0.self_attn.q_proj.bias"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_configurations_refused(copy: Path, what: str) -> None:
    change, message = REFUSED[what]
    edit(copy, change)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(copy))


def test_a_window_that_is_switched_off(copy: Path) -> None:
    """As other Qwen models have it in their config.json."""
    edit(copy, text(sliding_window=4096, use_sliding_window=False))
    open_checkpoint(str(copy))


IMAGES_REFUSED: dict[str, tuple[Config, str]] = {
    "no resize": ({"do_resize": False}, "with do_resize True, and not with False"),
    "another resampling": ({"resample": 2}, "with resample 3, and not with 2"),
    "one mean": ({"image_mean": [0.5]}, "has a missing or invalid setting:"),
    "half a size": (
        {"size": {"longest_edge": 1}},
        r"preprocessor_config\.json has a missing or invalid setting: 'shortest_edge'",
    ),
    "four means": ({"image_mean": [0.5] * 4}, "one number for each channel"),
    "no deviation": ({"image_std": [0.5, 0, 0.5]}, "no deviation 0"),
    "no mean": ({"image_mean": [0.5, float("nan"), 0.5]}, "must be finite"),
    "no largest area": ({"size": {"shortest_edge": 4096, "longest_edge": -1}}, "smallest area must be at most the"),
    "less than a token": ({"size": {"shortest_edge": 1, "longest_edge": 1023}}, "has room for one visual token"),
}


@pytest.mark.parametrize("what", IMAGES_REFUSED)
def test_image_settings_refused(copy: Path, what: str) -> None:
    change, message = IMAGES_REFUSED[what]
    edit(copy, lambda images: images.update(change), "preprocessor_config.json")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(copy))


def test_older_names_of_the_areas_come_first(copy: Path) -> None:
    """As in transformers' image processor."""
    edit(copy, lambda images: images.update(min_pixels=4096, max_pixels=65536), "preprocessor_config.json")
    image = open_checkpoint(str(copy)).geometry.image
    processor = Qwen2VLImageProcessorPil.from_pretrained(copy)
    assert (image.min_area_px, image.max_area_px) == (4096, 65536)
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (4096, 65536)


def test_image_settings_that_are_left_out_are_the_processors(copy: Path) -> None:
    edit(copy, lambda images: [images.pop(name) for name in ("size", "image_mean", "image_std")], IMAGES)
    image = open_checkpoint(str(copy)).geometry.image
    processor = Qwen2VLImageProcessorPil.from_pretrained(copy)
    assert (image.min_area_px, image.max_area_px) == (processor.size["shortest_edge"], processor.size["longest_edge"])
    assert (image.mean, image.std) == (tuple(processor.image_mean), tuple(processor.image_std))


def test_settings_inside_those_of_the_processor_come_first(copy: Path) -> None:
    """As transformers 5 saves them, and as it reads them."""
    images = json.loads((copy / "preprocessor_config.json").read_text())
    nested = {**images, "size": {"shortest_edge": 4096, "longest_edge": 65536}, "image_mean": [0.1, 0.2, 0.3]}
    path = copy / "processor_config.json"
    path.write_text(json.dumps({"image_processor": nested, "processor_class": "Qwen3VLProcessor"}))
    for _saved in ("beside the older file", "alone"):
        image = open_checkpoint(str(copy)).geometry.image
        processor = Qwen2VLImageProcessorPil.from_pretrained(copy)
        assert (image.min_area_px, image.max_area_px, image.mean) == (4096, 65536, (0.1, 0.2, 0.3))
        assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (4096, 65536)
        assert tuple(processor.image_mean) == image.mean
        (copy / "preprocessor_config.json").unlink(missing_ok=True)
    path.write_text(json.dumps({"image_processor": {**nested, "image_std": [1]}}))
    with pytest.raises(CheckpointError, match=r"processor_config\.json has a missing or invalid setting:"):
        open_checkpoint(str(copy))


# What people take for a checkpoint: the files in the folder, and what the message must say.
NO_CHECKPOINTS: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing": ((), "is empty: copy the checkpoint into it first"),
    "GGUF": (("model-Q4_K_M.gguf", "mmproj.gguf"), r"GGUF files, which are for llama\.cpp"),
    "GGUF with a configuration": (("config.json", "model.gguf"), "GGUF files"),
    "an adapter": (
        ("adapter_config.json", "adapter_model.safetensors", "README.md"),
        r"is an adapter \(LoRA\), .*merge",
    ),
    "an adapter without weights": (("adapter_config.json",), r"is an adapter \(LoRA\)"),
    "a bundle": (("bundle.json", "config.json"), "is a bundle already: pass it to `batchcap caption` with --model"),
    "pickles": (("config.json", "pytorch_model.bin"), "save them as safetensors first"),
    "the state of a training": (("config.json", "zero_to_fp32.py", "pytorch_model.bin"), "run `python zero_to_fp32.py"),
    "pictures": (("a.jpg", "b.jpg"), r"config\.json is missing"),
}


@pytest.mark.parametrize("what", NO_CHECKPOINTS)
def test_folders_that_are_no_checkpoint(tmp_path: Path, what: str) -> None:
    files, message = NO_CHECKPOINTS[what]
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(tmp_path))


def test_a_file_is_no_checkpoint(copy: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a file: give the folder"):
        open_checkpoint(str(copy / "model.safetensors"))


def test_known_activations_are_those_of_the_encoders() -> None:
    assert set(VISION_ACTIVATIONS) == set(TORCH_ACTIVATIONS) == set(ONNX_ACTIVATIONS)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_missing_files(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        open_checkpoint(str(copy))


def test_cut_weights(copy: Path) -> None:
    path = copy / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"not a complete safetensors file .* copy the checkpoint again"):
        open_checkpoint(str(copy))


def rewrite_header(path: Path, change: Callable[[Config], Any]) -> None:
    """Edit the JSON header of a safetensors file; the tensors stay where they are."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


NORM = "model.language_model.norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.pop(NORM), r"has no tensor language_model\.norm\.weight \[128\]: copy it again"),
        (lambda header: header[NORM].update(dtype="F8_E4M3"), "is F8_E4M3; .*take the one that was not quantized"),
        (lambda header: header[NORM].update(shape=[64]), r"has the shape \[64\], but config.json says \[128\]"),
        (
            lambda header: header[NORM].update(dtype="F16"),
            r"takes 512 bytes in .*, which does not match \[128\] in F16",
        ),
        (lambda header: header[NORM].pop("data_offsets"), "is not a complete safetensors file"),
        (lambda header: header[NORM].update(data_offsets=[-512, 0]), "lies from -512 to 0"),
        (lambda header: header[NORM].update(data_offsets=["a", "b"]), "is not a complete safetensors file"),
    ],
    ids=["missing", "fp8", "shape", "bytes", "no place", "before the file", "no numbers"],
)
def test_tensors_refused(copy: Path, change: Callable[[Config], Any], message: str) -> None:
    rewrite_header(copy / "model.safetensors", change)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(copy))


# As transformers wrote the names before version 4.52, and with the parts the other way round.
OLDER_NAMES = {
    "bare": (("model.language_model.", "model."), ("model.visual.", "visual.")),
    "part first": (("model.language_model.", "language_model.model."), ("model.visual.", "visual.")),
}


@pytest.mark.parametrize("spelling", OLDER_NAMES)
def test_older_names_are_the_same_tensors(copy: Path, spelling: str) -> None:
    def rename(header: Config) -> None:
        entries = list(header.items())
        header.clear()
        for name, entry in entries:
            head = next((pair for pair in OLDER_NAMES[spelling] if name.startswith(pair[0])), ("", ""))
            header[head[1] + name.removeprefix(head[0])] = entry

    before = open_checkpoint(str(copy)).tensors
    values = {name: tensor.rows(0, tensor.shape[0]).tobytes() for name, tensor in before.items()}
    rewrite_header(copy / "model.safetensors", rename)
    after = open_checkpoint(str(copy)).tensors
    assert {name: tensor.rows(0, tensor.shape[0]).tobytes() for name, tensor in after.items()} == values


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x05\0\0\0\0\0\0\0[]   "])
def test_weights_that_are_not_safetensors(copy: Path, content: bytes) -> None:
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        open_checkpoint(str(copy))


def test_a_shard_cut_short_and_then_missing(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "sharded", max_shard_size="1MB")
    open_checkpoint(str(checkpoint))
    lost = sorted(checkpoint.glob("model-*.safetensors"))[1]
    with lost.open("r+b") as file:
        file.truncate(lost.stat().st_size // 2)
    with pytest.raises(
        CheckpointError, match=f"{lost.name} is not a complete safetensors file .it ends inside the tensor"
    ):
        open_checkpoint(str(checkpoint))
    lost.unlink()
    with pytest.raises(CheckpointError, match=f"{lost.name} is missing"):
        open_checkpoint(str(checkpoint))


def test_one_whole_file_comes_before_shards_left_beside_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """As in transformers: a model saved over an older one must not be read from the older one's shards."""
    checkpoint = make_checkpoint(tmp_path / "sharded", seed=5, max_shard_size="1MB")
    shutil.copyfile(tiny_checkpoint / "model.safetensors", checkpoint / "model.safetensors")
    assert {tensor.path.name for tensor in open_checkpoint(str(checkpoint)).tensors.values()} == {"model.safetensors"}
    theirs = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint).model.language_model.norm.weight
    ours = open_checkpoint(str(tiny_checkpoint)).tensors["language_model.norm.weight"]
    assert ours.rows(0, len(theirs)).tolist() == theirs.tolist()


@pytest.mark.parametrize("place", ["../secret.safetensors", "/secret.safetensors", "a/../../secret.safetensors"])
def test_a_shard_outside_the_checkpoint(copy: Path, place: str) -> None:
    shutil.move(copy / "model.safetensors", copy.parent / "secret.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {NORM: place}}))
    with pytest.raises(CheckpointError, match=r"index\.json names .*secret\.safetensors, which is outside"):
        open_checkpoint(str(copy))


def test_nested_without_end(copy: Path) -> None:
    (copy / "generation_config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"can't read .*generation_config\.json"):
        open_checkpoint(str(copy))


def test_tensors_of_something_else_are_left_out(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A buffer that an older version saved, say: the vision encoders take their own tensors only."""
    other = "model.visual.rotary_pos_emb.inv_freq"
    rewrite_header(copy / "model.safetensors", lambda header: header.update({other: header[NORM]}))
    with caplog.at_level(logging.WARNING):
        tensors = open_checkpoint(str(copy)).tensors
    assert "visual.rotary_pos_emb.inv_freq" not in tensors
    assert "language_model.norm.weight" in tensors
    assert "ignored 1 tensors that are not part of this model: visual.rotary_pos_emb.inv_freq" in caplog.text


def test_a_head_of_its_own_counts_whatever_the_configuration_says(tmp_path: Path) -> None:
    """As in transformers, which goes by the weights."""
    checkpoint = make_checkpoint(tmp_path / "lies", Shape(layers=2, levels=(0,), tied=False))
    edit(checkpoint, whole(tie_word_embeddings=True))
    opened = open_checkpoint(str(checkpoint))
    theirs = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint).lm_head.weight
    ours = opened.tensors["lm_head.weight"]
    assert ours.rows(0, len(theirs)).tolist() == theirs.tolist()
    assert opened.config["tie_word_embeddings"] is False


def test_a_head_that_is_stored_twice_stays_tied(copy: Path) -> None:
    embeddings = "model.language_model.embed_tokens.weight"
    rewrite_header(copy / "model.safetensors", lambda header: header.update({"lm_head.weight": header[embeddings]}))
    opened = open_checkpoint(str(copy))
    assert opened.config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in opened.tensors


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint folder at"):
        open_checkpoint(str(tmp_path / "nowhere"))


def test_a_hub_name_is_downloaded(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(name: str, **options: object) -> str:
        asked.append(name)
        return str(tiny_checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    opened = open_checkpoint("someone/some-model")
    assert asked == ["someone/some-model"]
    assert (opened.name, opened.folder) == ("someone/some-model", tiny_checkpoint)


def test_a_hub_name_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, **options: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(
        CheckpointError, match=r"can't be downloaded from the hub \(no route\): download the checkpoint"
    ):
        open_checkpoint("someone/some-model")


@pytest.mark.parametrize(("given", "stop"), [(7, (7,)), ([7, 5], (7, 5))])
def test_stop_tokens_of_the_generation_settings(copy: Path, given: int | list[int], stop: tuple[int, ...]) -> None:
    edit(copy, lambda content: content.update(eos_token_id=given), "generation_config.json")
    assert open_checkpoint(str(copy)).geometry.tokens.stop == stop


@pytest.mark.parametrize("given", [[], [7, 384], -1])
def test_stop_tokens_that_never_come(copy: Path, given: int | list[int]) -> None:
    edit(copy, lambda content: content.update(eos_token_id=given), "generation_config.json")
    with pytest.raises(CheckpointError, match="eos_token_id must name at least one token"):
        open_checkpoint(str(copy))


def test_stop_tokens_of_the_configuration(copy: Path) -> None:
    (copy / "generation_config.json").unlink()
    edit(copy, lambda content: content["text_config"].update(eos_token_id=9))
    assert open_checkpoint(str(copy)).geometry.tokens.stop == (9,)


def test_stop_tokens_at_the_top_of_the_configuration_come_first(copy: Path) -> None:
    """As in transformers (`GenerationConfig.from_model_config`)."""
    (copy / "generation_config.json").unlink()
    edit(copy, lambda config: (config.update(eos_token_id=[8, 7]), text(eos_token_id=9)(config)))
    theirs = Qwen3VLForConditionalGeneration.from_pretrained(copy).generation_config
    assert open_checkpoint(str(copy)).geometry.tokens.stop == (8, 7) == tuple(theirs.eos_token_id)


def test_no_stop_tokens(copy: Path) -> None:
    (copy / "generation_config.json").unlink()
    edit(copy, without("text_config", "eos_token_id"))
    with pytest.raises(CheckpointError, match=r"names no eos_token_id, .*: copy generation_config\.json"):
        open_checkpoint(str(copy))


def test_names_hold_no_path(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "deep" / "my-model", Shape(layers=2, levels=(0,)))
    assert open_checkpoint(str(checkpoint)).name == "my-model"
