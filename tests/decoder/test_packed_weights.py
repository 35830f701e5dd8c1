"""What a decoder leaves for its next start changes no number, is never another's, and is made anew when broken."""

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest

from batchcap.core.machine import MIB
from batchcap.decoder import packed_weights as kept_module
from batchcap.decoder.invariance import MAX_BATCH
from batchcap.decoder.load import open_decoder
from batchcap.decoder.packed_weights import ENTRY_FILE, GRAPH_FILE, PackedWeightsCache, prepare_sharing, probe
from batchcap.decoder.session import DecoderSession
from batchcap.model.bundle import Bundle

WEIGHTS_FILE = f"{GRAPH_FILE}.data"
# Two of these at once must pack once: each says when it packs, and the bits that it got.
STARTING_WORKER = """
import hashlib, sys
from pathlib import Path
from batchcap.model.bundle import Bundle
from batchcap.decoder.packed_weights import PackedWeightsCache, probe
from batchcap.decoder.load import open_decoder
class Telling(PackedWeightsCache):
    def _make(self, threads):
        print("packs")
        super()._make(threads)
bundle = Bundle.load(sys.argv[1])
opened = open_decoder(bundle, 1, Telling(bundle, Path(sys.argv[2])), share_weights=True)
print(hashlib.sha256(probe(opened.session, bundle.geometry)).hexdigest())
"""


@pytest.fixture
def kept(tiny_bundle_int4: Bundle, tmp_path: Path) -> PackedWeightsCache:
    return PackedWeightsCache(tiny_bundle_int4, tmp_path / "kept")


def own_bits(bundle: Bundle) -> bytes:
    return probe(DecoderSession(bundle.decoder_path, bundle.geometry, 1), bundle.geometry)


def shared_bits(bundle: Bundle, kept: PackedWeightsCache) -> bytes:
    session = kept.shared_session(1)
    assert session is not None
    return probe(session, bundle.geometry)


def as_made(kept: PackedWeightsCache) -> dict[str, int]:
    """Which files there are; another number is another file."""
    return {path.name: path.stat().st_ino for path in kept.packed_folder.iterdir()}


@pytest.mark.parametrize("name", ["tiny_bundle_fp32", "tiny_bundle_int8", "tiny_bundle_int4", "tiny_bundle_w8a8"])
def test_packed_weights_change_no_bit(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    bundle: Bundle = request.getfixturevalue(name)
    kept = PackedWeightsCache(bundle, tmp_path)
    assert shared_bits(bundle, kept) == own_bits(bundle)
    graph = onnx.load(kept.packed_folder / GRAPH_FILE, load_external_data=False).graph
    packed = [one for one in graph.initializer if any(item.key.startswith("prepacked") for item in one.external_data)]
    products = [one for one in graph.node if "MatMul" in one.op_type]
    assert len(packed) >= len(products) > 4, "ONNX Runtime has not saved what it packed"


def test_packed_weights_are_mapped(kept: PackedWeightsCache) -> None:
    session = kept.shared_session(1)
    assert str(kept.packed_folder / WEIGHTS_FILE) in Path("/proc/self/maps").read_text()
    del session


def test_packing_is_done_once(kept: PackedWeightsCache, tiny_bundle_int4: Bundle) -> None:
    shared_bits(tiny_bundle_int4, kept)
    made = as_made(kept)
    assert set(made) == {ENTRY_FILE, GRAPH_FILE, WEIGHTS_FILE}
    shared_bits(tiny_bundle_int4, kept)
    kept.check()
    assert as_made(kept) == made
    assert {path.name for path in kept.packed_folder.parent.iterdir()} == {"lock", kept.packed_folder.name}


def test_two_workers_that_start_at_once_pack_once(tiny_bundle_int4: Bundle, tmp_path: Path) -> None:
    command = [sys.executable, "-c", STARTING_WORKER, str(tiny_bundle_int4.folder), str(tmp_path)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _worker in range(2)]
    lines = [worker.communicate(timeout=120)[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert sorted(len(one) for one in lines) == [1, 2], "one packs, the other finds it"
    assert lines[0][-1] == lines[1][-1]


def cut(folder: Path) -> None:
    with (folder / WEIGHTS_FILE).open("r+b") as file:
        file.truncate(1000)


def lose_the_graph(folder: Path) -> None:
    (folder / GRAPH_FILE).unlink()


def spoil_the_entry(folder: Path) -> None:
    (folder / ENTRY_FILE).write_text('{"made_for": ')


def change_a_byte(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(content)


@pytest.mark.parametrize("damage", [cut, lose_the_graph, spoil_the_entry, change_a_byte])
def test_damaged_weights_are_packed_anew(
    damage: Callable[[Path], None], kept: PackedWeightsCache, tiny_bundle_int4: Bundle
) -> None:
    expected = shared_bits(tiny_bundle_int4, kept)
    whole = (kept.packed_folder / WEIGHTS_FILE).read_bytes()
    damage(kept.packed_folder)
    kept.check()
    assert shared_bits(tiny_bundle_int4, kept) == expected
    assert (kept.packed_folder / WEIGHTS_FILE).read_bytes() == whole


def test_what_a_killed_start_left_is_removed(kept: PackedWeightsCache, tiny_bundle_int4: Bundle) -> None:
    left = kept.packed_folder.parent / "making"
    left.mkdir(parents=True)
    (left / WEIGHTS_FILE).write_bytes(b"half")
    shared_bits(tiny_bundle_int4, kept)
    assert not left.exists()


def test_each_bundle_cpu_and_version_has_its_own(
    kept: PackedWeightsCache, tiny_bundle_int4: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name() -> str:
        return PackedWeightsCache(tiny_bundle_int4, tmp_path).packed_folder.name

    names = {
        name(),
        PackedWeightsCache(dataclasses.replace(tiny_bundle_int4, id="f" * 64), tmp_path).packed_folder.name,
    }
    for attribute, value in (("cpu_name", "another"), ("cpu_flags", frozenset({"avx2"}))):
        with monkeypatch.context() as patch:
            patch.setattr(kept_module, attribute, lambda value=value: value)
            names.add(name())
    monkeypatch.setattr("onnxruntime.__version__", "1.0.0")
    names.add(name())
    assert len(names) == 5


def test_a_folder_that_says_it_is_for_another_cpu_is_not_used(
    kept: PackedWeightsCache, tiny_bundle_int4: Bundle
) -> None:
    """As after somebody copied or renamed it."""
    shared_bits(tiny_bundle_int4, kept)
    path = kept.packed_folder / ENTRY_FILE
    entry = json.loads(path.read_bytes())
    entry["made_for"]["cpu"] = "another"
    path.write_text(json.dumps(entry))
    made = as_made(kept)
    shared_bits(tiny_bundle_int4, kept)
    assert as_made(kept)[WEIGHTS_FILE] != made[WEIGHTS_FILE]


def test_what_the_same_bundle_folder_left_before_is_removed(kept: PackedWeightsCache, tiny_bundle_int4: Bundle) -> None:
    folder = kept.packed_folder.parent
    elsewhere = dataclasses.replace(tiny_bundle_int4, id="e" * 64, folder=tiny_bundle_int4.folder / ".." / "other")
    for source, name in ((dataclasses.replace(tiny_bundle_int4, id="f" * 64), "old"), (elsewhere, "other")):
        key = dataclasses.asdict(dataclasses.replace(kept.key, bundle_id=source.id))
        (folder / name).mkdir(parents=True)
        (folder / f"{name}.json").write_text("{}")
        entry = {"made_for": key, "bundle_folder": str(source.folder), "files": {}}
        (folder / name / ENTRY_FILE).write_text(json.dumps(entry))
    shared_bits(tiny_bundle_int4, kept)
    assert {path.name for path in folder.iterdir()} == {"lock", kept.packed_folder.name, "other", "other.json"}


def test_other_numbers_are_not_used(
    kept: PackedWeightsCache,
    tiny_bundle_int4: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = iter([b"these", b"others"])
    with monkeypatch.context() as patch:
        patch.setattr(kept_module, "probe", lambda *_: next(answers))
        opened = open_decoder(tiny_bundle_int4, 1, kept, share_weights=True)
    assert "other numbers" in caplog.text
    assert probe(opened.session, tiny_bundle_int4.geometry) == own_bits(tiny_bundle_int4)
    assert not [path for path in kept.packed_folder.parent.iterdir() if path.is_dir()]


def test_a_cache_folder_that_can_not_be_written(
    tiny_bundle_int4: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Here there is a file in its place, which stops root as well."""
    (tmp_path / "decoders").touch()
    monkeypatch.setenv("BATCHCAP_CACHE", str(tmp_path))
    monkeypatch.setattr(kept_module, "MIN_BYTES", 0)
    with caplog.at_level(logging.INFO):
        assert not prepare_sharing(tiny_bundle_int4)
    assert len(caplog.messages) == 1
    assert "can't be written" in caplog.text
    opened = open_decoder(tiny_bundle_int4, 1, PackedWeightsCache.of(tiny_bundle_int4), share_weights=True)
    assert probe(opened.session, tiny_bundle_int4.geometry) == own_bits(tiny_bundle_int4)


def test_packing_is_told(
    tiny_bundle_int4: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BATCHCAP_CACHE", str(tmp_path))
    monkeypatch.setattr(kept_module, "MIN_BYTES", 0)
    monkeypatch.setattr(kept_module, "file_system", lambda _: "ext4")
    for expected in (["packing the decoder's weights for this CPU, once"], []):
        with caplog.at_level(logging.INFO):
            assert prepare_sharing(tiny_bundle_int4)
        assert [message.partition(", into")[0] for message in caplog.messages] == expected
        caplog.clear()
        assert open_decoder(tiny_bundle_int4, 1, PackedWeightsCache.of(tiny_bundle_int4), share_weights=True)


def test_packed_weights_need_no_writing(kept: PackedWeightsCache, tiny_bundle_int4: Bundle) -> None:
    """The cache folder may come with an image of a container and be read-only."""
    expected = shared_bits(tiny_bundle_int4, kept)
    (kept.packed_folder.parent / "lock").unlink()
    assert kept.reason_unavailable() is None
    assert shared_bits(tiny_bundle_int4, kept) == expected
    assert not (kept.packed_folder.parent / "lock").exists()


def test_obstacles(kept: PackedWeightsCache, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(kept_module, "file_system", lambda _: "ext4")
        assert kept.reason_unavailable() is None
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
        assert "0 MiB free" in str(kept.reason_unavailable())
    monkeypatch.setattr(kept_module, "file_system", lambda _: "tmpfs")
    assert "in memory" in str(kept.reason_unavailable())


def test_small_decoders_keep_nothing(tiny_bundle_int4: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PackedWeightsCache.of(tiny_bundle_int4) is None
    assert not prepare_sharing(tiny_bundle_int4)
    monkeypatch.setattr(kept_module, "MIN_BYTES", 0)
    assert PackedWeightsCache.of(tiny_bundle_int4) is not None
    assert kept_module.decoder_bytes(tiny_bundle_int4) < MIB


def test_the_row_tile_is_measured_once(
    kept: PackedWeightsCache, tiny_bundle_int4: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([2, 4, MAX_BATCH, MAX_BATCH])
    monkeypatch.setattr(kept_module, "find_batch_multiple", lambda *_: next(found))
    tiles = [open_decoder(tiny_bundle_int4, 1, kept).batch_multiple for _start in range(2)]
    assert tiles == [2, 2]
    kept.packed_folder.with_suffix(".json").unlink()
    assert open_decoder(tiny_bundle_int4, 1, kept).batch_multiple == 4
    kept.packed_folder.with_suffix(".json").unlink()
    # The largest may mean that no tile works: every start says so again.
    assert [open_decoder(tiny_bundle_int4, 1, kept).batch_multiple for _start in range(2)] == [MAX_BATCH] * 2


def test_the_row_tile_of_an_unknown_cpu_is_measured_each_time(
    kept: PackedWeightsCache, tiny_bundle_int4: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another CPU that is not told either would find it in a cache folder that both use."""
    monkeypatch.setattr(kept_module, "cpu_flags", frozenset)
    unknown = PackedWeightsCache(tiny_bundle_int4, kept.packed_folder.parent)
    found = iter([2, 4])
    monkeypatch.setattr(kept_module, "find_batch_multiple", lambda *_: next(found))
    assert [open_decoder(tiny_bundle_int4, 1, unknown).batch_multiple for _start in range(2)] == [2, 4]


@pytest.mark.parametrize("content", ["", "[]", '{"row_tile": 3}', '{"row_tile": [2]}', '{"tile": 2}'])
def test_a_broken_row_tile_is_measured_anew(
    content: str, kept: PackedWeightsCache, tiny_bundle_int4: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_module, "find_batch_multiple", lambda *_: 4)
    tile_path = kept.packed_folder.with_suffix(".json")
    tile_path.parent.mkdir()
    tile_path.write_text(content)
    assert open_decoder(tiny_bundle_int4, 1, kept).batch_multiple == 4
    assert json.loads(tile_path.read_text()) == {"row_tile": 4}
