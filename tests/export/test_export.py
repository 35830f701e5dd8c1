"""An export appears whole or not at all, gives the same bytes again, and keeps what was there."""

import json
import shutil
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from batchcap.core.errors import BatchcapError, CheckpointError, UsageError
from batchcap.export import export
from batchcap.export.checkpoint.options import ExportOptions, RoundingAlgorithm
from batchcap.export.export import export_bundle
from batchcap.export.graph.check import DecoderRun
from batchcap.model.bundle import BUNDLE_FILE, Bundle
from tests.checkpoints import Shape, make_checkpoint
from tests.export.drawings import drawn_anew, drawn_once

SMALL = Shape(layers=2, levels=(0, 1), vision_depth=2)
OPTIONS = ExportOptions(block_size=32, context=128)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("export") / "small", SMALL)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    with drawn_anew():
        return export_bundle(str(checkpoint), tmp_path_factory.mktemp("export") / "bundle", OPTIONS)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def description(bundle: Bundle) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((bundle.folder / BUNDLE_FILE).read_text())
    return content


def older_spelling(checkpoint: Path, target: Path) -> Path:
    """The checkpoint as transformers 4 would have written it: rope_theta beside rope_scaling, template in JSON."""
    shutil.copytree(checkpoint, target)
    config = json.loads((target / "config.json").read_text())
    rope = config["text_config"].pop("rope_parameters")
    config["text_config"] |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (target / "config.json").write_text(json.dumps(config))
    template = target / "chat_template.jinja"
    (target / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
    template.unlink()
    return target


def test_the_same_checkpoint_gives_the_same_bytes(checkpoint: Path, bundle: Bundle, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(checkpoint, tmp_path / "elsewhere" / checkpoint.name)
    with drawn_once(tmp_path / "drawings"):  # nothing is there yet; and not by a process of its own, as the first one
        again = export_bundle(str(elsewhere), tmp_path / "again", OPTIONS)
    assert contents(again.folder) == contents(bundle.folder)
    once_for_all_tests = export_bundle(str(elsewhere), tmp_path / "once", OPTIONS)
    assert contents(once_for_all_tests.folder) == contents(bundle.folder)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_no_repository_around_an_export_is_in_its_bytes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither that of the working folder nor the one that GIT_DIR names, which git asks before all others."""
    made = []
    for name in ("one", "other"):
        repository = tmp_path / name
        monkeypatch.delenv("GIT_DIR", raising=False)
        subprocess.run(["git", "init", "-q", str(repository)], check=True)
        author = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        git = ["git", "-C", str(repository), *author]
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", name], check=True)
        monkeypatch.setenv("GIT_DIR", str(repository / ".git"))
        monkeypatch.chdir(repository)
        made.append(export_bundle(str(checkpoint), repository / "bundle", OPTIONS))
    heads = {
        subprocess.check_output(["git", f"--git-dir={tmp_path / name}/.git", "rev-parse", "HEAD"])
        for name in ("one", "other")
    }
    assert len(heads) == 2, "else nothing is shown"
    assert made[0].id == made[1].id
    assert contents(made[0].folder) == contents(made[1].folder)
    model = onnx.load(made[0].decoder_path, load_external_data=False)
    assert model.producer_name == "onnxruntime-genai"
    assert model.producer_version.partition("+")[0] == version("onnxruntime-genai")
    assert not any(head[:7] in contents(made[0].folder)["decoder/model.onnx"] for head in heads)


def test_no_path_of_this_machine_is_in_it(bundle: Bundle) -> None:
    for name, content in contents(bundle.folder).items():
        assert str(Path.home()).encode() + b"/" not in content, name
        assert str(bundle.folder.parent).encode() not in content, name


def test_older_spelling_gives_the_same_decoder(checkpoint: Path, bundle: Bundle, tmp_path: Path) -> None:
    older = export_bundle(str(older_spelling(checkpoint, tmp_path / "older")), tmp_path / "bundle", OPTIONS)
    mine, theirs = contents(older.folder), contents(bundle.folder)
    for name in ("decoder/model.onnx", "decoder/model.onnx.data", "chat_template.jinja", "vision/model.safetensors"):
        assert mine[name] == theirs[name], name
    assert older.geometry == bundle.geometry


def test_the_graph_has_what_the_decoder_needs(bundle: Bundle) -> None:
    graph = onnx.load(bundle.decoder_path, load_external_data=False).graph
    shapes = {value.name: len(value.type.tensor_type.shape.dim) for value in (*graph.input, *graph.output)}
    assert shapes["position_ids"] == 3
    assert [name for name in shapes if name.startswith("deepstack_embeds")] == [
        "deepstack_embeds.0",
        "deepstack_embeds.1",
    ]
    assert "input_ids" not in shapes
    assert shapes["next_token"] == 2
    caches = [value for value in graph.initializer if value.name in ("cos_cache", "sin_cache")]
    assert len(caches) == 2
    assert all(value.dims[0] == OPTIONS.context for value in caches)


def test_next_token_is_the_argmax_also_when_logits_are_not_asked_for(bundle: Bundle) -> None:
    geometry = bundle.geometry
    embeds = bundle.embeddings().lookup(np.arange(5, 14))
    levels = [np.zeros_like(embeds) for _level in geometry.vision.deepstack_levels]
    positions = np.broadcast_to(np.arange(9), (3, 9)).astype(np.int64)
    logits, token, _cache = DecoderRun(bundle.decoder_path, geometry)(embeds, levels, positions)
    assert token == logits.argmax()
    session = onnxruntime.InferenceSession(str(bundle.decoder_path), providers=["CPUExecutionProvider"])
    text = geometry.text
    feed = {"inputs_embeds": embeds[None], "position_ids": positions[:, None], "attention_mask": np.ones((1, 9), int)}
    feed |= {f"deepstack_embeds.{index}": level[None] for index, level in enumerate(levels)}
    empty = np.zeros((1, text.kv_heads, 0, text.head_dim), np.float32)
    feed |= {f"past_key_values.{layer}.{kind}": empty for layer in range(text.layers) for kind in ("key", "value")}
    assert session.run(["next_token"], feed)[0].tolist() == [[token]]


def test_the_last_layer_computes_the_last_token_alone(tiny_bundle_fp32: Bundle) -> None:
    text = tiny_bundle_fp32.geometry.text
    model = onnx.load(tiny_bundle_fp32.decoder_path)
    names = [f"/model/layers.{layer}/mlp/down_proj/MatMul/output_0" for layer in range(text.layers)]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    tokens = 7
    cache = np.zeros((1, text.kv_heads, 0, text.head_dim), np.float32)
    feed = {
        value.name: cache if value.name.startswith("past") else np.zeros((1, tokens, text.hidden_size), np.float32)
        for value in session.get_inputs()
    }
    feed["attention_mask"] = np.ones((1, tokens), np.int64)
    feed["position_ids"] = np.zeros((3, 1, tokens), np.int64)
    shapes = [array.shape for array in session.run(names, feed)]
    assert shapes == [*[(1, tokens, text.hidden_size)] * (text.layers - 1), (1, 1, text.hidden_size)]


def test_the_check_is_recorded(bundle: Bundle, tiny_bundle_fp32: Bundle) -> None:
    rounded, exact = description(bundle)["check"], description(tiny_bundle_fp32)["check"]
    assert rounded["deepstack_change"] > 0
    assert "reference_difference" not in rounded
    assert exact["reference_difference"] <= 1e-4
    assert exact["split_difference"] <= 1e-4


def test_options_reach_the_graph(checkpoint: Path, bundle: Bundle, tmp_path: Path) -> None:
    options = ExportOptions(block_size=64, context=128, algorithm=RoundingAlgorithm.K_QUANT)
    made = export_bundle(str(checkpoint), tmp_path / "bundle", options)
    assert made.id != bundle.id
    assert made.precision == "int4 block 64 k_quant"
    graph = onnx.load(made.decoder_path, load_external_data=False).graph
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]
    wanted = ("bits", "block_size", "accuracy_level")
    facts = {(one.name, one.i) for node in nodes for one in node.attribute if one.name in wanted}
    assert facts == {("bits", 4), ("block_size", 64), ("accuracy_level", 4)}
    assert len(nodes) == 7 * SMALL.layers + 1  # q, k, v, o, gate, up, down of each layer, and the head


@pytest.fixture
def built_before(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the decoder from the bundle instead of building it: for tests of what happens around it."""

    def copy(
        _checkpoint: object, options: ExportOptions, folder: Path, *_images: object
    ) -> tuple[ExportOptions, dict[str, Any]]:
        shutil.copytree(bundle.decoder_path.parent, folder / "decoder")
        return options, options.precision_facts()

    monkeypatch.setattr(export, "write_decoder", copy)


@pytest.mark.usefixtures("built_before")
def test_an_existing_bundle_is_replaced_only_when_asked(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    first = export_bundle(str(checkpoint), output, OPTIONS)
    with pytest.raises(UsageError, match=r"already: pass --overwrite"):
        export_bundle(str(checkpoint), output, OPTIONS)
    second = export_bundle(str(checkpoint), output, ExportOptions(block_size=32, context=64), overwrite=True)
    assert second.id != first.id
    assert Bundle.load(output).context == 64  # as the options say; the graph is the same one here
    assert list(tmp_path.iterdir()) == [output]


def test_another_folder_is_never_replaced(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UsageError, match="exists and is not a bundle"):
        export_bundle(str(checkpoint), tmp_path, OPTIONS, overwrite=True)
    assert (tmp_path / "holiday.jpg").exists()


def test_a_link_to_nowhere_is_in_the_way(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="exists and is not a bundle"):
        export_bundle(str(checkpoint), tmp_path / "bundle", OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.usefixtures("built_before")
def test_a_failed_export_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "check_decoder", full)
    with pytest.raises(BatchcapError, match="No space left on device"):
        export_bundle(str(checkpoint), tmp_path / "bundle", OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_the_builders_own_words_are_shown_when_it_fails(checkpoint: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    (broken / "tokenizer_config.json").write_text('{"added_tokens_decoder": 5}')  # nothing that batchcap looks at
    with pytest.raises(
        CheckpointError, match=r"(?s)model builder could not build the decoder.*has no attribute 'items'"
    ):
        export_bundle(str(broken), tmp_path / "bundle", OPTIONS)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_files_a_prompt_needs(checkpoint: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        export_bundle(str(copy), tmp_path / "bundle", OPTIONS)
    assert not (tmp_path / "bundle").exists()


def test_a_tokenizer_that_a_clone_left_behind(checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    (copy / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is a Git LFS pointer, .*git lfs pull"):
        export_bundle(str(copy), tmp_path / "bundle", OPTIONS)


def rewrite(folder: Path, tensor: str, change: Callable[[NDArray[np.float32]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors[tensor])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit(folder: Path, name: str, **values: object) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | values))


def not_a_number(values: NDArray[np.float32]) -> None:
    values[3, 5] = np.nan


def other_token_of_images(folder: Path) -> None:
    edit(folder, "config.json", image_token_id=1)


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(b"")


def tokenizer_in_a_folder(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").mkdir()


def tokenizer_of_another_model(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    content = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        if token["content"] == "<|im_start|>":
            token["id"] = content["model"]["vocab"]["<|im_start|>"] = 9999
    (folder / "tokenizer.json").write_text(json.dumps(content))


def template_in_another_encoding(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes("Bild f\xfcr".encode("latin-1"))


def template_without_an_image(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0].role }}")


def template_in_broken_json(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text("{")


def a_token_that_is_no_number(folder: Path) -> None:
    rewrite(folder, "model.language_model.embed_tokens.weight", not_a_number)


def a_vision_weight_that_is_no_number(folder: Path) -> None:
    rewrite(folder, "model.visual.blocks.1.mlp.linear_fc1.weight", not_a_number)


DAMAGES: dict[Callable[[Path], None], str] = {
    other_token_of_images: "gives 0 places for an image",
    broken_tokenizer: r"damaged/tokenizer\.json can't be read",
    tokenizer_in_a_folder: r"can't read .*damaged/tokenizer\.json \(Is a directory\): copy",
    tokenizer_of_another_model: r"gives ids of 384 or more, but the model has only 384 tokens",
    template_in_another_encoding: r"can't read .*chat_template\.jinja: 'utf-8' codec",
    template_without_an_image: r"damaged/chat_template\.jinja gives 0 places for an image",
    template_in_broken_json: r"can't read .*chat_template\.json",
    a_token_that_is_no_number: "the embeddings of token 3 are not finite",
    a_vision_weight_that_is_no_number: "vision encoder gave numbers that are not finite: the weights may be damaged",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_would_show_with_the_first_image(
    checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "write_decoder", lambda *_: pytest.fail("this comes before the work"))
    copy = shutil.copytree(checkpoint, tmp_path / "damaged")
    damage(copy)
    with pytest.raises(CheckpointError, match=DAMAGES[damage]):
        export_bundle(str(copy), tmp_path / "bundle", OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_a_context_that_the_checkpoint_does_not_know(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--context is 4097, but the checkpoint supports 4096 positions"):
        export_bundle(str(checkpoint), tmp_path / "bundle", ExportOptions(context=4097))
    assert list(tmp_path.iterdir()) == []


def test_unusable_options() -> None:
    with pytest.raises(UsageError, match="--block-size must be one of 32, 64, 128, 256, not 100"):
        ExportOptions(block_size=100)
    with pytest.raises(UsageError, match="--context must be at least"):
        ExportOptions(context=8)
