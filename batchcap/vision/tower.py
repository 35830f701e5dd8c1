"""Owns the Qwen3-VL vision tower as a torch module: nothing in it depends on the data but the arithmetic.

Shapes: N patches of all images of a batch, K = C·t·p·p values in a patch, D hidden size, A heads, a = D / A
head size, F width of the MLP, m merge side, T = N / m² visual tokens, H hidden size of the decoder, L DeepStack levels.

What depends on an image's grid (interpolated position embeddings, rotary cosines and sines) comes in as
arrays, so the same module runs here and can be traced to ONNX. Layout and names follow `Qwen3VLVisionModel`
of transformers; the weights are a checkpoint's, without the prefix `model.visual.`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from batchcap.core.errors import BundleError, load_error
from batchcap.model.geometry import VisionGeometry
from batchcap.vision.linear import has_packed_kernels

NORM_EPS = 1e-6
# Only ones that `RowBlockLinear` applies itself or that are exact: a row must not depend on its neighbours.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_pytorch_tanh": lambda: nn.GELU(approximate="tanh"),
    "gelu_new": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
}
# So many patches' numbers stay in the cache from one step to the next: 2.0 ms for 900 of 2B instead of 3.3 at once.
ROTATED_AT_ONCE = 256
PATCH_WEIGHT = "patch_embed.proj.weight"
POSITION_WEIGHT = "pos_embed.weight"


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each head's pairs (i, i + a/2) by their angles, in float32.

    Args:
        x: [N, 2, A, a] queries and keys.
        cos: [N, a / 2] float32.
        sin: as `cos`.

    Returns:
        The same shape and dtype as `x`.
    """
    half = x.shape[-1] // 2
    cos, sin = cos[:, None, None], sin[:, None, None]
    turned = torch.empty_like(x, memory_format=torch.contiguous_format)
    whole = (x, cos, sin, turned)
    # No split while the module is traced: the length may be symbolic.
    parts = (
        [whole]
        if torch.compiler.is_compiling()
        else zip(*(torch.split(one, ROTATED_AT_ONCE) for one in whole), strict=True)
    )
    for part, part_cos, part_sin, target in parts:
        first, second = part.float().chunk(2, dim=-1)
        target[..., :half] = first * part_cos - second * part_sin
        target[..., half:] = second * part_cos + first * part_sin
    return turned


class Attention(nn.Module):
    """Self-attention inside each image."""

    def __init__(self, geometry: VisionGeometry) -> None:
        super().__init__()
        self.heads = geometry.heads
        self.qkv = nn.Linear(geometry.hidden_size, 3 * geometry.hidden_size)
        self.proj = nn.Linear(geometry.hidden_size, geometry.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, lengths: Sequence[int]) -> Tensor:  # noqa: D102
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [N, 3, A, a]
        turned = rotate(qkv[:, :2], cos, sin)  # [N, 2, A, a]
        query, key = turned.unbind(1)
        value = qkv[:, 2]
        if len(lengths) == 1:  # no split: the length may be symbolic while the module is traced
            seen = self._attend(query, key, value)
        else:
            parts = (torch.split(part, list(lengths)) for part in (query, key, value))
            seen = torch.cat([self._attend(*image) for image in zip(*parts, strict=True)])
        out: Tensor = self.proj(seen)
        return out

    @staticmethod
    def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of one image: [n, A, a] each, to [n, D]."""
        query, key, value = (part.transpose(0, 1) for part in (query, key, value))  # [A, n, a]
        if query.dtype == torch.bfloat16 and has_packed_kernels(query.dtype):
            return attend_by_heads(query, key, value)
        seen = F.scaled_dot_product_attention(query[None], key[None], value[None])[0]
        return seen.transpose(0, 1).flatten(1)


def attend_by_heads(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of one image in bf16, a head at a time: [A, n, a] each, to [n, D].

    Weights are rounded to bf16 before they meet the values, as in `scaled_dot_product_attention`; here scores are, too,
    as in the eager attention of transformers. Both products then run in bf16 arithmetic, which the fused kernel of
    PyTorch 2.13 hardly gains from: on one thread 25.6 ms instead of 46.2 for 900 patches of 16 heads, 7.4 instead of
    11.2 for 432. The demo model's features are 0.0043 from fp32 instead of 0.0042, those of 2B 0.0098 as before.
    """
    query = query * query.shape[-1] ** -0.5
    seen = torch.empty_like(query.transpose(0, 1), memory_format=torch.contiguous_format)  # [n, A, a]
    for head in range(len(query)):
        weights = torch.softmax(query[head] @ key[head].T, dim=-1)
        seen[:, head] = weights @ value[head]
    return seen.flatten(1)


class Mlp(nn.Module):
    """Two linear layers with the checkpoint's activation between them."""

    def __init__(self, geometry: VisionGeometry) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(geometry.hidden_size, geometry.intermediate_size)
        self.act = _activation(geometry.hidden_act)
        self.linear_fc2 = nn.Linear(geometry.intermediate_size, geometry.hidden_size)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.linear_fc2(self.act(self.linear_fc1(x)))
        return out


class Block(nn.Module):
    """One layer: attention and MLP, each after its own norm, each added to what came in."""

    def __init__(self, geometry: VisionGeometry) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(geometry.hidden_size, eps=NORM_EPS)
        self.attn = Attention(geometry)
        self.norm2 = nn.LayerNorm(geometry.hidden_size, eps=NORM_EPS)
        self.mlp = Mlp(geometry)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, lengths: Sequence[int]) -> Tensor:  # noqa: D102
        x = x + self.attn(self.norm1(x), cos, sin, lengths)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Merger(nn.Module):
    """Joins m² neighbouring patches into one visual token of the decoder's width.

    The last merger normalises each patch, the DeepStack mergers the joined m² patches (`wide_norm`).
    """

    def __init__(self, geometry: VisionGeometry, *, wide_norm: bool) -> None:
        super().__init__()
        self.width = geometry.hidden_size * geometry.merge_size**2
        self.wide_norm = wide_norm
        self.norm = nn.LayerNorm(self.width if wide_norm else geometry.hidden_size, eps=NORM_EPS)
        self.linear_fc1 = nn.Linear(self.width, self.width)
        self.act = nn.GELU()
        self.linear_fc2 = nn.Linear(self.width, geometry.out_hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] to [T, H]."""
        joined = self.norm(x.view(-1, self.width)) if self.wide_norm else self.norm(x).view(-1, self.width)
        out: Tensor = self.linear_fc2(self.act(self.linear_fc1(joined)))
        return out


class PatchEmbedding(nn.Module):
    """The tower's 3-D convolution: its stride is its kernel, so it is one linear layer over a patch."""

    def __init__(self, geometry: VisionGeometry) -> None:
        super().__init__()
        self.proj = nn.Linear(geometry.patch_values, geometry.hidden_size)

    def forward(self, patches: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.proj(patches)
        return out


class VisionTower(nn.Module):
    """The whole encoder between patches and features."""

    def __init__(self, geometry: VisionGeometry) -> None:
        super().__init__()
        self.levels = geometry.deepstack_levels
        self.patch_embed = PatchEmbedding(geometry)
        self.blocks = nn.ModuleList([Block(geometry) for _ in range(geometry.depth)])
        self.merger = Merger(geometry, wide_norm=False)
        self.deepstack_merger_list = nn.ModuleList([Merger(geometry, wide_norm=True) for _ in self.levels])

    def forward(
        self, patches: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, lengths: Sequence[int]
    ) -> tuple[Tensor, ...]:
        """Encode the patches of one or more images.

        Args:
            patches: [N, K] in the tower's dtype, merge-block order, image after image.
            positions: [N, D] interpolated position embeddings, in the tower's dtype.
            cos: [N, a / 2] float32 rotary cosines.
            sin: [N, a / 2] float32 rotary sines.
            lengths: patches of each image; their sum is N. Attention stays inside an image.

        Returns:
            [T, H] embeddings, then one [T, H] a DeepStack level.
        """
        x = self.patch_embed(patches) + positions
        deepstack: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            x = block(x, cos, sin, lengths)
            if number in self.levels:
                merger = self.deepstack_merger_list[self.levels.index(number)]
                deepstack.append(merger(x))
        return (self.merger(x), *deepstack)


def load_tower(geometry: VisionGeometry, weights: Path, dtype: torch.dtype) -> tuple[VisionTower, Tensor]:
    """Read the tower's weights.

    Args:
        geometry: shape of the tower.
        weights: safetensors file with the checkpoint's names, without the prefix `model.visual.`.
        dtype: what the weights are converted to.

    Returns:
        The tower, ready to run, and the learned position embeddings [side², D].

    Raises:
        BundleError: the file can't be read or does not hold this tower.
    """
    try:
        # Copies of what is not packed later: one small tensor of the file would keep all of it mapped.
        state = {
            name: tensor.to(dtype, copy=tensor.ndim < 2 or name == POSITION_WEIGHT)
            for name, tensor in load_file(weights).items()
        }
    except (OSError, SafetensorError) as error:
        raise load_error(f"the vision weights {weights} can't be read", error) from error
    table = state.pop(POSITION_WEIGHT, None)
    if table is None or table.shape != (geometry.position_side**2, geometry.hidden_size):
        raise BundleError(f"{weights} has no {POSITION_WEIGHT} of the bundle's shape: export the bundle again")
    if PATCH_WEIGHT in state:
        state[PATCH_WEIGHT] = state[PATCH_WEIGHT].flatten(1)  # [D, C, t, p, p] to [D, K]
    with torch.device("meta"):
        tower = VisionTower(geometry)
    try:
        tower.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise BundleError(f"{weights} does not fit the bundle's geometry: export the bundle again\n{error}") from error
    return tower.eval().requires_grad_(requires_grad=False), table


def _activation(name: str) -> nn.Module:
    try:
        return ACTIVATIONS[name]()
    except KeyError:
        known = ", ".join(sorted(ACTIVATIONS))
        raise BundleError(f"the vision tower wants the activation {name!r}; known are {known}") from None
