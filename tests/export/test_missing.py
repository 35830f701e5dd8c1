"""Weights are read however their files are laid out; what is missing is told with what lies in its place."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from batchcap.core.errors import CheckpointError
from batchcap.export.checkpoint.checkpoint import open_checkpoint
from tests.checkpoints import Shape, make_checkpoint

Tensors = dict[str, Tensor]
Rename = Callable[[str], str]
SHAPE = Shape(layers=2, levels=(0,), vision_depth=2)
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
EMBEDDINGS = "model.language_model.embed_tokens.weight"
MATRIX = "model.language_model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("missing") / "whole", SHAPE)


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may break."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "sharded", SHAPE, max_shard_size="200KB")


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    save_file(change(load_file(folder / WHOLE)), folder / WHOLE, {"format": "pt"})


def renamed(change: Rename) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


def without(*parts: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: one for name, one in tensors.items() if not any(part in name for part in parts)}


def adapted(tensors: Tensors) -> Tensors:
    """As peft saves a model whose adapter was not merged."""
    base = MATRIX.replace(".weight", "")
    matrix = tensors.pop(MATRIX)
    extra = {f"{base}.base_layer.weight": matrix}
    extra |= {f"{base}.lora_{side}.default.weight": matrix[:4].clone() for side in "AB"}
    return tensors | extra


def in_few_bits(*parts: str) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        matrix = tensors.pop(MATRIX)
        return tensors | {MATRIX.removesuffix("weight") + part: matrix[:2].clone() for part in parts}

    return change


# What is done to the tensors, and what the message must say.
IN_ITS_PLACE: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "an adapter that was not merged": (adapted, r"but .*base_layer\.weight: it holds an adapter .*`merge_and_unload`"),
    "an adapter's prefix": (renamed(lambda name: f"base_model.model.{name}"), "it holds an adapter .*merge it into"),
    "a wrapper": (
        renamed(lambda name: f"module.{name}"),
        r"names begin with 'module\.model\.language_model\.' where transformers reads 'model\.language_model\.'",
    ),
    "a compiled model": (renamed(lambda name: f"_orig_mod.{name}"), r"names begin with '_orig_mod\.model\."),
    "a part of a larger model": (renamed(lambda name: f"thinker.{name}"), r"names begin with 'thinker\.model\."),
    "no prefix": (
        renamed(lambda name: name.removeprefix("model.language_model.")),
        r"names begin with '' where transformers reads 'model\.language_model\.'",
    ),
    "another vision tower's prefix": (
        renamed(lambda name: name.replace("model.visual.", "vision_tower.")),
        r"names begin with 'vision_tower\.' where transformers reads 'model\.visual\.'",
    ),
    "no vision tower": (without("visual"), "none that begins with visual.: it is a language model alone"),
    "no language model": (without("language_model"), "none that begins with language_model.: it is a vision tower"),
    "fewer layers": (
        without("layers.1."),
        "1 decoder layers where config.json says 2: config.json and the weights are of different models",
    ),
    "GPTQ without its settings": (in_few_bits("qweight", "scales"), "no quantization_config that says how"),
    "compressed tensors": (in_few_bits("weight_packed", "weight_scale"), "but .*weight_packed: the weights were quant"),
    "one tensor": (without("layers.1.mlp.up_proj"), r"no tensor language_model\.layers\.1\.mlp\.up_proj.*: copy it"),
}


@pytest.mark.parametrize("what", IN_ITS_PLACE)
def test_what_lies_in_its_place(copy: Path, what: str) -> None:
    change, message = IN_ITS_PLACE[what]
    rewrite(copy, change)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(copy))


def test_biases_that_only_the_configuration_has(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["attention_bias"] = True
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"no biases where config\.json wants them \(attention_bias\)"):
        open_checkpoint(str(copy))


def tie(folder: Path, *, top: bool | None, text: bool) -> None:
    """Let config.json tie the head to the embeddings at its top, in its text_config, or say nothing at the top."""
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = text
    config.pop("tie_word_embeddings")
    (folder / "config.json").write_text(json.dumps(config if top is None else config | {"tie_word_embeddings": top}))


def test_no_head(copy: Path) -> None:
    tie(copy, top=False, text=False)
    with pytest.raises(CheckpointError, match=r'no tensor lm_head.* write "tie_word_embeddings": true at the top'):
        open_checkpoint(str(copy))
    tie(copy, top=False, text=True)
    with pytest.raises(CheckpointError, match=r"true in its text_config and false at its top, .* write true at the"):
        open_checkpoint(str(copy))
    rewrite(copy, lambda tensors: tensors | {"model.lm_head.weight": tensors[EMBEDDINGS].clone()})
    with pytest.raises(CheckpointError, match=r"but model\.lm_head\.weight, .*: rename it to lm_head\.weight"):
        open_checkpoint(str(copy))


def test_a_head_tied_in_the_text_config_alone(copy: Path) -> None:
    tie(copy, top=None, text=True)
    opened = open_checkpoint(str(copy))
    assert opened.config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in opened.tensors
    # A head that is there counts, as in transformers.
    rewrite(copy, lambda tensors: tensors | {"lm_head.weight": tensors[EMBEDDINGS] * 2})
    opened = open_checkpoint(str(copy))
    assert opened.config["tie_word_embeddings"] is False
    theirs = Qwen3VLForConditionalGeneration.from_pretrained(copy).lm_head.weight
    assert opened.tensors["lm_head.weight"].rows(0, len(theirs)).tolist() == theirs.tolist()


def test_tied_embeddings_that_are_stored_as_the_head(copy: Path) -> None:
    """As transformers reads them: tying works both ways."""
    tie(copy, top=True, text=True)
    rewrite(copy, lambda tensors: {"lm_head.weight": tensors.pop(EMBEDDINGS), **tensors})
    ours = open_checkpoint(str(copy)).tensors["language_model.embed_tokens.weight"]
    theirs = Qwen3VLForConditionalGeneration.from_pretrained(copy).get_input_embeddings().weight
    assert ours.rows(0, len(theirs)).tolist() == theirs.tolist()


def values(folder: Path) -> dict[str, bytes]:
    tensors = open_checkpoint(str(folder)).tensors
    return {name: tensor.rows(0, tensor.shape[0]).tobytes() for name, tensor in tensors.items()}


def test_shards_without_an_index(sharded: Path) -> None:
    expected = values(sharded)
    (sharded / INDEX).unlink()
    assert values(sharded) == expected
    for number, path in enumerate(sorted(sharded.glob("*.safetensors"))):  # names that count nothing
        path.rename(sharded / f"weights{number}.safetensors")
    assert values(sharded) == expected


def test_shards_without_an_index_of_which_some_are_missing(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    shards = sorted(sharded.glob("*.safetensors"))
    shards[-1].unlink()
    with pytest.raises(CheckpointError, match=rf"{shards[-1].name} is missing: copy the checkpoint's weights again"):
        open_checkpoint(str(sharded))
    shards[0].unlink()
    with pytest.raises(CheckpointError, match=rf"{shards[0].name} and 1 more of its {len(shards)} weight files are"):
        open_checkpoint(str(sharded))


def test_shards_of_two_models_without_an_index(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    first = min(sharded.glob("*.safetensors"))
    shutil.copyfile(first, sharded / "other-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"holds the shards of several models .*leave only those of one there"):
        open_checkpoint(str(sharded))


def test_a_tensor_in_two_files_without_an_index(copy: Path) -> None:
    shutil.copyfile(copy / WHOLE, copy / "a.safetensors")
    (copy / WHOLE).rename(copy / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.safetensors and b\.safetensors in .* both hold .* leave only"):
        open_checkpoint(str(copy))


def test_an_adapter_beside_the_model_is_told(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = values(copy)
    shutil.copyfile(copy / WHOLE, copy / "adapter_model.safetensors")
    (copy / WHOLE).rename(copy / "weights.safetensors")
    with caplog.at_level(logging.WARNING):
        assert values(copy) == expected
    assert "holds an adapter (LoRA) beside the model, which is ignored" in caplog.text


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


@pytest.mark.parametrize("name", [WHOLE, "config.json", "preprocessor_config.json", "generation_config.json"])
def test_pointers_of_a_clone_without_its_large_files(copy: Path, name: str) -> None:
    (copy / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"{name} is a Git LFS pointer, .*git lfs pull"):
        open_checkpoint(str(copy))


@pytest.mark.parametrize("place", ["checkpoint-500", "snapshots/0123abcd"])
def test_the_checkpoint_is_a_folder_deeper(copy: Path, tmp_path: Path, place: str) -> None:
    """The output of a training, or a model in the cache of the Hugging Face hub."""
    folder = tmp_path / "outer"
    (folder / place).parent.mkdir(parents=True)
    copy.rename(folder / place)
    with pytest.raises(CheckpointError, match=rf"config\.json is missing; there is one in .*{place}: give that folder"):
        open_checkpoint(str(folder))
