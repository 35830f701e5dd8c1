"""A bundle is loaded whole or refused with what to do; its token table expands exactly."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from batchcap.core.errors import BundleError, CheckpointError
from batchcap.export.advice import load_named_bundle
from batchcap.export.checkpoint.checkpoint import open_checkpoint
from batchcap.model.bundle import BUNDLE_FILE, EMBEDDINGS_FILE, FORMAT_VERSION, Bundle, EmbeddingTable


@pytest.fixture
def copy(tiny_bundle_int4: Bundle, tmp_path: Path) -> Path:
    """A bundle that a test may break."""
    return Path(shutil.copytree(tiny_bundle_int4.folder, tmp_path / "bundle"))


def edit(folder: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    path = folder / BUNDLE_FILE
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_loads_from_a_moved_folder(tiny_bundle_int4: Bundle, copy: Path) -> None:
    moved = Bundle.load(copy)
    assert (moved.id, moved.geometry) == (tiny_bundle_int4.id, tiny_bundle_int4.geometry)
    assert moved.precision == "int4 block 32 rtn"
    assert moved.context == 1024
    assert moved.source == "tiny"
    assert moved.geometry.vision.deepstack_levels == (0, 1, 2)
    assert moved.decoder_path.exists()
    assert moved.vision_weights_path.exists()
    assert moved.tokenizer_path.exists()
    assert moved.chat_template_path.exists()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle at .*batchcap export CHECKPOINT"):
        Bundle.load(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"no bundle at .*batchcap export CHECKPOINT"):
        load_named_bundle(tmp_path / "nowhere")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def advice(model: str | Path) -> str:
    with pytest.raises(BundleError) as refused:
        load_named_bundle(model)
    return str(refused.value)


def test_a_checkpoint_is_named_as_such(tiny_checkpoint: Path, here: Path) -> None:
    command = f"run `batchcap export {tiny_checkpoint} --output tiny-int4` once and pass `--model tiny-int4`"
    assert advice(tiny_checkpoint) == f"{tiny_checkpoint} is a checkpoint, not a bundle: {command}"
    (here / "tiny-int4").mkdir()
    assert "--output tiny-int4-2` once and pass `--model tiny-int4-2`" in advice(tiny_checkpoint)
    (here / "tiny-int4-2").symlink_to("nowhere")
    assert "--output tiny-int4-3`" in advice(tiny_checkpoint)
    spaced = here / "my models" / "snapshots" / "0123"
    shutil.copytree(tiny_checkpoint, spaced)
    assert f"`batchcap export '{spaced}' --output 'my models-int4'`" in advice(spaced)


def test_a_hub_name(here: Path) -> None:
    command = "`batchcap export Qwen/Qwen3-VL-2B-Instruct --output Qwen3-VL-2B-Instruct-int4` once and pass "
    said = advice("Qwen/Qwen3-VL-2B-Instruct")
    assert said.startswith("there is no folder Qwen/Qwen3-VL-2B-Instruct. If that is a dense Qwen3-VL on the Hugging")
    assert said.endswith(f"run {command}`--model Qwen3-VL-2B-Instruct-int4`")
    (here / "Qwen3-VL-2B-Instruct-int4").mkdir()
    assert "--output Qwen3-VL-2B-Instruct-int4-2`" in advice("Qwen/Qwen3-VL-2B-Instruct")
    (here / "Qwen").mkdir()  # now it is a mistyped path
    assert (
        advice("Qwen/2b")
        == "there is no bundle at Qwen/2b; make one with `batchcap export CHECKPOINT --output Qwen/2b`"
    )


def test_a_cached_model_of_the_hub_is_called_by_its_name(tiny_checkpoint: Path, here: Path) -> None:
    cached = here / "models--Qwen--Qwen3-VL-2B-Instruct" / "snapshots" / "89644892e4d8"
    shutil.copytree(tiny_checkpoint, cached)
    assert "--output Qwen3-VL-2B-Instruct-int4`" in advice(cached)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def only(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        (folder / name).write_text("{}")

    return change


# What `batchcap export` refuses whatever the tensors are.
NOT_EXPORTED: dict[str, tuple[Callable[[Path], None], str]] = {
    "another family": (config(model_type="llava_onevision"), "is of type 'llava_onevision'; batchcap exports dense Qw"),
    "mixture of experts": (
        config(model_type="qwen3_vl_moe"),
        "is a mixture-of-experts Qwen3-VL; batchcap exports dense",
    ),
    "no type": (
        config(model_type=None, architectures=["BertModel"]),
        "names no model type; batchcap exp",
    ),
    "fp8": (config(quantization_config={"quant_method": "fp8"}), "was quantized before (fp8)"),
    "an adapter": (only("adapter_config.json"), "is an adapter (LoRA), not a whole model: merge it"),
    "GGUF": (only("model.gguf"), "holds GGUF files"),
    "layers in words": (config(text_config={"layer_types": 7}), "config.json has a missing or invalid setting:"),
    "a configuration alone": (only("config.json"), "names no model type"),
    "damaged": (lambda folder: (folder / "config.json").write_text("{") and None, "can't read"),
    "no weights": (remove("model.safetensors"), "model.safetensors is missing"),
}


@pytest.mark.parametrize("what", NOT_EXPORTED)
def test_a_checkpoint_that_can_not_be_exported(tiny_checkpoint: Path, tmp_path: Path, what: str) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "other"))
    change, message = NOT_EXPORTED[what]
    change(folder)
    said = advice(folder)
    assert said.startswith(f"{folder} is not a bundle, and can't be made into one: ")
    assert message in said
    assert "batchcap export C" not in said
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(str(folder))
    assert said.endswith(str(refused.value))


def test_the_first_look_loads_nothing_heavy(tiny_checkpoint: Path) -> None:
    """Captioning works where neither transformers nor torch is installed."""
    code = (
        "import sys; from batchcap.export.advice import load_named_bundle\n"
        "from batchcap.core.errors import BundleError\n"
        f"try: load_named_bundle({str(tiny_checkpoint)!r})\n"
        "except BundleError as error: print(error)\n"
        "print(sorted({'torch', 'transformers', 'onnxruntime', 'huggingface_hub'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "is a checkpoint, not a bundle" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_another_folder_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle \(no bundle\.json\)"):
        load_named_bundle(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="is a file"):
        Bundle.load(tmp_path / "file")


def test_a_missing_file(copy: Path) -> None:
    (copy / EMBEDDINGS_FILE).unlink()
    with pytest.raises(BundleError, match=r"embeddings\.npy is missing: export it again"):
        Bundle.load(copy, verify=False)


def test_a_cut_file_is_seen_without_checksums(copy: Path) -> None:
    path = copy / "decoder" / "model.onnx.data"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(BundleError, match=r"model\.onnx\.data has \d+ bytes instead of \d+"):
        Bundle.load(copy, verify=False)


def test_one_changed_bit_is_seen_by_the_checksum(copy: Path) -> None:
    path = copy / "vision" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="its checksum differs"):
        Bundle.load(copy)
    Bundle.load(copy, verify=False)


def test_a_bundle_that_took_its_place(tiny_bundle_int4: Bundle) -> None:
    """A job never works with another model than the one its rows are labelled with."""
    assert Bundle.load_again(tiny_bundle_int4.folder, tiny_bundle_int4.id) == tiny_bundle_int4
    with pytest.raises(BundleError, match="was replaced"):
        Bundle.load_again(tiny_bundle_int4.folder, "0" * 64)


def test_a_later_format(copy: Path) -> None:
    later = FORMAT_VERSION + 1
    edit(copy, lambda content: content.update(format_version=later))
    with pytest.raises(BundleError, match=f"has bundle format {later}, this batchcap reads {FORMAT_VERSION}"):
        Bundle.load(copy)


def test_an_edited_description(copy: Path) -> None:
    edit(copy, lambda content: content["geometry"]["tokens"].update(stop=[1]))
    with pytest.raises(BundleError, match="was changed after the export"):
        Bundle.load(copy, verify=False)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format_version": 1}', '{"format_version": 1, "files": 3}'])
def test_a_damaged_description(copy: Path, text: str) -> None:
    (copy / BUNDLE_FILE).write_text(text)
    with pytest.raises(BundleError, match="export it again"):
        Bundle.load(copy)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_floating_point_tables(tmp_path: Path, kind: type) -> None:
    table = np.random.default_rng(0).standard_normal((10, 4)).astype(kind)
    np.save(tmp_path / "table.npy", table)
    found = EmbeddingTable(tmp_path / "table.npy").lookup(np.array([[3, 9], [0, 3]]))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, table[[[3, 9], [0, 3]]].astype(np.float32))


def test_bfloat16_expands_exactly(tmp_path: Path) -> None:
    # Values that bfloat16 holds exactly, tiny and huge ones among them.
    values = np.array([[1.0, -2.5, 0.0, 3.0e38], [1e-40, -0.15625, 255.0, np.inf]], np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    np.save(tmp_path / "table.npy", bits)
    found = EmbeddingTable(tmp_path / "table.npy").lookup(np.array([1, 0, 1]))
    expected = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    np.testing.assert_array_equal(found, expected[[1, 0, 1]])
