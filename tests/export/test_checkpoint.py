"""What is not a whole dense Qwen3-VL is refused before any work, with what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from batchcap.errors import CheckpointError
from batchcap.export.checkpoint import open_checkpoint
from batchcap.geometry import Geometry
from tests.checkpoints import DATA, Shape, make_checkpoint, write_hollow_weights

Config = dict[str, Any]


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may break."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def edit(folder: Path, change: Callable[[Config], Any], name: str = "config.json") -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def refuse_moe(config: Config) -> None:
    config["model_type"] = "qwen3_vl_moe"


def refuse_another_family(config: Config) -> None:
    config["model_type"] = "qwen2_5_vl"


def refuse_yarn(config: Config) -> None:
    config["text_config"]["rope_parameters"]["rope_type"] = "yarn"


def refuse_without_sections(config: Config) -> None:
    del config["text_config"]["rope_parameters"]["mrope_section"]


def refuse_without_heads(config: Config) -> None:
    del config["text_config"]["num_attention_heads"]


def refuse_without_vision(config: Config) -> None:
    del config["vision_config"]


REFUSED = {
    refuse_moe: "mixture-of-experts",
    refuse_another_family: "of type 'qwen2_5_vl'; batchcap exports dense Qwen3-VL",
    refuse_yarn: "stretches its positions",
    refuse_without_sections: "no mrope_section",
    refuse_without_heads: "lacks or mistypes 'num_attention_heads'",
    refuse_without_vision: "batchcap exports dense Qwen3-VL",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_configurations_refused(copy: Path, change: Callable[[Config], None]) -> None:
    edit(copy, change)
    with pytest.raises(CheckpointError, match=REFUSED[change]):
        open_checkpoint(str(copy))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_missing_files(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        open_checkpoint(str(copy))


def test_cut_weights(copy: Path) -> None:
    path = copy / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"not a whole safetensors file .* copy the checkpoint again"):
        open_checkpoint(str(copy))


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x05\0\0\0\0\0\0\0[]   "])
def test_weights_that_are_not_safetensors(copy: Path, content: bytes) -> None:
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        open_checkpoint(str(copy))


def test_a_missing_shard(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "sharded", max_shard_size="1MB")
    open_checkpoint(str(checkpoint))
    lost = sorted(checkpoint.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=f"{lost.name} is missing"):
        open_checkpoint(str(checkpoint))


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
    with pytest.raises(CheckpointError, match=r"can't be had from the hub \(no route\): copy the checkpoint here"):
        open_checkpoint("someone/some-model")


@pytest.mark.parametrize(("given", "stop"), [(7, (7,)), ([7, 5], (7, 5))])
def test_stop_tokens_of_the_generation_settings(copy: Path, given: int | list[int], stop: tuple[int, ...]) -> None:
    edit(copy, lambda content: content.update(eos_token_id=given), "generation_config.json")
    assert open_checkpoint(str(copy)).geometry.tokens.stop == stop


def test_stop_tokens_of_the_configuration(copy: Path) -> None:
    (copy / "generation_config.json").unlink()
    edit(copy, lambda content: content["text_config"].update(eos_token_id=9))
    assert open_checkpoint(str(copy)).geometry.tokens.stop == (9,)


def test_the_real_files_of_2b(copy: Path) -> None:
    for name in ("generation_config.json", "preprocessor_config.json"):
        shutil.copyfile(DATA / name, copy / name)
    shutil.copyfile(DATA / "config-2B.json", copy / "config.json")
    config = Qwen3VLConfig.from_pretrained(copy)
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(config)
    write_hollow_weights(copy, {name: tuple(tensor.shape) for name, tensor in model.named_parameters()})
    geometry: Geometry = open_checkpoint(str(copy)).geometry
    assert (geometry.text.layers, geometry.text.hidden_size, geometry.text.head_dim) == (28, 2048, 128)
    assert geometry.vision.deepstack_levels == (5, 11, 17)
    assert (geometry.vision.position_side, geometry.vision.token_side_px) == (48, 32)
    assert (geometry.image.min_area_px, geometry.image.max_area_px) == (65536, 16777216)
    assert geometry.tokens.stop == (151645, 151643)
    assert geometry.tokens.image_pad == 151655


def test_names_hold_no_path(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "deep" / "my-model", Shape(layers=2, levels=(0,)))
    assert open_checkpoint(str(checkpoint)).name == "my-model"
