"""Owns linear layers whose result for a row never depends on the rows beside it.

A matrix product may add up a row in another order when the number of rows or of threads changes, and GELU rounds
differently where a thread's share of the numbers ends inside a vector. Measured with `torch.nn.Linear` at 2B width,
packed images that differed from the same image alone: fp32 (MKL) 12 of 33, bf16 (oneDNN) 10 of 33, with 3 or 5
threads fp32 41 of 48. A caption must not depend on its neighbours, so products here run in blocks of `ROW_BLOCK` rows
through one oneDNN kernel with packed weights that applies GELU as well. With it none differed: fp32 and bf16, 1 to 48
threads, AVX2, AVX-512 and AVX-512 BF16 kernels, odd widths. The last block is filled up with zeros to a multiple of
`TAIL_ROWS`; as rows of a shorter block none of 7,680 products differed either (the same kernels, 1 to 5 threads).
Without that kernel it is filled up to a whole block.

Kernels for AMX add up rows in another order when a block's size changes, too: with blocks filled up to 16 (32, 64)
rows, 364 (359, 0) of 2,736 products differed in bf16 on one thread. So every block is a whole one there. On other
numbers of threads products of 4096 inputs differed whatever the block, so a pass has one thread (`threads_of_a_pass`):
with AMX it takes a fifth of the time of one without (900 rows, 1024 to 4096: 20 ms instead of 93).

The cost at 2B width on two cores, four layers, milliseconds for 432 (1024) patches:
bf16 `Linear` 216 (521), blocks of 32: 231 (529), 64: 216 (517), 128: 229 (517), 256: 256 (504);
fp32 `Linear` 369 (907), 32: 368 (910), 64: 343 (828), 128: 366 (796), 256: 424 (777).
So blocks of 64 cost nothing, for small images and large ones. Filled up to 16 rows instead of 64, the four products
of a layer take 5 % less for 900 patches in bf16.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor, nn

ROW_BLOCK = 64
TAIL_ROWS = 16


def has_packed_kernels(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has oneDNN kernels of a dtype for this CPU."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001


def has_amx_kernels(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes products of a dtype with this CPU's AMX tiles."""
    return dtype == torch.bfloat16 and has_packed_kernels(dtype) and bool(torch.cpu._is_amx_tile_supported())  # noqa: SLF001


def threads_of_a_pass(dtype: torch.dtype, threads: int) -> int:
    """How many of so many threads a pass may use without changing a feature."""
    return 1 if has_amx_kernels(dtype) else threads


class RowBlockLinear(nn.Module):
    """A linear layer, GELU after it if asked, computed in blocks of `ROW_BLOCK` rows.

    The two oneDNN operators are the ones `torch.compile` emits for a linear layer on a CPU.

    Args:
        linear: the layer to take over; its weight is packed into oneDNN's own layout.
        gelu: `approximate` of the GELU that follows ("none" or "tanh"), or None without one.
    """

    def __init__(self, linear: nn.Linear, gelu: str | None = None) -> None:
        super().__init__()
        self.bias = linear.bias.detach()
        self.packed = has_packed_kernels(linear.weight.dtype)
        weight = linear.weight.detach()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROW_BLOCK) if self.packed else weight  # noqa: SLF001
        self.gelu = gelu
        self._filled_to = TAIL_ROWS if self.packed and not has_amx_kernels(weight.dtype) else ROW_BLOCK

    def forward(self, x: Tensor) -> Tensor:
        """[N, in] to [N, out]."""
        out = x.new_empty(len(x), len(self.bias))
        for start in range(0, len(x), ROW_BLOCK):
            block = x[start : start + ROW_BLOCK]
            rows = len(block)
            out[start : start + rows] = self._block(F.pad(block, (0, 0, 0, -rows % self._filled_to)))[:rows]
        return out

    def _block(self, block: Tensor) -> Tensor:
        if self.packed:
            after, kind = ("none", "") if self.gelu is None else ("gelu", self.gelu)
            out: Tensor = torch.ops.mkldnn._linear_pointwise(block, self.weight, self.bias, after, [], kind)  # noqa: SLF001
            return out
        out = F.linear(block, self.weight, self.bias)
        return out if self.gelu is None else F.gelu(out, approximate=self.gelu)


def pack_linears(module: nn.Module) -> None:
    """Put a `RowBlockLinear` in the place of every linear layer below a module.

    A GELU named `act` right behind a layer named `linear_fc1` moves into that layer.
    """
    for parent in list(module.modules()):
        act = getattr(parent, "act", None)
        fused = act.approximate if isinstance(act, nn.GELU) else None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, RowBlockLinear(child, fused if name == "linear_fc1" else None))
        if fused is not None:
            parent.act = nn.Identity()
