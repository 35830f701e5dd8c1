"""However config.json is spelled, it is read as transformers reads it; export and verification agree on it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from batchcap.export.checkpoint.checkpoint import open_checkpoint
from batchcap.export.checkpoint.configuration import normalised
from batchcap.export.checkpoint.options import ExportOptions, Precision
from batchcap.export.export import export_bundle
from batchcap.export.transformers_model import load_model
from batchcap.model.geometry import Geometry
from batchcap.verify.options import VerifyOptions
from batchcap.verify.verify import verify_bundle
from tests.checkpoints import DATA, Shape, make_checkpoint

Config = dict[str, Any]
Edit = Callable[[Config], object]

# Where transformers has defaults of its own, the checkpoint has these sizes, so that they can be left out.
SHAPE = Shape(layers=2, levels=(0,), vision_depth=2, head_dim=128, mrope_section=(24, 20, 20), position_side=48)
TEXT_DEFAULTS = ("head_dim", "hidden_act", "attention_bias", "rms_norm_eps", "rope_parameters", "initializer_range")
VISION_DEFAULTS = ("hidden_act", "in_channels", "patch_size", "spatial_merge_size", "temporal_patch_size")
FOREIGN = {"attn_logit_softcapping": 5.0, "partial_rotary_factor": 0.5, "layer_types": ["full_attention"] * 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its spelling is that of the installed transformers."""
    return make_checkpoint(tmp_path_factory.mktemp("spelled") / "plain", SHAPE)


def old_rope(config: Config, *, name: str = "rope_type") -> None:
    """As transformers 4 and Qwen's own files have it."""
    text = config["text_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = {**{key: rope[key] for key in ("mrope_section", "mrope_interleaved")}, name: "default"}
    config["vision_config"]["model_type"] = "qwen3_vl"


def both_ropes(config: Config) -> None:
    """Saved by one version and edited by another: they contradict each other."""
    text = config["text_config"]
    text["rope_scaling"] = {"rope_type": "default", "mrope_section": [22, 21, 21], "rope_theta": 7e4}
    text["rope_theta"] = 3e3


def theta_outside(config: Config) -> None:
    rope = config["text_config"]["rope_parameters"]
    config["text_config"]["rope_theta"] = rope.pop("rope_theta") * 2


def defaults_left_out(config: Config) -> None:
    for part, names in (("text_config", TEXT_DEFAULTS), ("vision_config", VISION_DEFAULTS)):
        for name in names:
            config[part].pop(name, None)
        config[part].pop("model_type")
    for name in ("architectures", "dtype", "transformers_version"):
        config.pop(name, None)


def old_dtype(config: Config) -> None:
    config.pop("dtype", None)
    config["torch_dtype"] = config["text_config"]["torch_dtype"] = "bfloat16"


def foreign_keys(config: Config) -> None:
    """Keys of other models: transformers ignores them, the model builder obeys some."""
    config["text_config"] |= FOREIGN
    config["vision_config"] |= {"window_size": 112, "fullatt_block_indexes": [1]}
    config |= {"use_sliding_window": False, "note": {"a": [1]}}


def tied_twice(config: Config) -> None:
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True


# Those that transformers reads itself.
SPELLINGS: dict[str, Edit] = {
    "as saved": lambda config: None,
    "old names": old_rope,
    "old name of the type": lambda config: old_rope(config, name="type"),
    "both names": both_ropes,
    "rope_theta outside": theta_outside,
    "no rope_theta": lambda config: config["text_config"]["rope_parameters"].pop("rope_theta"),
    "no mrope_section": lambda config: config["text_config"]["rope_parameters"].pop("mrope_section"),
    "defaults left out": defaults_left_out,
    "torch_dtype": old_dtype,
    "foreign keys": foreign_keys,
    "tied at both places": tied_twice,
    "names of other models' sizes": lambda config: config["vision_config"].update(
        num_attention_heads=config["vision_config"].pop("num_heads"),
        num_hidden_layers=config["vision_config"].pop("depth"),
    ),
}


def spelled(checkpoint: Path, folder: Path, change: Edit) -> Path:
    """A copy of a checkpoint with another config.json."""
    copy = Path(shutil.copytree(checkpoint, folder))
    config = json.loads((copy / "config.json").read_text())
    change(config)
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def assert_read_as_by_transformers(folder: Path, geometry: Geometry, config: Config) -> None:
    theirs: Any = Qwen3VLConfig.from_pretrained(folder)
    text, vision, tokens = geometry.text, geometry.vision, geometry.tokens
    assert (text.layers, text.hidden_size, text.heads, text.kv_heads, text.head_dim, text.vocab_size) == (
        theirs.text_config.num_hidden_layers,
        theirs.text_config.hidden_size,
        theirs.text_config.num_attention_heads,
        theirs.text_config.num_key_value_heads,
        theirs.text_config.head_dim,
        theirs.text_config.vocab_size,
    )
    for ours, name in (
        (vision.depth, "depth"),
        (vision.hidden_size, "hidden_size"),
        (vision.intermediate_size, "intermediate_size"),
        (vision.heads, "num_heads"),
        (vision.out_hidden_size, "out_hidden_size"),
        (vision.in_channels, "in_channels"),
        (vision.patch_size, "patch_size"),
        (vision.temporal_patch_size, "temporal_patch_size"),
        (vision.merge_size, "spatial_merge_size"),
        (list(vision.deepstack_levels), "deepstack_visual_indexes"),
        (vision.position_side**2, "num_position_embeddings"),
        (vision.hidden_act, "hidden_act"),
    ):
        assert ours == getattr(theirs.vision_config, name), name
    assert (tokens.image_pad, tokens.vision_start, tokens.vision_end) == (
        theirs.image_token_id,
        theirs.vision_start_token_id,
        theirs.vision_end_token_id,
    )
    ours, rope = config["text_config"], theirs.text_config.rope_parameters
    assert ours["rope_parameters"]["rope_theta"] == rope["rope_theta"]
    assert ours["rope_parameters"]["mrope_section"] == rope.get("mrope_section", [24, 20, 20])
    for name in ("rms_norm_eps", "hidden_act", "attention_bias", "intermediate_size", "max_position_embeddings"):
        assert ours[name] == getattr(theirs.text_config, name), name
    assert config["tie_word_embeddings"] == theirs.tie_word_embeddings


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_read_as_by_transformers(spelling: str, checkpoint: Path, tmp_path: Path) -> None:
    folder = spelled(checkpoint, tmp_path / "copy", SPELLINGS[spelling])
    opened = open_checkpoint(str(folder))
    assert_read_as_by_transformers(folder, opened.geometry, opened.config)


@pytest.mark.parametrize("size", ["2B", "4B", "8B"])
def test_the_published_configurations_are_normalised_once(size: str) -> None:
    """What transformers makes of a normalised configuration is the same configuration again."""
    path = DATA / f"config-{size}.json"
    config = normalised(json.loads(path.read_text()), path)
    assert config == normalised(config, path)
    rope = config["text_config"]["rope_parameters"]
    assert (rope["rope_theta"], rope["mrope_section"], rope["rope_type"]) == (5_000_000, [24, 20, 20], "default")


# Those in which a graph could differ from its check, and those that transformers alone would read otherwise.
EXPORTED: dict[str, Edit] = {
    "old names": old_rope,
    "both names": both_ropes,
    "defaults left out": defaults_left_out,
    "foreign keys": foreign_keys,
    "the type of Qwen2-VL": lambda config: (
        config["text_config"]["rope_parameters"].pop("rope_type"),
        config["text_config"]["rope_parameters"].update(type="mrope"),
    ),
    "tied in the text_config alone": lambda config: (
        config.pop("tie_word_embeddings"),
        config["text_config"].update(tie_word_embeddings=True),
    ),
    "no type": lambda config: config.pop("model_type"),
    "no stop tokens": lambda config: config["text_config"].pop("eos_token_id"),
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("spelling", EXPORTED)
def test_export_and_verification_agree(spelling: str, checkpoint: Path, image: Path, tmp_path: Path) -> None:
    folder = spelled(checkpoint, tmp_path / "copy", EXPORTED[spelling])
    bundle = export_bundle(str(folder), tmp_path / "bundle", ExportOptions(Precision.FP32, context=256))
    report = verify_bundle(bundle.folder, str(folder), VerifyOptions(images=(str(image),), steps=4))
    assert report.passed, report.to_text()


def test_transformers_computes_the_same(checkpoint: Path, tmp_path: Path) -> None:
    """The model of the checks is the one that transformers loads by itself, where it can."""
    folder = spelled(checkpoint, tmp_path / "copy", both_ropes)
    ids = torch.arange(40)[None]
    theirs = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)(input_ids=ids).logits
    ours = load_model(open_checkpoint(str(folder)), torch.float32)(input_ids=ids).logits
    assert torch.equal(ours, theirs)
