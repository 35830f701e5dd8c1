"""Random vision towers the tests share: transformers' model and our encoder with the same weights."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from batchcap.config import VisionConfig, VisionDtype
from batchcap.core.records import Patches
from batchcap.model.bundle import ROTARY_FILE, Bundle
from batchcap.model.geometry import Geometry, ImageSettings, TextGeometry, TokenIds, VisionGeometry
from batchcap.vision.rotary import rotary_table
from batchcap.vision.torch_encoder import VisionEncoder

# An everyday tower in small, and one where nothing is a power of two.
SMALL = VisionGeometry(
    depth=5,
    hidden_size=64,
    intermediate_size=128,
    heads=4,
    out_hidden_size=96,
    in_channels=3,
    patch_size=16,
    temporal_patch_size=2,
    merge_size=2,
    deepstack_levels=(0, 2, 3),
    position_side=12,
    hidden_act="gelu_pytorch_tanh",
)
ODD = VisionGeometry(
    depth=3,
    hidden_size=72,
    intermediate_size=200,
    heads=3,
    out_hidden_size=88,
    in_channels=3,
    patch_size=14,
    temporal_patch_size=2,
    merge_size=2,
    deepstack_levels=(1,),
    position_side=7,
    hidden_act="gelu",
)
# Width, heads and MLP of the tower in Qwen3-VL-2B and -4B, with two of the 24 blocks.
REAL_WIDTH = VisionGeometry(
    depth=2,
    hidden_size=1024,
    intermediate_size=4096,
    heads=16,
    out_hidden_size=2048,
    in_channels=3,
    patch_size=16,
    temporal_patch_size=2,
    merge_size=2,
    deepstack_levels=(0,),
    position_side=48,
    hidden_act="gelu_pytorch_tanh",
)


@dataclass(frozen=True)
class Towers:
    """The same weights twice."""

    reference: Qwen3VLVisionModel
    bundle: Bundle

    def encoder(self, dtype: VisionDtype = VisionDtype.FP32, threads: int = 1) -> VisionEncoder:
        return VisionEncoder(self.bundle, VisionConfig(dtype=dtype), threads)


def make_towers(folder: Path, geometry: VisionGeometry, dtype: torch.dtype = torch.float32) -> Towers:
    """A random tower, every weight of it away from its initial value, and a bundle folder with it."""
    torch.manual_seed(0)
    config = Qwen3VLVisionConfig(
        depth=geometry.depth,
        hidden_size=geometry.hidden_size,
        hidden_act=geometry.hidden_act,
        intermediate_size=geometry.intermediate_size,
        num_heads=geometry.heads,
        in_channels=geometry.in_channels,
        patch_size=geometry.patch_size,
        temporal_patch_size=geometry.temporal_patch_size,
        spatial_merge_size=geometry.merge_size,
        out_hidden_size=geometry.out_hidden_size,
        num_position_embeddings=geometry.position_side**2,
        deepstack_visual_indexes=list(geometry.deepstack_levels),
    )
    model = Qwen3VLVisionModel._from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 1.0 if parameter.dim() == 1 or "pos_embed" in name else 1.5 * parameter[0].numel() ** 0.5
            parameter.add_(torch.randn_like(parameter) * (0.1 if spread == 1.0 else 1 / spread))
    path = folder / "vision" / "model.safetensors"
    path.parent.mkdir(parents=True)
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}, path)
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    np.save(folder / ROTARY_FILE, rotary_table(geometry.head_dim, positions=64))
    return Towers(model, bundle_at(folder, geometry))


def bundle_at(folder: Path, geometry: VisionGeometry) -> Bundle:
    """A bundle of which only the vision half is there."""
    whole = Geometry(
        text=TextGeometry(1, geometry.out_hidden_size, 2, 1, 16, 320),
        vision=geometry,
        image=ImageSettings(65536, 1 << 24, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        tokens=TokenIds(5, 3, 4, (2,)),
    )
    return Bundle(folder=folder, id="random", geometry=whole, context=64, precision="fp32", source="random")


def image(geometry: VisionGeometry, grid: tuple[int, int], seed: int = 0) -> Patches:
    """Random patches of a grid."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((grid[0] * grid[1], geometry.patch_values)).astype(np.float32)
    return Patches(seed, values, grid, grid[1] * 16, grid[0] * 16, "0" * 64, 1.0)


def random_grids(count: int, longest: int, seed: int = 0, merge: int = 2) -> list[tuple[int, int]]:
    """Grids with sides from one merge block up."""
    sides = np.random.default_rng(seed).integers(1, longest // merge + 1, (count, 2)) * merge
    return [(int(down), int(across)) for down, across in sides]
