"""The tower in ONNX against transformers' vision model: any grid, any batch, every kind of stored weight."""

import dataclasses
import hashlib
import shutil
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from batchcap.config import VisionBackend, VisionConfig, VisionDtype
from batchcap.core.errors import BundleError, CheckpointError
from batchcap.core.records import Features, Float32Array, Patches
from batchcap.export.graph.vision_graph import write_vision_graph, write_vision_graph_int8
from batchcap.model.geometry import VisionGeometry
from batchcap.model.tensors import read_file
from batchcap.vision.backend import load_encoder
from batchcap.vision.features import read_rotary_table
from batchcap.vision.onnx_encoder import OnnxVisionEncoder
from batchcap.vision.positions import PositionEmbeddings
from batchcap.vision.rope import RotaryTable
from tests.vision.towers import ODD, REAL_WIDTH, SMALL, Towers, bundle_at, image, make_towers, random_grids

FP32_TOLERANCE = 1e-4  # largest difference of any feature; the features are of scale 1 to 5
# Norm of the difference by the norm of the features of a level: weights and activations have 8 bits.
INT8_TOLERANCE = 0.05
GRIDS = 200
MAX_BATCH = 8
# Blocks of three, no DeepStack, another activation.
THREES = dataclasses.replace(SMALL, merge_size=3, patch_size=8, deepstack_levels=(), hidden_act="relu", depth=2)
GEOMETRIES = {"small": SMALL, "odd": ODD, "threes": THREES, "real width": REAL_WIDTH}


def drawn(folder: Path, geometry: VisionGeometry, dtype: torch.dtype = torch.float32) -> Towers:
    towers = make_towers(folder, geometry, dtype)
    tensors = read_file(towers.bundle.vision_weights_path)
    write_vision_graph(towers.bundle.vision_graph_path(int8=False), geometry, tensors)
    write_vision_graph_int8(towers.bundle.vision_graph_path(int8=True), geometry, tensors)
    return towers


@pytest.fixture(scope="module", params=GEOMETRIES)
def towers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Towers:
    return drawn(tmp_path_factory.mktemp("bundle"), GEOMETRIES[request.param])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Towers:
    return drawn(tmp_path_factory.mktemp("bundle"), SMALL)


def encoder(towers: Towers, dtype: VisionDtype = VisionDtype.FP32, threads: int = 1) -> OnnxVisionEncoder:
    made = load_encoder(towers.bundle, VisionConfig(dtype=dtype, backend=VisionBackend.ONNX), threads)
    assert isinstance(made, OnnxVisionEncoder)
    return made


@torch.inference_mode()
def expected(towers: Towers, patches: Patches) -> Float32Array:
    """What transformers sees: [1 + L, T, H]."""
    out = towers.reference(torch.from_numpy(patches.values), torch.tensor([[1, *patches.grid]]))
    found: Float32Array = torch.stack([out.pooler_output, *out.deepstack_features]).numpy()
    return found


def levels(features: Features) -> Float32Array:
    return np.concatenate([features.embeds[None], features.deepstack])


def some_grids(geometry: VisionGeometry, seed: int = 0) -> list[tuple[int, int]]:
    wide = geometry.hidden_size >= 1024
    return random_grids(3 if wide else 12, 10 if wide else 20, seed, geometry.merge_size)


def batches(seed: int) -> dict[int, list[Patches]]:
    """200 images of random grids by their number of patches; most numbers have several grids."""
    found: dict[int, list[Patches]] = defaultdict(list)
    for number, grid in enumerate(random_grids(GRIDS, 16, seed)):
        found[grid[0] * grid[1]].append(image(SMALL, grid, seed=number))
    return found


def test_200_random_grids_in_batches_of_1_to_8(small: Towers) -> None:
    """The graph itself: images of different grids and the same number of patches share a batch."""
    graph = small.bundle.vision_graph_path(int8=False)
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    table = read_file(small.bundle.vision_weights_path)["pos_embed.weight"]
    positions = PositionEmbeddings(table.rows(0, table.shape[0]), 2)
    rotary = RotaryTable(read_rotary_table(small.bundle), 2)
    sizes, differences = set(), []
    for images in batches(seed=5).values():
        for start in range(0, len(images), MAX_BATCH):
            batch = images[start : start + MAX_BATCH]
            cos, sin = zip(*(rotary.for_grid(one.grid) for one in batch), strict=True)
            feed = {
                "patches": [one.values for one in batch],
                "positions": [positions.for_grid(one.grid) for one in batch],
            }
            outputs = session.run(
                ["embeds", "deepstack.0", "deepstack.1", "deepstack.2"],
                {name: np.stack(values) for name, values in {**feed, "cos": cos, "sin": sin}.items()},
            )
            sizes.add(len(batch))
            for place, one in enumerate(batch):
                found = np.stack([output[place] for output in outputs])
                differences.append(np.abs(found - expected(small, one)).max())
    assert len(differences) == GRIDS
    assert max(differences) <= FP32_TOLERANCE
    assert sizes == set(range(1, MAX_BATCH + 1))


def test_features_equal_transformers(towers: Towers) -> None:
    geometry = towers.bundle.geometry.vision
    made = encoder(towers, threads=2)
    for number, grid in enumerate(some_grids(geometry)):
        patches = image(geometry, grid, seed=number)
        found, wanted = levels(made.encode([patches])[0]), expected(towers, patches)
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= FP32_TOLERANCE


def test_int8_stays_near(towers: Towers) -> None:
    geometry = towers.bundle.geometry.vision
    made = encoder(towers, VisionDtype.INT8)
    for number, grid in enumerate(some_grids(geometry, seed=1)):
        patches = image(geometry, grid, seed=number)
        found, wanted = levels(made.encode([patches])[0]), expected(towers, patches)
        for ours, theirs in zip(found, wanted, strict=True):
            assert 0 < np.linalg.norm(ours - theirs) <= INT8_TOLERANCE * np.linalg.norm(theirs)


def test_weights_of_int8_are_half_a_step_away_at_most(small: Towers) -> None:
    """A scale that is a little off would hide behind the tolerance of the features."""
    graph = onnx.load(small.bundle.vision_graph_path(int8=True)).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    names = [name.removesuffix(".scales") for name in arrays if name.endswith(".scales")]
    assert len(names) > 4 * SMALL.depth
    for name in names:
        scales, weight = arrays[f"{name}.scales"], small.reference.state_dict()[f"{name}.weight"].numpy()
        steps = weight.reshape(len(scales), -1) / scales[:, None] - arrays[f"{name}.values"].T
        assert np.abs(steps).max() < 0.51, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_widened_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    towers = drawn(tmp_path, SMALL, dtype)
    patches = image(SMALL, (6, 10))
    found = levels(encoder(towers).encode([patches])[0])
    assert np.abs(found - expected(towers, patches)).max() <= FP32_TOLERANCE


@pytest.mark.parametrize("dtype", [VisionDtype.FP32, VisionDtype.INT8])
def test_features_do_not_depend_on_neighbours_threads_or_lanes(towers: Towers, dtype: VisionDtype) -> None:
    geometry = towers.bundle.geometry.vision
    images = [image(geometry, grid, seed=number) for number, grid in enumerate(some_grids(geometry, seed=2)[:5])]
    one_at_a_time = encoder(towers, dtype)
    alone = [one_at_a_time.encode([one])[0] for one in images]
    for threads in (1, 2, 3):
        config = VisionConfig(dtype=dtype, backend=VisionBackend.ONNX)
        made = load_encoder(towers.bundle, config, threads, threads)
        with ThreadPoolExecutor(threads) as lanes:
            calls = [lanes.submit(made.encode, images[::-1], threads) for _lane in range(threads)]
        for call in calls:
            for found, wanted in zip(call.result(), alone[::-1], strict=True):
                assert found.index == wanted.index
                assert np.array_equal(levels(found), levels(wanted))


def test_features_carry_the_record(small: Towers) -> None:
    made, batch = encoder(small), [image(SMALL, (4, 6), seed=7), image(SMALL, (8, 6), seed=8)]
    started_s = time.perf_counter()
    first, second = made.encode(batch, 2)
    passed_ms = (time.perf_counter() - started_s) * 1000
    assert (first.index, second.index) == (7, 8)
    assert (first.grid, first.embeds.shape, first.deepstack.shape) == ((2, 3), (6, 96), (3, 6, 96))
    assert first.embeds.dtype == first.deepstack.dtype == np.float32
    assert (first.width, first.height, first.sha256, first.read_ms) == (96, 64, "0" * 64, 1.0)
    assert 0 < first.vision_ms + second.vision_ms <= passed_ms / 2, "half of the encoder's time is the other lane's"


@pytest.mark.parametrize("int8", [False, True])
def test_nothing_of_an_image_is_frozen_into_the_graph(towers: Towers, int8: bool) -> None:
    """The ways in which traced towers fail: mixed integer types in Concat, sizes of the sample image."""
    path = towers.bundle.vision_graph_path(int8=int8)
    onnx.checker.check_model(str(path))
    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    assert {one.domain: one.version for one in model.opset_import}[""] >= 23
    for value in (*model.graph.input, *model.graph.output):
        batch, length, _width = value.type.tensor_type.shape.dim
        assert batch.dim_param == "batch"
        assert length.dim_param in ("patches", "tokens")
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    kinds |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Concat", "Shape"):
            assert {kinds[name] for name in (*node.input, *node.output) if name in kinds} <= {onnx.TensorProto.INT64, 1}
            assert kinds[node.output[0]] == onnx.TensorProto.INT64
    geometry = towers.bundle.geometry.vision
    known = {-1, geometry.out_hidden_size, geometry.hidden_size, 3 * geometry.hidden_size, geometry.patch_values}
    known.add(geometry.hidden_size * geometry.merge_size**2)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64:
            assert set(onnx.numpy_helper.to_array(tensor).tolist()) <= known


def test_the_fp32_graph_has_no_weights_of_its_own(small: Towers) -> None:
    folder = small.bundle.folder / "vision"
    graph = onnx.load(folder / "fp32.onnx", load_external_data=False).graph
    files = {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
    assert files == {"model.safetensors"}
    assert (folder / "fp32.onnx").stat().st_size < (folder / "model.safetensors").stat().st_size / 20


def test_numbers_that_are_not_finite_are_an_error(small: Towers) -> None:
    sound = image(SMALL, (4, 4), 0)
    values = sound.values.copy()
    values[3, 5] = np.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        encoder(small).encode([dataclasses.replace(sound, values=values)])


def test_broken_bundles_are_named(small: Towers, tmp_path: Path) -> None:
    def broken(name: str, change: str) -> Towers:
        folder = Path(shutil.copytree(small.bundle.folder, tmp_path / name))
        path = folder / "vision" / change
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return Towers(small.reference, bundle_at(folder, SMALL))

    with pytest.raises(BundleError, match=r"rotary table .* can't be read"):
        encoder(broken("rotary", "rotary.npy"))
    with pytest.raises(BundleError, match=r"vision graph .* can't be loaded"):
        encoder(broken("graph", "fp32.onnx"))
    with pytest.raises(BundleError, match=r"can't be loaded|not a complete safetensors"):
        encoder(broken("weights", "model.safetensors"))
    with pytest.raises(BundleError, match=r"vision graph .* can't be loaded"):
        encoder(broken("int8", "int8.onnx.data"), VisionDtype.INT8)
    with pytest.raises(BundleError, match=r"does not match bundle\.json: its input cos is"):
        encoder(Towers(small.reference, bundle_at(small.bundle.folder, dataclasses.replace(SMALL, heads=2))))


def test_no_name_in_a_graph_has_changed(small: Towers) -> None:
    """A new name would change the file, the bundle's id with it, and the jobs begun with the bundle would not go on."""
    names = dict[bool, str]()
    for int8 in (False, True):
        graph = onnx.load(small.bundle.vision_graph_path(int8=int8), load_external_data=False).graph
        found = [name for node in graph.node for name in (node.name, *node.output)]
        found += [weight.name for weight in graph.initializer]
        names[int8] = hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]
    assert names == {False: "3984ef5e01d606d8", True: "c1be87cf47141792"}


def test_an_unknown_activation_is_refused_before_the_export(small: Towers, tmp_path: Path) -> None:
    geometry = dataclasses.replace(SMALL, hidden_act="mish")
    with pytest.raises(CheckpointError, match=r"activation is 'mish'; known are gelu"):
        write_vision_graph(tmp_path / "fp32.onnx", geometry, read_file(small.bundle.vision_weights_path))
