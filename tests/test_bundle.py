"""A bundle is loaded whole or refused with what to do; its token table expands exactly."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from batchcap.bundle import BUNDLE_FILE, EMBEDDINGS_FILE, FORMAT_VERSION, Bundle, EmbeddingTable
from batchcap.errors import BundleError


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


def test_a_checkpoint_is_named_as_such(tiny_checkpoint: Path) -> None:
    with pytest.raises(BundleError, match=r"is a checkpoint, not a bundle: run `batchcap export"):
        Bundle.load(tiny_checkpoint)


def test_another_folder_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle \(no bundle\.json\)"):
        Bundle.load(tmp_path)
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
