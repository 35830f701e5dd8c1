"""Models made to do harm, or put together wrongly with every checksum right: refused before anything runs."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from batchcap.config import VisionBackend, VisionConfig, VisionDtype
from batchcap.core.errors import BundleError
from batchcap.decoder.load import open_decoder
from batchcap.export.checkpoint.options import ExportOptions
from batchcap.export.export import export_bundle
from batchcap.model.bundle import BUNDLE_FILE, Bundle, bundle_id, sha256_of
from batchcap.vision.backend import load_encoder
from tests.e2e.command import assert_refused, batchcap
from tests.e2e.inputs import image

Content = dict[str, Any]


@pytest.fixture
def copy(tiny_bundle_int4: Bundle, tmp_path: Path) -> Path:
    """A bundle that a test may change."""
    return Path(shutil.copytree(tiny_bundle_int4.folder, tmp_path / "bundle"))


def seal(folder: Path, change: Callable[[Content], None] = lambda _content: None) -> None:
    """Change the description, and make every checksum right again, as somebody who means harm would."""
    path = folder / BUNDLE_FILE
    content = json.loads(path.read_text())
    change(content)
    for name, entry in content["files"].items():
        if (folder / name).is_file():
            entry.update(bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
    content["id"] = bundle_id(content)
    path.write_text(json.dumps(content))


def open_all(folder: Path) -> None:
    """Everything that workers open."""
    bundle = Bundle.load(folder)
    bundle.embeddings()
    load_encoder(bundle, VisionConfig(dtype=VisionDtype.FP32, backend=VisionBackend.ONNX), 1)
    open_decoder(bundle, 1)


def test_a_sealed_copy_is_sound(copy: Path) -> None:
    seal(copy)
    open_all(copy)


GEOMETRIES = {
    "a layer more": lambda geometry: geometry["text"].update(layers=geometry["text"]["layers"] + 1),
    "a layer less": lambda geometry: geometry["text"].update(layers=geometry["text"]["layers"] - 1),
    "wider": lambda geometry: geometry["text"].update(hidden_size=geometry["text"]["hidden_size"] * 2),
    "more key heads": lambda geometry: geometry["text"].update(kv_heads=geometry["text"]["kv_heads"] * 2),
    "other head width": lambda geometry: geometry["text"].update(head_dim=geometry["text"]["head_dim"] * 2),
    "more words": lambda geometry: geometry["text"].update(vocab_size=geometry["text"]["vocab_size"] + 1),
    "no DeepStack": lambda geometry: geometry["vision"].update(deepstack_levels=[]),
    "a level more": lambda geometry: geometry["vision"]["deepstack_levels"].append(3),
    "other patches": lambda geometry: geometry["vision"].update(patch_size=14),
    "other encoder": lambda geometry: geometry["vision"].update(hidden_size=geometry["vision"]["hidden_size"] * 2),
    "other positions": lambda geometry: geometry["vision"].update(position_side=5),
    "a token that is not there": lambda geometry: geometry["tokens"].update(stop=[10**6]),
    "no size at all": lambda geometry: geometry["text"].update(layers=0),
    "no heads": lambda geometry: geometry["vision"].update(heads=0),
    "a negative size": lambda geometry: geometry["vision"].update(merge_size=-2),
    "a size beyond all memory": lambda geometry: geometry["text"].update(hidden_size=2**60),
    "a size that is a text": lambda geometry: geometry["text"].update(layers="4"),
    "a size that is true": lambda geometry: geometry["vision"].update(depth=True),
    "a size nobody knows": lambda geometry: geometry["text"].update(experts=8),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_geometry_that_is_not_the_graphs(copy: Path, name: str) -> None:
    seal(copy, lambda content: GEOMETRIES[name](content["geometry"]))
    with pytest.raises(BundleError, match=r"bundle\.json|of the bundle's shape|does not run"):
        open_all(copy)


def test_the_command_says_it(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(image(0))
    seal(copy, lambda content: content["geometry"]["text"].update(layers=1))
    command = ("caption", tmp_path / "0.png", "-o", tmp_path / "out", "--vision-backend", "onnx", "-m", copy)
    done = batchcap(*command)
    assert_refused(done, "the decoder 0 process can't work", "has an input past_key_values", "batchcap export")


def test_a_file_without_a_checksum(copy: Path) -> None:
    (copy / "decoder" / "other.data").write_bytes(b"weights")
    seal(copy)
    with pytest.raises(BundleError, match=r"decoder/other\.data has no checksum in bundle\.json"):
        Bundle.load(copy)


@pytest.mark.parametrize("name", ["decoder/model.onnx", "vision/model.safetensors", "tokenizer.json"])
def test_a_checksum_that_was_left_out(copy: Path, name: str) -> None:
    seal(copy, lambda content: content["files"].pop(name))
    with pytest.raises(BundleError, match="has no checksum in bundle"):
        Bundle.load(copy)


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside", "decoder/../../outside"])
def test_files_outside_the_bundle(copy: Path, name: str) -> None:
    (copy.parent / "outside").write_bytes(b"secret")
    seal(copy, lambda content: content["files"].update({name: {"bytes": 6, "sha256": "0"}}))
    with pytest.raises(BundleError, match="which is not in the bundle"):
        Bundle.load(copy)


@pytest.mark.parametrize("place", ["../../outside", "/outside"])
def test_weights_outside_the_bundle(copy: Path, place: str) -> None:
    """A graph may name any file as the place of its weights: ONNX Runtime must read none outside its folder."""
    outside = copy.parent / "outside"
    outside.write_bytes((copy / "decoder" / "model.onnx.data").read_bytes())
    graph = onnx.load(copy / "decoder" / "model.onnx", load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(outside) if place.startswith("/") else place
    onnx.save(graph, copy / "decoder" / "model.onnx")
    seal(copy)
    with pytest.raises(BundleError, match="can't load"):
        open_decoder(Bundle.load(copy), 1)


def test_a_graph_with_operators_of_its_own(copy: Path) -> None:
    graph = onnx.load(copy / "decoder" / "model.onnx", load_external_data=False)
    for node in graph.graph.node:
        if node.op_type == "GroupQueryAttention":
            node.domain = "evil"
    graph.opset_import.append(onnx.helper.make_opsetid("evil", 1))
    onnx.save(graph, copy / "decoder" / "model.onnx")
    seal(copy)
    with pytest.raises(BundleError, match="can't load"):
        open_decoder(Bundle.load(copy), 1)


class Harm:
    """Leaves a file where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return Path.touch, (self.place,)


@pytest.mark.parametrize("name", ["embeddings.npy", "vision/rotary.npy"])
def test_pickles_in_arrays(copy: Path, tmp_path: Path, name: str) -> None:
    harm = tmp_path / "harm"
    np.save(copy / name, np.array([Harm(harm)], object), allow_pickle=True)
    seal(copy)
    with pytest.raises(BundleError, match="can't be read"):
        open_all(copy)
    assert not harm.exists()


def test_a_description_nested_without_end(copy: Path) -> None:
    (copy / BUNDLE_FILE).write_text("[" * 100_000)
    with pytest.raises(BundleError, match="can't read"):
        Bundle.load(copy)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch harm') }}",
        "{% for message in messages %}{{ message.update({'role': 'x'}) }}{% endfor %}",
        "{% for _ in range(10 ** 9) %}x{% endfor %}",
    ],
)
def test_a_chat_template_that_reaches_out(copy: Path, tmp_path: Path, template: str) -> None:
    (copy / "chat_template.jinja").write_text(template)
    seal(copy)
    (tmp_path / "0.png").write_bytes(image(0))
    command = ("caption", tmp_path / "0.png", "-o", tmp_path / "out", "--vision-backend", "onnx", "-m", copy)
    assert_refused(batchcap(*command, cwd=tmp_path), "chat template")
    assert not (tmp_path / "harm").exists()


@pytest.mark.slow
def test_code_and_pickles_beside_a_checkpoint_are_left_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint, harm = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")), tmp_path / "harm"
    (checkpoint / "evil.py").write_text(f"open({str(harm)!r}, 'w')\nclass Evil: pass\n")
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        path = checkpoint / name
        content = json.loads(path.read_text()) if path.exists() else {}
        kinds = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoImageProcessor", "AutoProcessor")
        content["auto_map"] = dict.fromkeys(kinds, "evil.Evil") | {"AutoTokenizer": ["evil.Evil", None]}
        if path.exists():
            path.write_text(json.dumps(content))
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(Harm(harm)))
    (checkpoint / "conftest.py").write_text(f"open({str(harm)!r}, 'w')\n")
    bundle = export_bundle(str(checkpoint), tmp_path / "bundle", ExportOptions(context=512))
    assert not list(bundle.folder.rglob("evil.py"))
    (tmp_path / "0.png").write_bytes(image(0))
    done = batchcap("verify", bundle.folder, "--checkpoint", checkpoint, "--images", tmp_path / "0.png")
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 3), done.stderr
    assert not harm.exists()
