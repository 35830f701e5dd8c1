"""The encoder against transformers' vision model, and the promise that neighbours change nothing."""

import copy
import dataclasses
import gc
import random
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from batchcap.config import VisionConfig, VisionDtype
from batchcap.core.errors import BundleError, UsageError
from batchcap.core.records import Features, Float32Array, Patches
from batchcap.model.geometry import VisionGeometry
from batchcap.vision import linear
from batchcap.vision.backend import load_encoder
from batchcap.vision.linear import ROW_BLOCK, TAIL_ROWS, RowBlockLinear, has_packed_kernels, threads_of_a_pass
from batchcap.vision.positions import PositionEmbeddings
from batchcap.vision.rope import RotaryTable
from batchcap.vision.rotary import rotary_table
from batchcap.vision.torch_encoder import TORCH_DTYPES, VisionEncoder
from batchcap.vision.tower import VisionTower, attend_by_heads, load_tower
from tests.vision.towers import ODD, REAL_WIDTH, SMALL, Towers, bundle_at, image, make_towers, random_grids

FP32_TOLERANCE = 1e-5  # largest difference by the largest feature of a level
BF16_TOLERANCE = 0.03  # norm of the difference by the norm of the features
ATTENTION_TOLERANCE = 0.01  # the same for one attention in bf16, scores rounded
BF16_AGAINST_THEIRS = 1.5  # our error against fp32 by transformers' own bf16 error
PATIENCE_S = 60.0
DTYPES = [VisionDtype.FP32, VisionDtype.BF16]
GEOMETRIES = {"small": SMALL, "odd": ODD, "real width": REAL_WIDTH}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=GEOMETRIES)
def towers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Towers:
    return make_towers(tmp_path_factory.mktemp("bundle"), GEOMETRIES[request.param])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Towers:
    return make_towers(tmp_path_factory.mktemp("bundle"), SMALL)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells what is mapped on Linux alone")
@pytest.mark.skipif(
    not has_packed_kernels(torch.float32), reason="the file's own numbers are used where none are packed"
)
def test_the_weights_are_not_held_twice(small: Towers) -> None:
    encoder = load_encoder(small.bundle, VisionConfig(dtype=VisionDtype.FP32), 1)
    gc.collect()
    assert str(small.bundle.vision_weights_path) not in Path("/proc/self/maps").read_text()
    assert encoder.encode([image(small.bundle.geometry.vision, (4, 4), 0)])


def geometry_of(towers: Towers) -> VisionGeometry:
    return towers.bundle.geometry.vision


@torch.inference_mode()
def expected(model: torch.nn.Module, patches: Patches, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """What transformers sees: [1 + L, T, H]."""
    out = model(torch.from_numpy(patches.values).to(dtype), torch.tensor([[1, *patches.grid]]))
    return torch.stack([out.pooler_output, *out.deepstack_features]).float().numpy()


def levels(features: Features) -> np.ndarray:
    return np.concatenate([features.embeds[None], features.deepstack])


def same(a: Features, b: Features) -> bool:
    return np.array_equal(a.embeds, b.embeds) and np.array_equal(a.deepstack, b.deepstack)


def test_features_equal_transformers_in_fp32(towers: Towers) -> None:
    encoder = towers.encoder(threads=2)
    count, longest = (20, 24) if geometry_of(towers).hidden_size < 1024 else (4, 12)
    for number, grid in enumerate(random_grids(count, longest)):
        patches = image(geometry_of(towers), grid, seed=number)
        found, wanted = levels(encoder.encode([patches])[0]), expected(towers.reference, patches)
        assert found.shape == wanted.shape
        for ours, theirs in zip(found, wanted, strict=True):
            assert np.abs(ours - theirs).max() <= FP32_TOLERANCE * np.abs(theirs).max()


def test_bf16_is_as_close_to_fp32_as_transformers_bf16(towers: Towers) -> None:
    patches = image(geometry_of(towers), (8, 14))
    wanted = expected(towers.reference, patches)
    ours = levels(towers.encoder(VisionDtype.BF16).encode([patches])[0])
    theirs = expected(copy.deepcopy(towers.reference).to(torch.bfloat16), patches, torch.bfloat16)
    for level in range(len(wanted)):
        norm = np.linalg.norm(wanted[level])
        our_error = np.linalg.norm(ours[level] - wanted[level]) / norm
        assert our_error <= BF16_TOLERANCE
        assert our_error <= BF16_AGAINST_THEIRS * np.linalg.norm(theirs[level] - wanted[level]) / norm


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_image_alone_and_packed_is_the_same_bit_for_bit(towers: Towers, dtype: VisionDtype) -> None:
    wide = geometry_of(towers).hidden_size >= 1024
    grids = [*random_grids(4 if wide else 10, 8 if wide else 18, seed=1), (2, 2), (2, 2), (2, 4)]
    images = [image(geometry_of(towers), grid, seed=number) for number, grid in enumerate(grids)]
    encoder = towers.encoder(dtype, threads=6)
    alone = [encoder.encode([each], 6)[0] for each in images]
    chooser = random.Random(3)
    for lanes in (6, 3, 2):
        for _ in range(2 if wide else 10):
            chosen = [chooser.randrange(len(images)) for _ in range(chooser.randint(1, 6))]
            packed = encoder.encode([images[number] for number in chosen], lanes)
            for number, features in zip(chosen, packed, strict=True):
                assert same(features, alone[number]), (lanes, [grids[n] for n in chosen])


@pytest.mark.parametrize("dtype", DTYPES)
def test_lanes_at_once_give_the_same_bits_each_with_its_share_of_the_threads(small: Towers, dtype: VisionDtype) -> None:
    images = [image(SMALL, grid, seed=number) for number, grid in enumerate(random_grids(24, 16, seed=5))]
    encoder = small.encoder(dtype, threads=4)
    alone = [encoder.encode([each])[0] for each in images]
    one_pass, used = encoder._pass, list[tuple[int, int]]()
    both = threading.Barrier(2, timeout=PATIENCE_S)

    def run(lanes: int) -> list[Features]:
        found = []
        for each in images:
            wanted.lanes = lanes
            both.wait()
            found += encoder.encode([each], lanes)
        return found

    def watched(batch: Sequence[Patches]) -> list[Float32Array]:
        both.wait()  # the other lane has said how many threads it wants, too
        used.append((wanted.lanes, torch.get_num_threads()))
        return one_pass(batch)

    wanted = threading.local()
    encoder._pass = watched  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as threads:
        for lane in [threads.submit(run, lanes) for lanes in (4, 1)]:
            assert all(map(same, lane.result(), alone))
    most = threads_of_a_pass(TORCH_DTYPES[dtype], 4)
    assert sorted(set(used)) == [(1, most), (4, 1)]


@pytest.mark.parametrize(
    ("tiles", "dtype", "expected"),
    [(True, VisionDtype.BF16, 1), (False, VisionDtype.BF16, 4), (True, VisionDtype.FP32, 4)],
)
def test_a_pass_has_one_thread_where_the_cpu_multiplies_its_dtype_in_tiles(
    tiles: bool, dtype: VisionDtype, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(linear, "has_packed_kernels", lambda _dtype: True)
    assert threads_of_a_pass(TORCH_DTYPES[dtype], 4) == expected


@pytest.mark.parametrize("head_size", [8, 64, 72])
@pytest.mark.parametrize("patches", [4, 16, 100, 433, 900])
def test_attention_by_heads_is_attention_with_any_number_of_threads(patches: int, head_size: int) -> None:
    torch.manual_seed(patches)
    parts = [torch.randn(3, patches, head_size).bfloat16() for _ in ("query", "key", "value")]
    found = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        found.append(attend_by_heads(*parts))
    assert all(torch.equal(found[0], one) for one in found)
    query, key, value = (part.float() for part in parts)
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1)
    assert (found[0].float() - wanted).norm() <= ATTENTION_TOLERANCE * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "out"), [(1152, 4304), (4304, 1152), (1024, 4096), (30, 70), (1, 1)])
def test_a_row_of_a_linear_layer_does_not_depend_on_its_place(width: int, out: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = RowBlockLinear(torch.nn.Linear(width, out).to(dtype), "tanh")
    rows = torch.randn(3 * ROW_BLOCK + 5, width).to(dtype)
    with torch.inference_mode():
        together = layer(rows)
        assert together.shape == (len(rows), out)
        for start, end in ((0, 1), (1, 70), (63, 66), (100, 197), (7, 8), (2, 120)):
            assert torch.equal(layer(rows[start:end]), together[start:end])


@pytest.mark.parametrize(
    ("packed", "tiles", "dtype", "last"),
    [
        (True, False, torch.float32, TAIL_ROWS),
        (True, False, torch.bfloat16, TAIL_ROWS),
        (True, True, torch.float32, TAIL_ROWS),
        (True, True, torch.bfloat16, ROW_BLOCK),
        (False, False, torch.float32, ROW_BLOCK),
    ],
)
def test_the_last_block_is_as_long_as_the_cpus_kernels_need(
    packed: bool, tiles: bool, dtype: torch.dtype, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels of this CPU may not tell; those of another add up the rows of a shorter block otherwise."""
    lengths = list[int]()

    def counted(layer: RowBlockLinear, block: Tensor) -> Tensor:
        lengths.append(len(block))
        return block.new_zeros(len(block), len(layer.bias))

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(_reorder_linear_weight=lambda weight, _rows: weight))
    monkeypatch.setattr(linear, "has_packed_kernels", lambda _dtype: packed)
    monkeypatch.setattr(RowBlockLinear, "_block", counted)
    layer = RowBlockLinear(torch.nn.Linear(5, 7).to(dtype))
    assert layer(torch.zeros(2 * ROW_BLOCK + 3, 5, dtype=dtype)).shape == (2 * ROW_BLOCK + 3, 7)
    assert lengths == [ROW_BLOCK, ROW_BLOCK, last]


@pytest.mark.parametrize("gelu", [None, "none", "tanh"])
@pytest.mark.parametrize("packed", [True, False])
def test_row_blocks_compute_the_linear_layer(gelu: str | None, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not packed:
        monkeypatch.setattr("batchcap.vision.linear.has_packed_kernels", lambda dtype: False)
    torch.manual_seed(1)
    linear = torch.nn.Linear(50, 30)
    layer = RowBlockLinear(linear, gelu)
    assert layer.packed is (packed and has_packed_kernels(torch.float32))
    rows = torch.randn(130, 50)
    wanted = linear(rows) if gelu is None else torch.nn.functional.gelu(linear(rows), approximate=gelu)
    assert torch.allclose(layer(rows), wanted, atol=1e-6)


def test_features_carry_the_record(small: Towers) -> None:
    batch = [image(SMALL, (4, 6), seed=7), image(SMALL, (8, 6), seed=8)]
    encoder = small.encoder(threads=2)
    started_s = time.perf_counter()
    first, second = encoder.encode(batch, 2)
    passed_ms = (time.perf_counter() - started_s) * 1000
    assert (first.index, second.index) == (7, 8)
    assert first.grid == (2, 3)
    assert first.embeds.shape == (6, 96)
    assert first.deepstack.shape == (3, 6, 96)
    assert first.embeds.dtype == first.deepstack.dtype == np.float32
    assert first.nbytes == 4 * 6 * 96 * 4
    assert (first.width, first.height, first.sha256, first.read_ms) == (96, 64, "0" * 64, 1.0)
    assert second.vision_ms == pytest.approx(2 * first.vision_ms)
    assert 0 < first.vision_ms + second.vision_ms <= passed_ms / 2, "half of the encoder's time is the other lane's"


def test_a_feature_does_not_hold_its_neighbours_memory(small: Towers) -> None:
    first, _ = small.encoder().encode([image(SMALL, (2, 2)), image(SMALL, (30, 30))])
    base = first.embeds.base if first.embeds.base is not None else first.embeds
    assert base.nbytes == first.nbytes


def test_a_tower_without_deepstack_gives_no_levels(tmp_path: Path) -> None:
    plain = make_towers(tmp_path, dataclasses.replace(SMALL, deepstack_levels=()))
    features = plain.encoder().encode([image(SMALL, (4, 4))])[0]
    assert features.deepstack.shape == (0, 4, 96)


def test_numbers_that_are_not_finite_are_an_error(small: Towers) -> None:
    """A caption of them would be garbage that looks like a caption."""
    sound = image(geometry_of(small), (4, 4), 0)
    values = sound.values.copy()
    values[3, 5] = np.nan
    encoder = small.encoder(VisionDtype.FP32)
    with pytest.raises(FloatingPointError, match="not finite"):
        encoder.encode([sound, dataclasses.replace(sound, values=values)])
    assert len(encoder.encode([sound])) == 1


def test_broken_bundles_are_named(small: Towers, tmp_path: Path) -> None:
    config = VisionConfig()
    with pytest.raises(BundleError, match="can't be read"):
        VisionEncoder(bundle_at(tmp_path / "absent", SMALL), config, 1)
    deeper = dataclasses.replace(SMALL, depth=6)
    with pytest.raises(BundleError, match="does not fit"):
        VisionEncoder(bundle_at(small.bundle.folder, deeper), config, 1)
    with pytest.raises(BundleError, match="pos_embed"):
        VisionEncoder(bundle_at(small.bundle.folder, dataclasses.replace(SMALL, position_side=9)), config, 1)
    with pytest.raises(BundleError, match="activation"):
        VisionEncoder(bundle_at(small.bundle.folder, dataclasses.replace(SMALL, hidden_act="mish")), config, 1)
    shutil.copytree(small.bundle.folder, tmp_path / "cut")
    path = tmp_path / "cut" / "vision" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BundleError, match="can't be read"):
        VisionEncoder(bundle_at(tmp_path / "cut", SMALL), config, 1)
    with pytest.raises(UsageError, match="thread"):
        load_encoder(small.bundle, config, 0)


class OneImage(torch.nn.Module):
    """The tower as it is traced: one image of any number of patches."""

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(
        self, patches: torch.Tensor, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        out: tuple[torch.Tensor, ...] = self.tower(patches, positions, cos, sin, [patches.shape[0]])
        return out


def test_the_tower_can_be_traced_for_any_number_of_patches(small: Towers) -> None:
    tower, table = load_tower(SMALL, small.bundle.vision_weights_path, torch.float32)
    rotary, positions = RotaryTable(rotary_table(SMALL.head_dim), 2), PositionEmbeddings(table.numpy(), 2)

    def inputs(grid: tuple[int, int]) -> tuple[torch.Tensor, ...]:
        patches = torch.from_numpy(image(SMALL, grid).values)
        halves = (torch.from_numpy(half) for half in rotary.for_grid(grid))
        return patches, torch.from_numpy(positions.for_grid(grid)), *halves

    tokens = torch.export.Dim("tokens", min=1, max=4096)
    traced = torch.export.export(OneImage(tower), inputs((4, 6)), dynamic_shapes=({0: 4 * tokens},) * 4).module()
    for grid in ((10, 8), (40, 30)):
        for ours, theirs in zip(traced(*inputs(grid)), OneImage(tower)(*inputs(grid)), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6)
